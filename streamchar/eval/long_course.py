"""How measures went over minutes, stream by stream and over all streams of a source."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .long import StreamScores, slope
from .transcript import EdgeCount
from .voice import HIGHER

Curve = list[float | None]


class Measure(NamedTuple):
    """How a measure is written.

    Attributes:
        label: for tables and plots, with its unit.
        form: format of a value.
        scale: what a value is multiplied with before.
    """

    label: str
    form: str
    scale: float = 1.0


MEASURES: Mapping[str, Measure] = {
    "word errors": Measure("word errors, % of words", ".1f", 100),
    "unheard": Measure("words not heard, %", ".1f", 100),
    "skipped": Measure("words skipped, %", ".1f", 100),
    "repeated": Measure("words heard again, %", ".1f", 100),
    "place, seconds": Measure("place error, s", ".2f"),
    "place, words": Measure("place error, words", ".2f"),
    "pointer late by": Measure("pointer late by, s", "+.2f"),
    "lips late by": Measure("lips late by, frames", "+.1f"),
    "lip correlation": Measure("lip correlation", ".2f"),
    "identity": Measure("own identity nearest, % of frames", ".1f", 100),
    "likeness": Measure("likeness of the picture", ".4f"),
    "colour": Measure("face colour off by, of 255", ".2f"),
    "sharpness": Measure("face sharpness, of the reference's", ".2f"),
    "movement": Measure("movement across edges of chunks, of that within", ".2f"),
    "voice": Measure("likeness of the voice", ".3f"),
    "another voice": Measure(f"likeness of the voice made {HIGHER:.0%} higher", ".3f"),
    "rtf": Measure("real-time factor", ".2f"),
    "memory": Measure("memory, MB", ".0f"),
}


@dataclass(frozen=True)
class Course:
    """How a measure went.

    Attributes:
        first: value of the first minute that has one.
        last: of the last.
        slope: a minute, by least squares; 0 of a single minute.
        error: standard error of the slope, as minutes scatter around the line.
    """

    first: float
    last: float
    slope: float
    error: float

    @property
    def drift(self) -> float:
        """How far the last minute is from the first."""
        return abs(self.last - self.first)


def course(values: Sequence[float | None]) -> Course | None:
    """Return how a measure went, None where it has no value.

    Args:
        values: one a minute, None where there is none.
    """
    known = [(minute, value) for minute, value in enumerate(values) if value is not None]
    if not known:
        return None
    rise = slope(known) if len(known) > 1 else (0.0, 0.0)
    return Course(known[0][1], known[-1][1], *rise)


@dataclass(frozen=True)
class Drift:
    """How far the last minute is from the first, over streams: opposite ways do not make up for one another.

    Attributes:
        mean: over the streams, of the distance of each.
        worst: the largest.
    """

    mean: float
    worst: float


@dataclass(frozen=True)
class SourceCourse:
    """All streams of one source.

    Attributes:
        source: its name.
        streams: how many.
        curves: of each measure its curve in every stream that has it, a value a minute.
        minutes: of each measure its mean over the streams, a value a minute.
        courses: of the means, for each measure that has values.
        drifts: of each measure that has values.
        unheard: words that the recogniser did not write down, summed over the streams.
        skipped: those of them that are not in the recording, likewise.
        repeated: likewise.
        planted: words that nobody said, likewise.
        found: those of them that were found missing.
        words: asked for, likewise.
        confirmed: of these, heard right and found: those that the place error is measured at.
        memory_slopes: megabytes a minute, of every stream that knows it.
    """

    source: str
    streams: int
    curves: dict[str, list[Curve]]
    minutes: dict[str, Curve]
    courses: dict[str, Course]
    drifts: dict[str, Drift]
    unheard: EdgeCount
    skipped: EdgeCount
    repeated: EdgeCount
    planted: int
    found: int
    words: int
    confirmed: int
    memory_slopes: list[float]


def merge(source: str, streams: Sequence[StreamScores]) -> SourceCourse:
    """Return the scores of a source over its streams, at least one."""
    longest = max(len(values) for scores in streams for values in scores.minutes.values())
    curves = {
        name: found
        for name in MEASURES
        if (found := [scores.minutes[name] for scores in streams if name in scores.minutes])
    }
    minutes = {
        name: [_mean([curve[k] for curve in found if k < len(curve)]) for k in range(longest)]
        for name, found in curves.items()
    }
    unheard, skipped, repeated = (
        EdgeCount(*np.sum([[count.near, count.away, count.edges] for count in counts], 0).tolist())
        for counts in zip(*((scores.unheard, scores.skipped, scores.repeated) for scores in streams))
    )
    return SourceCourse(
        source,
        len(streams),
        curves,
        minutes,
        {name: known for name, values in minutes.items() if (known := course(values))},
        {name: drift for name, each in curves.items() if (drift := _drift(each))},
        unheard,
        skipped,
        repeated,
        sum(scores.planted for scores in streams),
        sum(scores.found for scores in streams),
        sum(scores.words for scores in streams),
        sum(scores.confirmed for scores in streams),
        [scores.memory_slope for scores in streams if scores.memory_slope is not None],
    )


class Halves(NamedTuple):
    """Means over minutes and streams.

    Attributes:
        mean: of all minutes.
        first: of the first half of the minutes.
        second: of the others.
    """

    mean: float
    first: float
    second: float


def halves(source: SourceCourse, name: str) -> Halves | None:
    """Return the means of a measure, None where a half has no value."""
    curves = source.curves.get(name, [])
    middle = max(map(len, curves), default=0) // 2
    found = [
        _mean([value for curve in curves for value in curve[part]])
        for part in (slice(None), slice(middle), slice(middle, None))
    ]
    known = [value for value in found if value is not None]
    return Halves(*known) if len(known) == len(found) else None


class Difference(NamedTuple):
    """How far a source is above another in what both have spoken.

    Attributes:
        mean: over the minutes that both have.
        error: its standard error, as minutes scatter; NaN of a single minute.
    """

    mean: float
    error: float


def difference(source: SourceCourse, other: SourceCourse, name: str) -> Difference | None:
    """Return how far a measure is above another source's, None where no minute of a stream has both."""
    found = [
        one - two
        for curves in zip(*(each.curves.get(name, []) for each in (source, other)))
        for one, two in zip(*curves)
        if one is not None and two is not None
    ]
    if not found:
        return None
    error = float(np.std(found, ddof=1)) / len(found) ** 0.5 if len(found) > 1 else math.nan
    return Difference(float(np.mean(found)), error)


def _drift(curves: Sequence[Curve]) -> Drift | None:
    drifts = [found.drift for curve in curves if (found := course(curve))]
    return Drift(float(np.mean(drifts)), max(drifts)) if drifts else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
