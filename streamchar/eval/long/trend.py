"""How measures change over minutes, stream by stream and averaged over all streams of a source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..metrics.word_counts import EdgeCount
from .measures import MEASURES
from .per_minute import slope
from .stream_scores import StreamScores, WordTotals

#: One value per minute; None if there is none.
Curve = list[float | None]


@dataclass(frozen=True)
class Trend:
    """How a measure changes over the minutes.

    Attributes:
        first: value of the first minute that has one.
        last: value of the last minute that has one.
        slope: change per minute by least squares; 0 for a single minute.
        error: standard error of the slope, from the scatter of minutes around the line.
    """

    first: float
    last: float
    slope: float
    error: float

    @property
    def drift(self) -> float:
        """Absolute difference between the last and the first minute."""
        return abs(self.last - self.first)


def trend(curve: Sequence[float | None]) -> Trend | None:
    """Return the trend of a measure; None if the curve has no values."""
    known = [(minute, value) for minute, value in enumerate(curve) if value is not None]
    if not known:
        return None
    fit = slope(known) if len(known) > 1 else (0.0, 0.0)
    return Trend(known[0][1], known[-1][1], *fit)


@dataclass(frozen=True)
class Drift:
    """Drift over several streams. It is absolute, so that opposite directions do not cancel.

    Attributes:
        mean: mean drift of the streams.
        worst: largest drift of a stream.
    """

    mean: float
    worst: float


@dataclass(frozen=True)
class SourceTrends(WordTotals):
    """All streams of one source. Numbers of words are summed over the streams.

    Attributes:
        source: name of the source.
        streams: number of streams.
        curves: for each measure, its curve in every stream that has the measure.
        minutes: for each measure, the mean curve over the streams.
        trends: for each measure that has values, the trend of the mean curve.
        drifts: for each measure that has values, its drift over the streams.
        memory_slopes: growth of memory in megabytes per minute, for each stream that has it.
    """

    source: str
    streams: int
    curves: dict[str, list[Curve]]
    minutes: dict[str, Curve]
    trends: dict[str, Trend]
    drifts: dict[str, Drift]
    memory_slopes: list[float]


def merge_streams(source: str, streams: Sequence[StreamScores]) -> SourceTrends:
    """Return the trends of a source over its streams, of which there must be at least one."""
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
    return SourceTrends(
        unheard=EdgeCount.total(scores.unheard for scores in streams),
        skipped=EdgeCount.total(scores.skipped for scores in streams),
        repeated=EdgeCount.total(scores.repeated for scores in streams),
        planted=sum(scores.planted for scores in streams),
        found=sum(scores.found for scores in streams),
        words=sum(scores.words for scores in streams),
        confirmed=sum(scores.confirmed for scores in streams),
        source=source,
        streams=len(streams),
        curves=curves,
        minutes=minutes,
        trends={name: known for name, values in minutes.items() if (known := trend(values))},
        drifts={name: drift for name, each in curves.items() if (drift := _drift(each))},
        memory_slopes=[scores.memory_slope for scores in streams if scores.memory_slope is not None],
    )


class Halves(NamedTuple):
    """Means over minutes and streams.

    Attributes:
        mean: mean of all minutes.
        first: mean of the first half of the minutes.
        second: mean of the second half, which includes the middle minute.
    """

    mean: float
    first: float
    second: float


def halves(source: SourceTrends, name: str) -> Halves | None:
    """Return the means of a measure; None if one of the halves has no values."""
    curves = source.curves.get(name, [])
    middle = max(map(len, curves), default=0) // 2
    found = [
        _mean([value for curve in curves for value in curve[part]])
        for part in (slice(None), slice(middle), slice(middle, None))
    ]
    known = [value for value in found if value is not None]
    return Halves(*known) if len(known) == len(found) else None


class Difference(NamedTuple):
    """Paired difference between two sources, over the minutes that both have.

    Attributes:
        mean: mean difference.
        error: standard error of the mean, from the scatter of minutes; NaN for a single minute.
    """

    mean: float
    error: float


def difference(source: SourceTrends, other: SourceTrends, name: str) -> Difference | None:
    """Return a measure of ``source`` minus that of ``other``; None if they have no minute in common."""
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
    drifts = [found.drift for curve in curves if (found := trend(curve))]
    return Drift(float(np.mean(drifts)), max(drifts)) if drifts else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
