"""What streams of minutes did, over all streams of a source: curves and drift, as a table and as plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table

from .long import StreamScores, slope
from .report import IDENTITY, OFFSET, RTF
from .transcript import EdgeCount

#: To be reached: word errors of the last minute above the first's, words lost or repeated at an edge, drift
#: beside the ground truth's, megabytes a minute that are not growth.
WER_RISE, AT_EDGES, DRIFT, GROWTH = 0.03, 0.01, 2.0, 0.1
# Drifts of the ground truth below these are as good as none, and no measure for others'.
_LEAST_DRIFT = {"likeness": 0.002, "colour": 0.2, "sharpness": 0.01, "voice": 0.002}


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
    "skipped": Measure("words not heard, %", ".1f", 100),
    "repeated": Measure("words heard again, %", ".1f", 100),
    "place, seconds": Measure("place error, s", ".2f"),
    "place, words": Measure("place error, words", ".2f"),
    "pointer late by": Measure("pointer late by, s", "+.2f"),
    "lips late by": Measure("lips late by, frames", "+.1f"),
    "lip correlation": Measure("lip correlation", ".2f"),
    "identity": Measure("own identity nearest, % of frames", ".1f", 100),
    "likeness": Measure("likeness of the picture", ".3f"),
    "colour": Measure("face colour off by, of 255", ".2f"),
    "sharpness": Measure("face sharpness, of the reference's", ".2f"),
    "movement": Measure("movement across edges of chunks, of that within", ".2f"),
    "voice": Measure("likeness of the voice", ".3f"),
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
class SourceCourse:
    """All streams of one source.

    Attributes:
        source: its name.
        streams: how many.
        minutes: of each measure its mean over the streams, a value a minute.
        courses: of each measure that has values.
        skipped: summed over the streams.
        repeated: likewise.
        memory_slope: mean over the streams; None where it is not known.
    """

    source: str
    streams: int
    minutes: dict[str, list[float | None]]
    courses: dict[str, Course]
    skipped: EdgeCount
    repeated: EdgeCount
    memory_slope: float | None


def merge(source: str, streams: Sequence[StreamScores]) -> SourceCourse:
    """Return the scores of a source over its streams, at least one."""
    longest = max(len(values) for scores in streams for values in scores.minutes.values())
    minutes = {}
    for name in MEASURES:
        curves = [scores.minutes[name] for scores in streams if name in scores.minutes]
        if curves:
            minutes[name] = [_mean([curve[k] for curve in curves if k < len(curve)]) for k in range(longest)]
    courses = {name: found for name, values in minutes.items() if (found := course(values))}
    growth = _mean([scores.memory_slope for scores in streams])
    skipped, repeated = (
        EdgeCount(*np.sum([[count.near, count.away, count.edges] for count in counts], 0).tolist())
        for counts in ([s.skipped for s in streams], [s.repeated for s in streams])
    )
    return SourceCourse(source, len(streams), minutes, courses, skipped, repeated, growth)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def targets(source: SourceCourse, truth: SourceCourse) -> dict[str, bool]:
    """Return which targets a source reaches, beside the ground truth of the same texts."""
    errors, late = source.courses.get("word errors"), source.minutes["lips late by"]
    met = {
        f"word errors of the last minute within {WER_RISE * 100:.0f} points of the first": errors is not None
        and errors.last <= errors.first + WER_RISE,
        f"lips within {OFFSET} frame in every minute": all(
            value is not None and abs(value) <= OFFSET for value in late
        ),
        f"own identity nearest in {IDENTITY:.0%} of every minute": all(
            value is not None and value >= IDENTITY for value in source.minutes["identity"]
        ),
    }
    for kind, count in (("skipped", source.skipped), ("repeated", source.repeated)):
        met[f"words {kind} at {AT_EDGES:.0%} of chunk edges at most"] = count.excess <= AT_EDGES
    for name, least in _LEAST_DRIFT.items():
        own, floor = source.courses.get(name), truth.courses.get(name)
        met[f"drift of {MEASURES[name].label} at most {DRIFT:.0f} x ground truth's"] = (
            own is not None and floor is not None and own.drift <= DRIFT * max(floor.drift, least)
        )
    if "rtf" in source.courses:
        met[f"RTF below {RTF} in every minute"] = all(
            value is not None and value < RTF for value in source.minutes["rtf"]
        )
    if source.memory_slope is not None:
        met[f"memory grows by less than {GROWTH} MB a minute"] = source.memory_slope < GROWTH
    return met


def as_dict(sources: Sequence[SourceCourse]) -> list[dict[str, Any]]:
    """Return the scores as JSON values, with drifts, rates and targets spelled out; the truth is first."""
    found = []
    for source in sources:
        entry = asdict(source)
        for name, known in source.courses.items():
            entry["courses"][name]["drift"] = known.drift
        for kind, count in (("skipped", source.skipped), ("repeated", source.repeated)):
            entry[kind] |= {"excess": count.excess, "error": count.error}
        if source is not sources[0]:
            entry["targets"] = targets(source, sources[0])
        found.append(entry)
    return found


def table_lines(sources: Sequence[SourceCourse]) -> list[list[str]]:
    """Return the cells of the table: a head, then a line a measure, a column a source.

    A cell says first minute, last minute, slope a minute with its standard error, and the drift beside that
    of the first source.
    """
    lines = [["", *(source.source for source in sources)]]
    lines.append(["streams", *(str(source.streams) for source in sources)])
    for name, measure in MEASURES.items():
        cells = [_cell(source, sources[0], name) for source in sources]
        lines.append([measure.label, *cells])
    for label, counts in (
        ("skipped at an edge, % more", [source.skipped for source in sources]),
        ("repeated at an edge, % more", [source.repeated for source in sources]),
    ):
        lines.append([label, *(f"{100 * c.excess:+.1f} ± {100 * c.error:.1f}" for c in counts)])
    slopes = [source.memory_slope for source in sources]
    lines.append(["memory, MB a minute", *("-" if slope is None else f"{slope:+.2f}" for slope in slopes)])
    return lines


def _cell(source: SourceCourse, truth: SourceCourse, name: str) -> str:
    found, floor, measure = source.courses.get(name), truth.courses.get(name), MEASURES[name]
    if found is None:
        return "-"
    first, last = (format(value * measure.scale, measure.form) for value in (found.first, found.last))
    # A slope is small beside its values.
    decimals = int(measure.form[-2]) + 1
    rise, error = found.slope * measure.scale, found.error * measure.scale
    cell = f"{first} → {last} ({rise:+.{decimals}f} ± {error:.{decimals}f} a minute"
    if source is not truth and floor is not None and name in _LEAST_DRIFT:
        cell += f", drift {found.drift / max(floor.drift, _LEAST_DRIFT[name]):.1f} x"
    return cell + ")"


def markdown(sources: Sequence[SourceCourse]) -> str:
    """Return the table in Markdown."""
    lines = table_lines(sources)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def rich_table(sources: Sequence[SourceCourse]) -> Table:
    """Return the table for a terminal."""
    head, *lines = table_lines(sources)
    table = Table(*head, title="streamchar eval long", title_justify="left")
    for line in lines:
        table.add_row(*line)
    return table


def draw(sources: Sequence[SourceCourse], target: Path) -> None:
    """Draw the curves of all measures, a panel each, a line a source."""
    from matplotlib.figure import Figure

    columns = 3
    figure = Figure(figsize=(4 * columns, 2.3 * math.ceil(len(MEASURES) / columns)), layout="constrained")
    panels = figure.subplots(math.ceil(len(MEASURES) / columns), columns, squeeze=False).ravel()
    for axes, (name, measure) in zip(panels, MEASURES.items()):
        for index, source in enumerate(sources):
            values = np.asarray(source.minutes.get(name, []), np.float64) * measure.scale
            style = "k--" if index == 0 else "o-"
            axes.plot(_minutes(values), values, style, label=source.source, markersize=3, linewidth=1.2)
        axes.set_title(measure.label, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[len(MEASURES) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=7)
    figure.supxlabel("minute", fontsize=9)
    figure.savefig(target, dpi=110)


def _minutes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.arange(1, len(values) + 1)
