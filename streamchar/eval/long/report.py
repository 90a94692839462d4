"""Long evaluations as JSON, as tables and as plots."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.word_counts import EdgeCount
from .measures import MEASURES, Measure
from .targets import rate_difference, relative_drift, targets
from .trend import SourceTrends, Trend, difference, halves


def as_dict(sources: Sequence[SourceTrends]) -> list[dict[str, Any]]:
    """Return the scores as JSON values, with rates and targets added.

    Args:
        sources: ground truth first.
    """
    entries = []
    for source in sources:
        entry: dict[str, Any] = {"source": source.source, "streams": source.streams} | asdict(source)
        # The name of this key in earlier reports.
        entry["courses"] = entry.pop("trends")
        for kind in ("unheard", "skipped", "repeated"):
            count: EdgeCount = getattr(source, kind)
            entry[kind] |= {"rate": count.rate, "rate_error": count.rate_error}
            entry[kind] |= {"excess": count.excess, "error": count.excess_error}
        if source is not sources[0]:
            entry["targets"] = targets(source, sources)
        entries.append(entry)
    return entries


def table_rows(sources: Sequence[SourceTrends]) -> list[list[str]]:
    """Return the cells of the table: a header, then one row per measure; one column per source.

    A cell contains first minute, last minute, and the slope per minute with its standard error, for the mean
    over the streams. Then follows the drift, as the mean and the worst of the streams, and the mean relative
    to the first source's.
    """
    truth = sources[0]
    rows = [["", *(source.source for source in sources)]]
    rows.append(["streams", *(str(source.streams) for source in sources)])
    for name, measure in MEASURES.items():
        rows.append([measure.label, *(_trend_cell(source, truth, name) for source in sources)])
    rows.append(["words heard right and aligned, %", *(_percent(s.confirmed, s.words) for s in sources)])
    rows.append(["planted words found missing, %", *(_percent(s.found, s.planted) for s in sources)])
    for kind, label in (
        ("unheard", "words not recognised"),
        ("skipped", "words skipped"),
        ("repeated", "words repeated"),
    ):
        counts = [getattr(source, kind) for source in sources]
        rows.append([f"{label} near an edge, % of edges", *(_rate_cell(each, counts[0]) for each in counts)])
        rows.append([f"{label}, near minus away, % of edges", *(_excess_cell(each) for each in counts)])
    rows.append(["memory growth, MB per minute", *(_growth_cell(s.memory_slopes) for s in sources)])
    return rows


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _rate_cell(count: EdgeCount, truth: EdgeCount) -> str:
    cell = f"{100 * count.rate:.1f} ± {100 * count.rate_error:.1f}"
    if count is not truth:
        more, error = rate_difference(count, truth)
        cell += f" (minus ground truth's: {100 * more:+.1f} ± {100 * error:.1f})"
    return cell


def _excess_cell(count: EdgeCount) -> str:
    return f"{100 * count.excess:+.1f} ± {100 * count.excess_error:.1f}"


def _growth_cell(slopes: Sequence[float]) -> str:
    if not slopes:
        return "-"
    worst = f", worst {max(slopes):+.2f}" if len(slopes) > 1 else ""
    return f"{np.mean(slopes):+.2f}{worst}"


def _trend_cell(source: SourceTrends, truth: SourceTrends, name: str) -> str:
    found, measure = source.trends.get(name), MEASURES[name]
    if found is None:
        return "-"
    cell = f"{measure.text(found.first)} → {measure.text(found.last)} ({_slope(measure, found)}"
    drift = source.drifts[name]
    if source.streams > 1:
        form = measure.unsigned
        cell += f", drift {measure.text(drift.mean, form)}, worst {measure.text(drift.worst, form)}"
    times = relative_drift(source, truth, name)
    if source is not truth and times is not None:
        cell += f", drift {times:.1f} x ground truth's"
    return cell + ")"


def _slope(measure: Measure, found: Trend) -> str:
    # Slopes are small compared with the values.
    decimals = measure.decimals + 1
    slope = measure.text(found.slope, f"+.{decimals}f")
    return f"{slope} ± {measure.text(found.error, f'.{decimals}f')} per minute"


def comparison_rows(sources: Sequence[SourceTrends], base: SourceTrends) -> list[list[str]]:
    """Return the cells of a table of means: a header, then one row per measure; one column per source.

    A cell contains the mean over all minutes of all streams and the means of the first and the second half of
    the minutes. Then follows the mean difference from the base in corresponding minutes, with its standard
    error.
    """
    rows = [["", *(source.source for source in sources)]]
    for name, measure in MEASURES.items():
        rows.append([measure.label, *(_mean_cell(source, base, name) for source in sources)])
    return rows


def _mean_cell(source: SourceTrends, base: SourceTrends, name: str) -> str:
    found, measure = halves(source, name), MEASURES[name]
    if found is None:
        return "-"
    mean, first, second = map(measure.text, found)
    cell = f"{mean} ({first} → {second}"
    paired = difference(source, base, name)
    if source is not base and paired is not None:
        form = measure.unsigned
        cell += f"; {measure.text(paired.mean, '+' + form)} ± {measure.text(paired.error, form)}"
    return cell + ")"


def draw(sources: Sequence[SourceTrends], target: Path) -> None:
    """Plot the curves of all measures to a file, one panel per measure and one line per source."""
    from matplotlib.figure import Figure

    columns = 3
    rows = math.ceil(len(MEASURES) / columns)
    figure = Figure(figsize=(4 * columns, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, measure) in zip(panels, MEASURES.items()):
        for index, source in enumerate(sources):
            values = np.asarray(source.minutes.get(name, []), np.float64) * measure.scale
            style = "k--" if index == 0 else "o-"
            minutes = np.arange(1, len(values) + 1)
            axes.plot(minutes, values, style, label=source.source, markersize=3, linewidth=1.2)
        axes.set_title(measure.label, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[len(MEASURES) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=7)
    figure.supxlabel("minute", fontsize=9)
    figure.savefig(target, dpi=110)
