"""The training loop: resumable, seeded by step, with an averaged copy of the weights and curves to look at.

All randomness of a step comes from a generator seeded with (seed, step), so a killed run that resumes from
its last checkpoint goes on exactly as if it had never been killed: on a CPU, to the bit. Several processes
(:mod:`.parallel`) take the same steps on parts of a larger batch; the first of them logs and saves.
"""

import hashlib
import json
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from .parallel import anywhere, means, meet, rank
from .trained import LoopConfig, Trained, TrainingError

__all__ = [
    "LoopConfig",
    "Stage",
    "Trained",
    "TrainingError",
    "averaged",
    "read_log",
    "run",
    "step_generator",
]


class Stage(ABC):
    """One stage of training.

    Attributes:
        name: of its folder.
        config: of the loop.
        trained: modules by name.
        about: what the checkpoint says of the data and sizes it depends on; a run resumes only on the same.
    """

    name: str

    def __init__(self, config: LoopConfig, about: dict[str, Any]) -> None:
        self.config, self.about = config, about
        self.trained: dict[str, Trained] = {}

    @abstractmethod
    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step, drawing only from ``generator``, and return what to log.

        Several processes draw the same numbers: those of a row with the functions of :mod:`.parallel`, which
        draw for all processes' rows and keep this one's.
        """


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step, on the CPU."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def run(stage: Stage, directory: Path, minutes: float | None = None) -> int:
    """Train a stage to its last step, or for so many minutes; resume where its checkpoint stands.

    Ctrl-C and a request to terminate end it after the step at hand, saved. Of several processes, each calls
    this with its own copy of the stage; what any of them is asked, all do.

    Args:
        stage: freshly built.
        directory: of all stages; this one's folder holds checkpoint.pt and log.jsonl.
        minutes: after which to save and stop; None for no limit.

    Returns:
        Steps done so far.

    Raises:
        TrainingError: the checkpoint was made with other data or sizes, or a gradient is not finite.
    """
    folder = directory / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    step = _resume(stage, folder / "checkpoint.pt")
    first = rank() == 0
    if first:
        _cut_log(folder / "log.jsonl", step)
    started = saved = time.monotonic()
    sums: dict[str, float] = {}
    count = 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, disable=not first) as progress,
        (folder / "log.jsonl" if first else Path(os.devnull)).open("a") as log,
        _stop_signals() as stop,
    ):
        bar = progress.add_task(stage.name, total=stage.config.steps, completed=step)
        while step < stage.config.steps:
            for name, value in stage.update(step, step_generator(stage.config.seed, step)).items():
                sums[name] = sums.get(name, 0.0) + value
            step, count = step + 1, count + 1
            now = time.monotonic()
            over, due = anywhere(
                bool(stop) or (minutes is not None and now - started > 60 * minutes),
                now - saved > stage.config.save_seconds,
            )
            last = over or step == stage.config.steps
            if count == stage.config.log_steps or last:
                entry = dict(zip(sums, means([value / count for value in sums.values()]), strict=True))
                text = " ".join(f"{name} {value:.4g}" for name, value in entry.items())
                progress.update(bar, completed=step, description=f"{stage.name} {step} {text}")
                entry = {"step": step, "seconds": round(now - started, 1), **entry}
                print(json.dumps(entry), file=log, flush=True)
                sums, count = {}, 0
            if last or due:
                _save(stage, folder / "checkpoint.pt", step)
                saved = time.monotonic()
            if over:
                break
    return step


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list that fills when the process is asked to end, so that it ends between two steps, saved."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda number, _: received.append(number)) for each in watched]
    try:
        yield received
    finally:
        for each, handler in zip(watched, before, strict=True):
            signal.signal(each, handler)


def averaged(directory: Path, stage: str, modules: dict[str, nn.Module]) -> None:
    """Load the averaged weights of a stage's checkpoint into modules built like those it trained.

    Raises:
        TrainingError: the stage has no checkpoint, or lacks one of the modules.
    """
    file = directory / stage / "checkpoint.pt"
    if not file.is_file():
        raise TrainingError(f"{stage} must have been trained, got no {file}; run: streamchar train {stage}")
    state = torch.load(file, map_location="cpu", weights_only=True)["trained"]
    for name, module in modules.items():
        if name not in state:
            raise TrainingError(f"{file} must hold {name}, got {', '.join(state)}")
        module.load_state_dict(state[name]["module"])
        parameters = dict(module.named_parameters())
        for parameter, value in zip(state[name]["names"], state[name]["ema"], strict=True):
            parameters[parameter].data.copy_(value)


def read_log(folder: Path) -> Iterable[dict[str, float]]:
    """Yield the entries of a stage's log, oldest first."""
    with (folder / "log.jsonl").open() as lines:
        yield from map(json.loads, lines)


def _resume(stage: Stage, file: Path) -> int:
    if not file.is_file():
        return 0
    # Of what is split, a process reads its own rows alone.
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=stage.config.shard)
    if state["about"] != stage.about:
        raise TrainingError(
            f"{file} must be of {stage.about}, got {state['about']}; remove it or train in another directory"
        )
    for name, trained in stage.trained.items():
        trained.load_state_dict(state["trained"][name])
    return int(state["step"])


def _cut_log(file: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: those steps are taken again."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            # The kill fell into the writing of a line.
            break
        if entry["step"] > step:
            break
        kept.append(line + "\n")
    partial = file.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, file)


def _save(stage: Stage, file: Path, step: int) -> None:
    state = {
        "step": step,
        "config": asdict(stage.config),
        "about": stage.about,
        "trained": {name: trained.state_dict() for name, trained in stage.trained.items()},
    }
    if rank() == 0:
        # A kill while writing must leave the checkpoint before whole.
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, file)
    # No process may look for the checkpoint before it is there.
    meet()
