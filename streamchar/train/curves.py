"""Plot the logs of the stages."""

from pathlib import Path

from .loop import TrainingError, read_log

COLUMNS = 3
#: Logged values that are not losses.
OTHERS = {"step", "seconds", "norm", "chunks"}


def draw_curves(directory: Path) -> Path:
    """Plot every logged value of every stage over its steps, in one picture.

    Args:
        directory: directory of all stages.

    Returns:
        The file of the picture, curves.png.

    Raises:
        TrainingError: no stage has logged anything.
    """
    logs = {file.parent.name: list(read_log(file.parent)) for file in sorted(directory.glob("*/log.jsonl"))}
    logs = {stage: entries for stage, entries in logs.items() if entries}
    if not logs:
        raise TrainingError(
            f"{directory} must hold the log of a stage, got none; run one first, such as: "
            "streamchar train vocoder"
        )
    from matplotlib.figure import Figure

    rows = -(-len(logs) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * rows), layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (stage, entries) in zip(cells, logs.items()):
        for name in sorted({key for entry in entries for key in entry} - OTHERS):
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set_title(stage)
        axes.set_xlabel("step")
        lowest = min((entry[key] for entry in entries for key in set(entry) - OTHERS), default=1.0)
        # The loss of a generator can be negative, which a logarithmic axis cannot show.
        axes.set_yscale("log" if lowest > 0 else "symlog")
        axes.legend(fontsize=7)
    for axes in cells[len(logs) :]:
        axes.set_axis_off()
    target = directory / "curves.png"
    figure.savefig(target, dpi=80)
    return target
