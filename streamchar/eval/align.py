"""Phones and their times in a recording whose words are known, by forced alignment with pocketsphinx.

Its phones are named as the CMU dictionary names them; the face's visemes go by the symbols of the voice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..data.visemes import Phone
from .normalise import normalise
from .wer import FRAME, MARGIN, Audio, padded, pcm16

if TYPE_CHECKING:
    from pocketsphinx import Decoder

#: The voice's symbol for each phone of the CMU dictionary.
SYMBOLS = {
    **{"AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "W", "AY": "I", "EH": "ɛ", "ER": "ɜ", "EY": "A"},
    **{"IH": "ɪ", "IY": "i", "OW": "O", "OY": "Y", "UH": "ʊ", "UW": "u"},
    **{
        "B": "b",
        "CH": "ʧ",
        "D": "d",
        "DH": "ð",
        "F": "f",
        "G": "ɡ",
        "HH": "h",
        "JH": "ʤ",
        "K": "k",
        "L": "l",
    },
    **{"M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v"},
    **{"W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
}
# The other way round, with the symbols that the dictionary has no phone of its own for.
_PHONES = {
    **{symbol: phone for phone, symbol in SYMBOLS.items()},
    **{"a": "AA", "ɒ": "AA", "ɐ": "AH", "ə": "AH", "ᵊ": "AH", "ɚ": "ER", "ᵻ": "IH", "e": "EY", "o": "OW"},
    **{"Q": "OW", "T": "D", "ɾ": "D", "ʔ": "T", "r": "R"},
}
_SILENCE = "."
# Recordings that cannot be aligned are tried again with noise of this deviation, three steps of 16 bits.
_TRIES, _NOISE = 4, 1e-4


@dataclass(frozen=True)
class TimedWord:
    """A word of a recording and its phones, at least one, in seconds; a silence has no text."""

    text: str
    phones: tuple[Phone, ...]

    @property
    def middle(self) -> float:
        """When half of it is said, in seconds."""
        return (self.phones[0].start + self.phones[-1].end) / 2


class Aligner:
    """Find the phones of known words.

    Args:
        pronounce: the symbols of a word that the dictionary does not have.
    """

    def __init__(self, pronounce: Callable[[str], str]) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(loglevel="FATAL", lm=None)
        self._pronounce = pronounce

    def align(self, audio: Audio, text: str) -> list[Phone] | None:
        """Return the phones of ``text`` in ``audio``, touching one another from first to last.

        Args:
            audio: [samples] fp32 in [-1, 1] at 24 kHz.
            text: what is said in it.

        Returns:
            Phones with times in seconds; None where the aligner finds no way through the recording.
        """
        words = self.align_words(audio, normalise(text).split())
        return None if words is None else [phone for word in words for phone in word.phones]

    def align_words(self, audio: Audio, words: Sequence[str]) -> list[TimedWord] | None:
        """Return ``words`` and the silences between them as they lie in ``audio``.

        Args:
            audio: [samples] fp32 in [-1, 1] at 24 kHz.
            words: normalised, at least one; a word that is not in the dictionary is pronounced.

        Returns:
            In order, a silence without a text; None where the aligner finds no way through the recording.
        """
        self.knowing(words)
        # Its beam loses one clean recording in fifty; with a faint noise it mostly does not.
        recording = padded(audio)
        noise = np.random.default_rng(0)
        for _ in range(_TRIES):
            if self._search(pcm16(recording), words):
                return [
                    TimedWord(
                        "" if word.name[0] in "<[" else word.name.split("(")[0],
                        tuple(
                            Phone(
                                SYMBOLS.get(phone.name, _SILENCE),
                                max(phone.start * FRAME - MARGIN, 0.0),
                                max((phone.start + phone.duration) * FRAME - MARGIN, 0.0),
                            )
                            for phone in word
                        ),
                    )
                    for word in self._decoder.get_alignment()
                ]
            recording = padded(audio) + noise.normal(0, _NOISE, len(recording)).astype(np.float32)
        return None

    def knowing(self, words: Sequence[str]) -> "Decoder":
        """Return the decoder, whose dictionary now has all of ``words``, which are normalised."""
        for word in words:
            if self._decoder.lookup_word(word) is None:
                self._decoder.add_word(word, spelled_in_phones(self._pronounce(word)))
        return self._decoder

    def _search(self, pcm: bytes, words: Sequence[str]) -> bool:
        """Look for the words, then for the phones within them; return whether there is a way through."""
        self._decoder.set_align_text(" ".join(words))
        try:
            self._hear(pcm)
            if self._decoder.hyp() is None:
                return False
            self._decoder.set_alignment()
            self._hear(pcm)
        except RuntimeError:  # how the decoder says that the end cannot be reached
            return False
        return True

    def _hear(self, pcm: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()


def spelled_in_phones(symbols: str) -> str:
    """Return the voice's symbols as phones of the CMU dictionary, joined by spaces; marks are skipped.

    Raises:
        ValueError: none of the symbols is a phone.
    """
    # A vowel that is coloured by the r after it is one phone there.
    symbols = symbols.replace("ɜɹ", "ɚ").replace("əɹ", "ɚ")
    phones = [_PHONES[symbol] for symbol in symbols if symbol in _PHONES]
    if not phones:
        raise ValueError(f"symbols must hold a phone, got {symbols!r}")
    return " ".join(phones)


def spoken_span(phones: Sequence[Phone]) -> tuple[float, float]:
    """Return when the first sound begins and the last one ends, in seconds.

    Raises:
        ValueError: there is no sound among the phones.
    """
    sounds = [phone for phone in phones if phone.symbol.isalpha()]
    if not sounds:
        raise ValueError("phones must hold a sound, got none; align a recording with words in it")
    return sounds[0].start, sounds[-1].end
