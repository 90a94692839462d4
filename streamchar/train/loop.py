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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from .files import read, write
from .parallel import anywhere, means, meet, rank, world
from .trained import LoopConfig, Trained, TrainingError

__all__ = [
    "LoopConfig",
    "Stage",
    "Trained",
    "TrainingError",
    "averaged",
    "finished",
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
        about: what the checkpoint says it was made of: the corpus's digest, sizes, and under "parents" the
            digests of the checkpoints it was built from; a run resumes only on the same.
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
        TrainingError: the checkpoint is not whole, was made of other data or sizes, or with other settings
            than ``steps``; or a gradient is not finite.
    """
    folder = directory / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    step = _resume(stage, folder / "checkpoint.pt")
    first = rank() == 0
    if first:
        _cut_log(folder / "log.jsonl", step)
    started = saved = time.monotonic()
    logged: dict[str, list[float]] = {}
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
                logged.setdefault(name, []).append(value)
            step, count = step + 1, count + 1
            now = time.monotonic()
            over, due = anywhere(
                bool(stop) or (minutes is not None and now - started > 60 * minutes),
                now - saved > stage.config.save_seconds,
            )
            last = over or step == stage.config.steps
            if count == stage.config.log_steps or last:
                # A figure may come in some of these steps alone.
                each = [sum(values) / len(values) for values in logged.values()]
                entry = dict(zip(logged, means(each), strict=True))
                text = " ".join(f"{name} {value:.4g}" for name, value in entry.items())
                progress.update(bar, completed=step, description=f"{stage.name} {step} {text}")
                entry = {"step": step, "seconds": round(now - started, 1), **entry}
                print(json.dumps(entry), file=log, flush=True)
                logged, count = {}, 0
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


def finished(directory: Path, stage: str) -> dict[str, Any]:
    """Return the checkpoint of a stage that was trained to its last step, its tensors not yet read.

    Raises:
        TrainingError: there is none, it is not whole, or steps are missing.
    """
    file = directory / stage / "checkpoint.pt"
    if not file.is_file():
        raise TrainingError(f"{stage} must have been trained, got no {file}; run: streamchar train {stage}")
    state: dict[str, Any] = read(file, f"run: streamchar train {stage}", mmap=True)
    step, steps = state["step"], state["config"]["steps"]
    if step < steps:
        raise TrainingError(
            f"{stage} must have been trained to its end, got {step} of {steps} steps in {file}; "
            f"run: streamchar train {stage}, with --steps {step} to leave it at that"
        )
    return state


def averaged(directory: Path, stage: str, modules: dict[str, nn.Module]) -> None:
    """Load the averaged weights of a finished stage into modules built like those it trained.

    Raises:
        TrainingError: as :func:`finished`, or the checkpoint lacks one of the modules.
    """
    state = finished(directory, stage)["trained"]
    for name, module in modules.items():
        if name not in state:
            raise TrainingError(f"checkpoint of {stage} must hold {name}, got {', '.join(state)}")
        module.load_state_dict(state[name]["module"])
        parameters = dict(module.named_parameters())
        for parameter, value in zip(state[name]["names"], state[name]["ema"], strict=True):
            parameters[parameter].data.copy_(value)


def read_log(folder: Path) -> Iterator[dict[str, float]]:
    """Yield the entries of a stage's log, oldest first, up to a line that a kill left half written."""
    with (folder / "log.jsonl").open() as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return


def _resume(stage: Stage, file: Path) -> int:
    if not file.is_file():
        return 0
    # Of what is split, a process reads its own rows alone.
    state = read(file, f"run: streamchar train {stage.name}", mmap=stage.config.shard)
    if state["about"] != stage.about:
        raise TrainingError(
            f"{file} must be of {stage.about}, got {state['about']}; remove it or train in another directory"
        )
    was, now = _recipe(state["config"], state["processes"]), _recipe(asdict(stage.config), world())
    if was != now:
        changed = [name for name in now if was[name] != now[name]]
        wanted, got = (", ".join(f"{name} {each[name]}" for name in changed) for each in (was, now))
        raise TrainingError(
            f"{file} must go on with {wanted}, got {got}; leave it as it was, remove the file or train in "
            "another directory"
        )
    for name, trained in stage.trained.items():
        trained.load_state_dict(state["trained"][name])
    step = int(state["step"])
    if stage.config.steps <= step < state["config"]["steps"]:
        # It was to be longer and now ends here: the stages after it must see that it has.
        _save(stage, file, step)
    return step


def _recipe(config: dict[str, Any], processes: int) -> dict[str, Any]:
    """Return those settings of a run that each of its steps depends on."""
    free = ("steps", "batch", "save_seconds", "log_steps", "shard")
    # Several processes share the rows of a step, and checkpoints serve any number of them.
    rows = {"batch (of all processes)": config["batch"] * processes}
    return {name: value for name, value in config.items() if name not in free} | rows


def _cut_log(file: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: those steps are taken again."""
    if not file.is_file():
        return
    kept = [json.dumps(entry) + "\n" for entry in read_log(file.parent) if entry["step"] <= step]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, file)


def _save(stage: Stage, file: Path, step: int) -> None:
    state = {
        "step": step,
        "config": asdict(stage.config),
        "processes": world(),
        "about": stage.about,
        "trained": {name: trained.state_dict() for name, trained in stage.trained.items()},
    }
    if rank() == 0:
        write(state, file)
    # No process may look for the checkpoint before it is there.
    meet()
