"""The scores of one stream, as its file stores them."""

from dataclasses import dataclass

from ..metrics.word_counts import EdgeCount


@dataclass(frozen=True)
class WordTotals:
    """Numbers of words, of one stream or of several.

    Attributes:
        unheard: expected words that the recogniser did not write down.
        skipped: those among them without which the text fits the recording better, or for which this is
            unknown.
        repeated: words heard again that the text has once.
        planted: words that nobody said and that were offered to the skip finder, one per segment.
        found: those among them that the skip finder reported as missing.
        words: expected words in the part of the text that was spoken.
        confirmed: those among them that were heard right and aligned; only they count for the pointer error.
    """

    unheard: EdgeCount
    skipped: EdgeCount
    repeated: EdgeCount
    planted: int
    found: int
    words: int
    confirmed: int


@dataclass(frozen=True)
class StreamScores(WordTotals):
    """Scores of one stream.

    Attributes:
        minutes: for each measure of :data:`~streamchar.eval.long.trend.MEASURES`, one value per minute; None
            if there was nothing to measure.
        seconds: length of the stream.
        memory_slope: growth of the speaking process after the first minute, in megabytes per minute; None if
            unknown.
    """

    minutes: dict[str, list[float | None]]
    seconds: float
    memory_slope: float | None
