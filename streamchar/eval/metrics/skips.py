"""Tell skipped words from words that a recogniser merely fails to write down.

A recogniser omits words that are in the recording: a short one, or two words that it mistakes for a more
common one. So for each word that was not heard, the recogniser chooses between two texts: with that word and
without it. The word counts as skipped only if the recording fits better without it. Adding words that nobody
said ("planted" words) and testing them in the same way shows that skipped words would be detected.
"""

from collections.abc import Collection, Sequence

from ..arrays import Audio
from .align import ForcedAligner
from .edit_path import edit_path
from .sphinx_decoder import base_word, is_filler, process
from .wer import padded, pcm16

# Probability of each of the two choices.
_EVEN = 0.5
_SEARCH = "skips"


class SkipFinder:
    """Decide which words of a text a recording lacks.

    Args:
        aligner: its decoder runs the search, so that one set of acoustic models serves both.
    """

    def __init__(self, aligner: ForcedAligner) -> None:
        self._aligner = aligner

    def missing(self, audio: Audio, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
        """Return the doubtful words without which the text fits the recording better.

        Args:
            audio: [samples] fp32 in [-1, 1], 24 kHz.
            words: the text, normalised, doubtful words included.
            doubtful: indices of words that may be missing, at least one.

        Returns:
            A subset of ``doubtful``; None if the search fails.

        Raises:
            ValueError: ``doubtful`` is empty.
        """
        if not doubtful:
            raise ValueError("doubtful must contain at least one index, got none; call it for unheard words")
        decoder = self._aligner.decoder_for(words)
        # State k follows word k - 1. A doubtful word also has a transition that consumes no sound.
        transitions: list[tuple[int, int, float, str] | tuple[int, int, float]] = []
        for index, word in enumerate(words):
            transitions.append((index, index + 1, _EVEN if index in doubtful else 1.0, word))
            if index in doubtful:
                transitions.append((index, index + 1, 1 - _EVEN))
        decoder.add_fsg(_SEARCH, decoder.create_fsg(_SEARCH, 0, len(words), transitions))
        decoder.activate_search(_SEARCH)
        process(decoder, pcm16(padded(audio)))
        if decoder.hyp() is None:
            return None
        chosen = [base_word(found.word) for found in decoder.seg() if not is_filler(found.word)]
        return {i for i, j in edit_path(words, chosen) if i in doubtful and j is None and i is not None}
