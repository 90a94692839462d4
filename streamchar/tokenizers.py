"""How text becomes tokens: bytes, phonemes, or a tokenizer that was saved to a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class VoiceUnavailableError(RuntimeError):
    """What turns text into the voice's tokens is not installed; the message says what to install."""


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        ...

    @property
    def pad(self) -> int:
        """Id that fills unused places of a buffer."""
        ...

    @property
    def script(self) -> str | None:
        """Unicode name of the only script that can be spoken, such as LATIN; None for any."""
        ...

    @property
    def space(self) -> int | None:
        """Id that parts what is said of one written word, as of a number; None where there is none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        ...


class ByteTokenizer:
    """UTF-8 bytes: token i < 256 is byte i, 256 is padding, 257 to 511 are reserved and never produced.

    Any text has tokens, but a voice trained on one script can say no other; ``script`` says which.
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
        """Return the text of ``ids``; padding is skipped, a cut character reads as U+FFFD."""
        return bytes(token for token in ids if token < self.pad).decode(errors="replace")


class PhonemeTokenizer:
    """English phonemes: token i is the symbol that the ``hibari-tts`` package numbers i, 0 is padding.

    Words are read by that package's lexicon, number and abbreviation rules and its network for unknown
    words; stress marks, punctuation and the space between words are tokens like the phonemes.

    Raises:
        VoiceUnavailableError: on the first use of :meth:`encode`, the package is not installed.
    """

    vocabulary = 192
    pad = 0
    script: str | None = "LATIN"

    def __init__(self) -> None:
        self._g2p: Any = None
        self._symbols: dict[str, int] = {}

    @property
    def g2p(self) -> Any:
        """The package's converter, loaded when it is first needed."""
        if self._g2p is None:
            try:
                from hibari.g2p import ASSETS, G2P
            except ImportError as error:
                raise VoiceUnavailableError(
                    "the voice reads phonemes, which need the hibari-tts package, got none; "
                    "pip install 'streamchar[voice]'"
                ) from error
            self._symbols = json.loads((Path(ASSETS) / "vocab.json").read_text(encoding="utf-8"))
            self._g2p = G2P()
        return self._g2p

    @property
    def symbols(self) -> dict[str, int]:
        """Token of every symbol."""
        _ = self.g2p
        return self._symbols

    @property
    def space(self) -> int:
        """Token between words."""
        return self.symbols[" "]

    def encode(self, text: str) -> list[int]:
        """Return the phonemes of ``text``; a space in front is a token, what has no sound is not."""
        phonemes = self.g2p(text.strip())
        spaced = " " + phonemes if text[:1].isspace() and phonemes else phonemes
        return [self.symbols[symbol] for symbol in spaced if symbol in self.symbols]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the phonemes of ``ids`` as text; padding is skipped."""
        names = {token: symbol for symbol, token in self.symbols.items()}
        return "".join(names.get(token, "") for token in ids if token != self.pad)


def default_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that a config names, ``"bytes"`` or ``"phonemes"``.

    Raises:
        ValueError: it names ``"given"``, one that only the caller has.
    """
    if name == "given":
        raise ValueError(
            "tokenizer must be given with this preset, got none; FileTokenizer reads a tokenizer.json"
        )
    return PhonemeTokenizer() if name == "phonemes" else ByteTokenizer()


class FileTokenizer:
    """The tokenizer that ``transformers`` saved in a directory, read from its tokenizer.json.

    Args:
        directory: holds tokenizer.json.

    Raises:
        FileNotFoundError: there is no tokenizer.json, with the call that writes one.
    """

    script: str | None = None
    space: int | None = None

    def __init__(self, directory: str | Path) -> None:
        file = Path(directory) / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"directory must hold tokenizer.json, got {directory}; write one with "
                "AutoTokenizer.from_pretrained(name).save_pretrained(directory)"
            )
        # Only voices of this kind need the package, and importing this module should cost nothing.
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
