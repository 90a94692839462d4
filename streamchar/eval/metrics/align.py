"""Forced alignment with pocketsphinx: the times of phones and words in a recording whose text is known.

pocketsphinx names phones as the CMU dictionary does. The renderer's visemes use the symbols of the voice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...data.renderer.visemes import Phone
from ..arrays import Audio
from .normalise import normalise
from .sphinx_decoder import base_word, is_filler, process, seconds
from .wer import padded, pcm16

if TYPE_CHECKING:
    from pocketsphinx import Decoder

#: The voice's symbol for each phone of the CMU dictionary.
SYMBOLS = {
    **{"AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "W", "AY": "I", "EH": "ɛ", "ER": "ɜ", "EY": "A"},
    **{"IH": "ɪ", "IY": "i", "OW": "O", "OY": "Y", "UH": "ʊ", "UW": "u", "B": "b", "CH": "ʧ", "D": "d"},
    **{"DH": "ð", "F": "f", "G": "ɡ", "HH": "h", "JH": "ʤ", "K": "k", "L": "l", "M": "m", "N": "n"},
    **{"NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w"},
    **{"Y": "j", "Z": "z", "ZH": "ʒ"},
}
# The inverse, with the nearest phone for symbols that the dictionary does not have.
_PHONES = {
    **{symbol: phone for phone, symbol in SYMBOLS.items()},
    **{"a": "AA", "ɒ": "AA", "ɐ": "AH", "ə": "AH", "ᵊ": "AH", "ɚ": "ER", "ᵻ": "IH", "e": "EY", "o": "OW"},
    **{"Q": "OW", "T": "D", "ɾ": "D", "ʔ": "T", "r": "R"},
}
_SILENCE = "."
# If alignment fails, it is tried again with noise of this standard deviation: three steps of 16-bit audio.
_TRIES, _NOISE = 4, 1e-4


@dataclass(frozen=True)
class TimedWord:
    """A word of a recording, or a silence.

    Attributes:
        text: the word; empty for a silence.
        phones: at least one, with times in seconds.
    """

    text: str
    phones: tuple[Phone, ...]

    @property
    def middle(self) -> float:
        """Middle of the word in seconds."""
        return (self.phones[0].start + self.phones[-1].end) / 2


class ForcedAligner:
    """Find the phones of known words.

    Args:
        pronounce: returns the voice's symbols of a word that the dictionary does not have.

    Raises:
        ImportError: pocketsphinx is not installed.
    """

    def __init__(self, pronounce: Callable[[str], str]) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(loglevel="FATAL", lm=None)
        self._pronounce = pronounce

    def align(self, audio: Audio, text: str) -> list[Phone] | None:
        """Return the phones of a text, each starting where the one before it ends.

        Args:
            audio: [samples] fp32 in [-1, 1], 24 kHz.
            text: the words that the recording contains.

        Returns:
            Phones with times in seconds; None if alignment fails.
        """
        words = self.align_words(audio, normalise(text).split())
        return None if words is None else [phone for word in words for phone in word.phones]

    def align_words(self, audio: Audio, words: Sequence[str]) -> list[TimedWord] | None:
        """Return words and the silences between them, with their times.

        Args:
            audio: [samples] fp32 in [-1, 1], 24 kHz.
            words: normalised, at least one.

        Returns:
            Words and silences in order; None if alignment fails.
        """
        self.decoder_for(words)
        # The beam search fails on one clean recording in fifty, and mostly succeeds after adding faint noise.
        recording = padded(audio)
        noise = np.random.default_rng(0)
        for _ in range(_TRIES):
            if self._search(pcm16(recording), words):
                return [
                    TimedWord(
                        "" if is_filler(word.name) else base_word(word.name),
                        tuple(
                            Phone(
                                SYMBOLS.get(phone.name, _SILENCE),
                                seconds(phone.start),
                                seconds(phone.start + phone.duration),
                            )
                            for phone in word
                        ),
                    )
                    for word in self._decoder.get_alignment()
                ]
            recording = padded(audio) + noise.normal(0, _NOISE, len(recording)).astype(np.float32)
        return None

    def decoder_for(self, words: Sequence[str]) -> "Decoder":
        """Return the decoder, after adding missing words to its dictionary.

        Args:
            words: normalised.
        """
        for word in words:
            if self._decoder.lookup_word(word) is None:
                self._decoder.add_word(word, spelled_in_phones(self._pronounce(word)))
        return self._decoder

    def _search(self, pcm: bytes, words: Sequence[str]) -> bool:
        """Align the words, then the phones within them; return whether both succeed."""
        self._decoder.set_align_text(" ".join(words))
        try:
            process(self._decoder, pcm)
            if self._decoder.hyp() is None:
                return False
            self._decoder.set_alignment()
            process(self._decoder, pcm)
        except RuntimeError:  # The decoder cannot reach the last word.
            return False
        return True


def spelled_in_phones(symbols: str) -> str:
    """Return the voice's symbols as phones of the CMU dictionary, joined by spaces.

    Args:
        symbols: stress marks and other symbols that are not phones are skipped.

    Raises:
        ValueError: none of the symbols is a phone.
    """
    # The dictionary has one phone for a vowel coloured by the r after it.
    symbols = symbols.replace("ɜɹ", "ɚ").replace("əɹ", "ɚ")
    phones = [_PHONES[symbol] for symbol in symbols if symbol in _PHONES]
    if not phones:
        raise ValueError(f"symbols must contain a phone, got {symbols!r}")
    return " ".join(phones)


def spoken_span(phones: Sequence[Phone]) -> tuple[float, float]:
    """Return the start of the first sound and the end of the last one, in seconds.

    Raises:
        ValueError: all phones are silences.
    """
    sounds = [phone for phone in phones if phone.symbol.isalpha()]
    if not sounds:
        raise ValueError("phones must contain a sound, got none; align a recording that contains words")
    return sounds[0].start, sounds[-1].end
