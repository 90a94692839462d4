"""Words that are missing from a recording, told from those that a recogniser merely does not write down.

A recogniser leaves out words that are there: a short one, or two that it takes for one it knows better. So
each word that it did not hear is put to it as a choice: the same text with that word and without, and no
other. Only where the recording fits better without it is the word skipped. The same choice about words that
nobody said, planted among the others, shows that skipped ones are found.
"""

from collections.abc import Collection, Sequence

from .align import Aligner
from .transcript import edit_path
from .wer import Audio, padded, pcm16

#: Of each side of a choice.
_EVEN = 0.5
_SEARCH = "skips"


class SkipFinder:
    """Decide which words of a text a recording lacks.

    Args:
        aligner: whose decoder searches: one set of acoustic models serves both.
    """

    def __init__(self, aligner: Aligner) -> None:
        self._aligner = aligner

    def missing(self, audio: Audio, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
        """Return which doubtful words the recording is better explained without.

        Args:
            audio: [samples] fp32 in [-1, 1] at 24 kHz.
            words: normalised, what else is said in it and the doubtful ones, in order.
            doubtful: numbers of words in doubt, at least one.

        Returns:
            Some of ``doubtful``; None where no way through the recording is found.

        Raises:
            ValueError: no word is in doubt.
        """
        if not doubtful:
            raise ValueError("doubtful must name a word at least, got none; without doubt there is no choice")
        decoder = self._aligner.knowing(words)
        # State k is behind k words; a step without a word passes over one in doubt.
        steps: list[tuple[int, int, float, str] | tuple[int, int, float]] = []
        for index, word in enumerate(words):
            steps.append((index, index + 1, _EVEN if index in doubtful else 1.0, word))
            if index in doubtful:
                steps.append((index, index + 1, 1 - _EVEN))
        decoder.add_fsg(_SEARCH, decoder.create_fsg(_SEARCH, 0, len(words), steps))
        decoder.activate_search(_SEARCH)
        decoder.start_utt()
        decoder.process_raw(pcm16(padded(audio)), full_utt=True)
        decoder.end_utt()
        if decoder.hyp() is None:
            return None
        said = [found.word.split("(")[0] for found in decoder.seg() if found.word[0] not in "<["]
        return {i for i, j in edit_path(words, said) if i in doubtful and j is None and i is not None}
