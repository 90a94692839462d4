"""Draw what the stages logged."""

from pathlib import Path

from .loop import read_log


def draw_curves(directory: Path) -> Path:
    """Draw every logged figure of every stage over its steps; return the picture's file."""
    from matplotlib.figure import Figure

    logs = {file.parent.name: list(read_log(file.parent)) for file in sorted(directory.glob("*/log.jsonl"))}
    figure = Figure(figsize=(4 * max(len(logs), 1), 3.5), layout="constrained")
    for axes, (stage, entries) in zip(figure.subplots(1, max(len(logs), 1), squeeze=False)[0], logs.items()):
        for name in sorted({key for entry in entries for key in entry} - {"step", "seconds", "norm"}):
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set_title(stage)
        axes.set_xlabel("step")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.legend(fontsize=7)
    target = directory / "curves.png"
    figure.savefig(target, dpi=110)
    return target
