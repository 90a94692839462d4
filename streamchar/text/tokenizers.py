"""Tokenizers: UTF-8 bytes, English phonemes, or a tokenizer loaded from a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import ArgumentError, StreamCharError


class VoiceUnavailableError(StreamCharError, RuntimeError):
    """The package that tokenises text for this voice is not installed; the message says how to install it."""


class Tokenizer(Protocol):
    """The interface that the engine requires of a tokenizer."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        ...

    @property
    def pad(self) -> int:
        """Padding id, for unused places of a buffer."""
        ...

    @property
    def script(self) -> str | None:
        """Unicode name of the only script that can be spoken, such as ``"LATIN"``; None for all scripts."""
        ...

    @property
    def space(self) -> int | None:
        """Id that separates the spoken words of one written word, such as a number; None if there is none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        ...


class ByteTokenizer:
    """Tokenise text as UTF-8 bytes.

    Token i < 256 is byte i, token 256 is padding, and tokens 257 to 511 are reserved and never produced.

    Args:
        script: Unicode name of the only script the voice was trained on; None for all scripts. Any text has
            tokens, but the voice can speak no other script.
    """

    vocabulary = 512
    pad = 256
    space: int | None = None

    def __init__(self, script: str | None = "LATIN") -> None:
        self.script = script

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of ``text``."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``. Padding is skipped; an incomplete character decodes to U+FFFD."""
        return bytes(token for token in ids if token < self.pad).decode(errors="replace")


class PhonemeTokenizer:
    """Tokenise English text as phonemes.

    Token i is symbol i of the ``hibari-tts`` package; token 0 is padding. Stress marks, punctuation and the
    space between words are tokens too. The package reads words with its lexicon, its rules for numbers and
    abbreviations, and a network for unknown words. It is loaded on first use.

    Raises:
        VoiceUnavailableError: on first use, if the ``hibari-tts`` package is not installed.
    """

    vocabulary = 192
    pad = 0
    script: str | None = "LATIN"

    def __init__(self) -> None:
        self._g2p: Any = None
        self._symbols: dict[str, int] = {}

    @property
    def g2p(self) -> Any:
        """Grapheme-to-phoneme converter of ``hibari-tts``, loaded on first use."""
        if self._g2p is None:
            try:
                from hibari.g2p import ASSETS, G2P
            except ImportError as error:
                raise VoiceUnavailableError(
                    "this voice reads phonemes and needs the hibari-tts package, which is not installed; "
                    "pip install 'streamchar[voice]'"
                ) from error
            self._symbols = json.loads((Path(ASSETS) / "vocab.json").read_text(encoding="utf-8"))
            self._g2p = G2P()
        return self._g2p

    @property
    def symbols(self) -> dict[str, int]:
        """Token id of each symbol."""
        _ = self.g2p
        return self._symbols

    @property
    def space(self) -> int:
        """Token id of the space between words."""
        return self.symbols[" "]

    def encode(self, text: str) -> list[int]:
        """Return the phoneme ids of ``text``. A leading space has a token; silent characters have none."""
        phonemes = self.g2p(text.strip())
        spaced = " " + phonemes if text[:1].isspace() and phonemes else phonemes
        return [self.symbols[symbol] for symbol in spaced if symbol in self.symbols]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the phonemes of ``ids`` as text; padding is skipped."""
        names = {token: symbol for symbol, token in self.symbols.items()}
        return "".join(names.get(token, "") for token in ids if token != self.pad)


def default_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that a config names: ``"bytes"`` or ``"phonemes"``.

    Raises:
        ArgumentError: ``name`` is ``"given"``: the preset has no tokenizer of its own.
    """
    ArgumentError.require(
        name != "given",
        "tokenizer",
        "given with this preset",
        "none",
        "load a tokenizer.json with FileTokenizer",
    )
    return PhonemeTokenizer() if name == "phonemes" else ByteTokenizer()


class FileTokenizer:
    """Load a tokenizer that ``transformers`` saved, from its tokenizer.json.

    Args:
        directory: directory that contains tokenizer.json.

    Raises:
        FileNotFoundError: there is no tokenizer.json. The message shows the call that writes one.
    """

    script: str | None = None
    space: int | None = None

    def __init__(self, directory: str | Path) -> None:
        file = Path(directory) / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"directory must contain tokenizer.json, got {directory}; write one with "
                "AutoTokenizer.from_pretrained(name).save_pretrained(directory)"
            )
        # Only voices of this kind need the package.
        from tokenizers import Tokenizer as TokenizerFile

        self._tokenizer = TokenizerFile.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocabulary = int(self._tokenizer.get_vocab_size())
        padding = self._tokenizer.token_to_id("<|endoftext|>")
        self.pad = 0 if padding is None else int(padding)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; special tokens are skipped."""
        return str(self._tokenizer.decode(list(ids)))
