"""What streams of minutes did, over all streams of a source: a table and plots."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .long_course import MEASURES, SourceCourse, difference, halves
from .long_targets import beside_truth, drift_beside, targets
from .transcript import EdgeCount


def as_dict(sources: Sequence[SourceCourse]) -> list[dict[str, Any]]:
    """Return the scores as JSON values, with drifts, rates and targets spelled out; the truth is first."""
    found = []
    for source in sources:
        entry = asdict(source)
        for kind in ("unheard", "skipped", "repeated"):
            count: EdgeCount = getattr(source, kind)
            entry[kind] |= {"rate": count.rate, "rate_error": count.rate_error}
            entry[kind] |= {"excess": count.excess, "error": count.error}
        if source is not sources[0]:
            entry["targets"] = targets(source, sources)
        found.append(entry)
    return found


def table_lines(sources: Sequence[SourceCourse]) -> list[list[str]]:
    """Return the cells of the table: a head, then a line a measure, a column a source.

    A cell says first minute, last minute and slope a minute with its standard error, of the mean over the
    streams; then how far the last minute is from the first, as the mean and the worst of the streams, and
    that mean beside the first source's.
    """
    lines = [["", *(source.source for source in sources)]]
    lines.append(["streams", *(str(source.streams) for source in sources)])
    for name, measure in MEASURES.items():
        cells = [_cell(source, sources[0], name) for source in sources]
        lines.append([measure.label, *cells])
    lines.append(["words heard right and found, %", *(_share(s.confirmed, s.words) for s in sources)])
    lines.append(["planted words found missing, %", *(_share(s.found, s.planted) for s in sources)])
    for kind, label in (("unheard", "not heard"), ("skipped", "skipped"), ("repeated", "repeated")):
        counts = [getattr(source, kind) for source in sources]
        lines.append([f"{label} near an edge, % of edges", *(_near(count, counts[0]) for count in counts)])
        lines.append(
            [f"{label} at an edge, % more", *(f"{100 * c.excess:+.1f} ± {100 * c.error:.1f}" for c in counts)]
        )
    lines.append(["memory, MB a minute", *(_growth(source.memory_slopes) for source in sources)])
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}".rstrip("%") if whole else "-"


def _near(count: EdgeCount, truth: EdgeCount) -> str:
    cell = f"{100 * count.rate:.1f} ± {100 * count.rate_error:.1f}"
    if count is not truth:
        more, error = beside_truth(count, truth)
        cell += f" (beside ground truth {100 * more:+.1f} ± {100 * error:.1f})"
    return cell


def _growth(slopes: Sequence[float]) -> str:
    return f"{np.mean(slopes):+.2f}{_worst(max(slopes), '+.2f', len(slopes))}" if slopes else "-"


def _worst(value: float, form: str, streams: int) -> str:
    """Say the worst of several streams; of one alone it says nothing new."""
    return f", worst {value:{form}}" if streams > 1 else ""


def _cell(source: SourceCourse, truth: SourceCourse, name: str) -> str:
    found, measure = source.courses.get(name), MEASURES[name]
    if found is None:
        return "-"
    first, last = (format(value * measure.scale, measure.form) for value in (found.first, found.last))
    # A slope is small beside its values.
    decimals = int(measure.form[-2]) + 1
    rise, error = found.slope * measure.scale, found.error * measure.scale
    cell = f"{first} → {last} ({rise:+.{decimals}f} ± {error:.{decimals}f} a minute"
    drift = source.drifts[name]
    if source.streams > 1:
        form = measure.form.lstrip("+")
        mean = format(drift.mean * measure.scale, form)
        cell += f", drift {mean}{_worst(drift.worst * measure.scale, form, source.streams)}"
    times = drift_beside(source, truth, name)
    if source is not truth and times is not None:
        cell += f", drift {times:.1f} x ground truth's"
    return cell + ")"


def comparison_lines(sources: Sequence[SourceCourse], base: SourceCourse) -> list[list[str]]:
    """Return the cells of a table of means: a head, then a line a measure, a column a source.

    A cell says the mean over all minutes of all streams, and over the first and the second half of the
    minutes; then how far it is above the base's, minute beside minute of every stream, with the standard
    error.
    """
    lines = [["", *(source.source for source in sources)]]
    for name, measure in MEASURES.items():
        lines.append([measure.label, *(_mean_cell(source, base, name) for source in sources)])
    return lines


def _mean_cell(source: SourceCourse, base: SourceCourse, name: str) -> str:
    found, measure = halves(source, name), MEASURES[name]
    if found is None:
        return "-"
    mean, first, second = (format(value * measure.scale, measure.form) for value in found)
    cell = f"{mean} ({first} → {second}"
    apart = difference(source, base, name)
    if source is not base and apart is not None:
        form = measure.form.lstrip("+")
        more, error = apart.mean * measure.scale, apart.error * measure.scale
        cell += f"; {more:+{form}} ± {error:{form}}"
    return cell + ")"


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
