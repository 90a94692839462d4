"""Draw what the stages logged."""

from pathlib import Path

from .loop import read_log

COLUMNS = 3
#: Logged beside the losses.
OTHERS = {"step", "seconds", "norm", "chunks"}


def draw_curves(directory: Path) -> Path:
    """Draw every logged figure of every stage over its steps; return the picture's file."""
    from matplotlib.figure import Figure

    logs = {file.parent.name: list(read_log(file.parent)) for file in sorted(directory.glob("*/log.jsonl"))}
    rows = -(-max(len(logs), 1) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * rows), layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (stage, entries) in zip(cells, logs.items()):
        for name in sorted({key for entry in entries for key in entry} - OTHERS):
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set_title(stage)
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.legend(fontsize=7)
    for axes in cells[len(logs) :]:
        axes.set_axis_off()
    target = directory / "curves.png"
    figure.savefig(target, dpi=80)
    return target
