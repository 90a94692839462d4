"""Targets of long streams, compared with the ground truth of the same texts."""

from collections.abc import Callable, Sequence

from ..limits import MAX_LIP_OFFSET, MAX_RTF, MIN_IDENTITY
from ..metrics.word_counts import EdgeCount
from .measures import MEASURES
from .trend import SourceTrends, Trend, difference, trend

#: By how much the word error rate of the last minute may exceed that of the first.
MAX_WER_RISE = 0.03
#: Most words skipped, and most words repeated, per edge of a chunk.
MAX_AT_EDGES = 0.01
#: Largest drift, relative to the ground truth's.
MAX_DRIFT = 2.0
#: Largest real-time factor of the last minute, relative to that of the first.
MAX_RTF_RISE = 1.1
#: Growth of memory must stay below this, in megabytes per minute.
MAX_GROWTH = 0.1
#: Smallest share of planted words that are found missing. With a smaller share, a low number of skipped words
#: means nothing.
MIN_FOUND = 0.9
#: Smallest drift that counts, for each measure with a target. It replaces the ground truth's drift where that
#: is smaller. For words it is the scatter of a minute of 180 words.
LEAST_DRIFT = {
    "word errors": 0.03,
    "unheard": 0.015,
    "skipped": 0.01,
    "repeated": 0.01,
    "place, words": 0.1,
    "lips late by": 0.5,
    "lip correlation": 0.02,
    "identity": 0.005,
    "likeness": 0.002,
    "colour": 0.2,
    "sharpness": 0.01,
    "movement": 0.1,
    "voice": 0.002,
}


def targets(source: SourceTrends, sources: Sequence[SourceTrends]) -> dict[str, bool]:
    """Return each target of a source and whether it is met.

    Args:
        source: one of ``sources``.
        sources: sources that spoke the same texts, ground truth first.
    """
    truth = sources[0]
    wer = source.trends.get("word errors")
    points = f"{MAX_WER_RISE * 100:.0f} points"
    met = {
        f"WER of the last minute within {points} of the first": wer is not None
        and wer.last <= wer.first + MAX_WER_RISE,
        f"lip offset at most {MAX_LIP_OFFSET} frame in every minute of every stream": _always(
            source, "lips late by", lambda offset: abs(offset) <= MAX_LIP_OFFSET
        ),
        f"at least {MIN_IDENTITY:.0%} of frames nearest to own identity in every minute of every stream": (
            _always(source, "identity", lambda share: share >= MIN_IDENTITY)
        ),
    }
    by_sentence = next((other for other in sources if other.source == by_sentence_name(source.source)), None)
    if by_sentence is not None:
        more = difference(source, by_sentence, "word errors")
        met[f"WER within {points} of the same sentences in separate sessions"] = (
            more is not None and more.mean <= MAX_WER_RISE
        )
    for kind, count in (("skipped", source.skipped), ("repeated", source.repeated)):
        met[f"words {kind} at most at {MAX_AT_EDGES:.0%} of chunk edges"] = count.rate <= MAX_AT_EDGES
    met[f"at least {MIN_FOUND:.0%} of planted words found missing"] = (
        source.found >= MIN_FOUND * source.planted > 0
    )
    for name in LEAST_DRIFT:
        times = relative_drift(source, truth, name)
        met[f"drift of {MEASURES[name].label} at most {MAX_DRIFT:.0f} x ground truth's"] = (
            times is not None and times <= MAX_DRIFT
        )
    if "rtf" in source.trends:
        met[f"RTF below {MAX_RTF} in every minute of every stream"] = _always(
            source, "rtf", lambda rtf: rtf < MAX_RTF
        )
        met[f"RTF of the last minute at most {MAX_RTF_RISE} x the first's in every stream"] = all(
            found.last <= MAX_RTF_RISE * found.first for found in _trends(source, "rtf")
        )
    if source.memory_slopes:
        met[f"memory growth below {MAX_GROWTH} MB per minute in every stream"] = (
            max(source.memory_slopes) < MAX_GROWTH
        )
    return met


def by_sentence_name(name: str) -> str:
    """Return the name of a source when it speaks each sentence in its own session."""
    return f"{name}, sentence by sentence"


def rate_difference(count: EdgeCount, truth: EdgeCount) -> tuple[float, float]:
    """Return the rate of words near an edge minus the ground truth's, and its standard error."""
    return count.rate - truth.rate, (count.rate_error**2 + truth.rate_error**2) ** 0.5


def relative_drift(source: SourceTrends, truth: SourceTrends, name: str) -> float | None:
    """Return the mean drift of a measure divided by the ground truth's, or by the smallest drift that counts.

    None if one of them has no values, or the measure has no target.
    """
    own, floor = source.drifts.get(name), truth.drifts.get(name)
    if own is None or floor is None or name not in LEAST_DRIFT:
        return None
    return own.mean / max(floor.mean, LEAST_DRIFT[name])


def _always(source: SourceTrends, name: str, holds: Callable[[float], bool]) -> bool:
    """Return whether every minute of every stream has a value that satisfies a condition."""
    curves = source.curves.get(name, [])
    return len(curves) == source.streams and all(
        value is not None and holds(value) for curve in curves for value in curve
    )


def _trends(source: SourceTrends, name: str) -> list[Trend]:
    return [found for curve in source.curves[name] if (found := trend(curve))]
