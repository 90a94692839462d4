"""Targets of long streams: judged stream by stream, beside the ground truth of the same texts."""

from collections.abc import Callable, Sequence

from .long_course import MEASURES, Course, SourceCourse, course, difference
from .report import IDENTITY, OFFSET, RTF
from .transcript import EdgeCount

#: To be reached: word errors of the last minute above the first's, words skipped or repeated at an edge,
#: drift beside the ground truth's, real-time factor of the last minute beside the first's, megabytes a minute
#: that are not growth.
WER_RISE, AT_EDGES, DRIFT, FLAT, GROWTH = 0.03, 0.01, 2.0, 1.1, 0.1
#: Words that nobody said and that are found missing, at least: with fewer, few skipped words say nothing.
FOUND = 0.9
#: The least drift that counts, for each measure that has a floor. Drifts of the ground truth below these are
#: as good as none, and no measure for others': those of words are what a minute of 180 words scatters by.
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


def targets(source: SourceCourse, sources: Sequence[SourceCourse]) -> dict[str, bool]:
    """Return which targets a source reaches.

    Args:
        source: one of ``sources``.
        sources: that spoke the same texts, ground truth first.
    """
    truth = sources[0]
    errors = source.courses.get("word errors")
    met = {
        f"word errors of the last minute within {WER_RISE * 100:.0f} points of the first": errors is not None
        and errors.last <= errors.first + WER_RISE,
        f"lips within {OFFSET} frame in every minute of every stream": _always(
            source, "lips late by", lambda late: abs(late) <= OFFSET
        ),
        f"own identity nearest in {IDENTITY:.0%} of every minute of every stream": _always(
            source, "identity", lambda share: share >= IDENTITY
        ),
    }
    alone = next((other for other in sources if other.source == alone_of(source.source)), None)
    if alone is not None:
        name = (
            f"word errors within {WER_RISE * 100:.0f} points of the same sentences' in sessions of their own"
        )
        more = difference(source, alone, "word errors")
        met[name] = more is not None and more.mean <= WER_RISE
    for kind, count in (("skipped", source.skipped), ("repeated", source.repeated)):
        met[f"words {kind} at {AT_EDGES:.0%} of chunk edges at most"] = count.rate <= AT_EDGES
    name = f"{FOUND:.0%} of words that nobody said found missing, so that skipped ones would be"
    met[name] = source.found >= FOUND * source.planted > 0
    for name in LEAST_DRIFT:
        times = drift_beside(source, truth, name)
        met[f"drift of {MEASURES[name].label} at most {DRIFT:.0f} x ground truth's"] = (
            times is not None and times <= DRIFT
        )
    if "rtf" in source.courses:
        met[f"RTF below {RTF} in every minute of every stream"] = _always(
            source, "rtf", lambda rtf: rtf < RTF
        )
        met[f"RTF of the last minute at most {FLAT} x the first's in every stream"] = all(
            found.last <= FLAT * found.first for found in _courses(source, "rtf")
        )
    if source.memory_slopes:
        name = f"memory grows by less than {GROWTH} MB a minute in every stream"
        met[name] = max(source.memory_slopes) < GROWTH
    return met


def alone_of(name: str) -> str:
    """Return what a source is called that speaks each sentence in a session of its own."""
    return f"{name}, sentence by sentence"


def beside_truth(count: EdgeCount, truth: EdgeCount) -> tuple[float, float]:
    """Return how many more words there are near an edge than the ground truth has, and the standard error."""
    return count.rate - truth.rate, (count.rate_error**2 + truth.rate_error**2) ** 0.5


def drift_beside(source: SourceCourse, truth: SourceCourse, name: str) -> float | None:
    """Return the mean drift of a measure over the ground truth's, or over the least that counts.

    None where one of both has no value, or the measure no floor.
    """
    own, floor = source.drifts.get(name), truth.drifts.get(name)
    if own is None or floor is None or name not in LEAST_DRIFT:
        return None
    return own.mean / max(floor.mean, LEAST_DRIFT[name])


def _always(source: SourceCourse, name: str, holds: Callable[[float], bool]) -> bool:
    """Say whether every minute of every stream has a value, for which something holds."""
    curves = source.curves.get(name, [])
    return len(curves) == source.streams and all(
        value is not None and holds(value) for curve in curves for value in curve
    )


def _courses(source: SourceCourse, name: str) -> list[Course]:
    return [found for curve in source.curves[name] if (found := course(curve))]
