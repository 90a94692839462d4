"""What long streams are measured with."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...data.speech import Speaker
from ...data.text.sentences import training_sentences
from ..arrays import Audio, Values
from ..metrics.align import TimedWord
from ..metrics.voice import VoiceStatistics
from ..metrics.wer import HeardWord

# Sentences from which the statistics of a voice are computed.
_VOICE_SENTENCES = 20


class Listener(Protocol):
    """Recognises words and their times."""

    def words(self, audio: Audio) -> list[HeardWord]:
        """Return the words of ``audio``, [samples] fp32, 24 kHz."""
        ...


class WordAligner(Protocol):
    """Finds the times of known words in a recording."""

    def align_words(self, audio: Audio, words: Sequence[str]) -> list[TimedWord] | None:
        """Return words and silences in order; None if alignment fails."""
        ...


class MissingWordFinder(Protocol):
    """Decides which words are not in a recording."""

    def missing(self, audio: Audio, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
        """Return the indices of the doubtful words that are missing; None if the search fails."""
        ...


@dataclass(frozen=True)
class Instruments:
    """The instruments of a :class:`~streamchar.eval.long.scorer.Scorer`.

    Attributes:
        listener: recognises words.
        aligner: finds the times of expected words.
        skip_finder: tells skipped words from words that the listener fails to write down.
        voice: statistics of the training voice, [38].
        size: height and width of all pictures.
        identities: number of characters in the gallery, at least 2.
    """

    listener: Listener
    aligner: WordAligner
    skip_finder: MissingWordFinder
    voice: Values
    size: tuple[int, int]
    identities: int


def voice_statistics(speaker: Speaker) -> Values:
    """Return the statistics of a voice, [38], from training sentences, which no script contains.

    Raises:
        ValueError: the speech is silent.
    """
    statistics = VoiceStatistics()
    for sentence in training_sentences(_VOICE_SENTENCES, seed=0):
        statistics.add(speaker.say(sentence).audio)
    vector = statistics.vector()
    if vector is None:
        raise ValueError("speech of speaker must be audible, got silence")
    return vector
