"""The training loop: resumable, seeded by step, with averaged weights and a log.

All random numbers of a step come from a generator seeded with (seed, step). A killed run that resumes from
its last checkpoint therefore continues as if it had not been killed; on a CPU, the results are equal to the
bit. Several processes (:mod:`streamchar.train.distributed.parallel`) take the same steps on parts of a larger
batch; process 0 logs and saves.
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

from .distributed.parallel import any_rank, barrier, mean_over_ranks, rank, world_size
from .files import read, write
from .optim.trainable import LoopConfig, Trainable, TrainingError

__all__ = [
    "LoopConfig",
    "Stage",
    "Trainable",
    "TrainingError",
    "finished_checkpoint",
    "load_averaged",
    "read_log",
    "run",
    "step_generator",
]


class Stage(ABC):
    """A stage of training.

    Attributes:
        name: name of the stage and of its folder.
        config: settings of the loop.
        trainables: the trained modules, by the names they have in a checkpoint.
        about: origin of the checkpoint: the digest of the corpus, sizes, and under "parents" the digests of
            the checkpoints that the stage starts from. A run resumes only if it is unchanged.
    """

    name: str

    def __init__(self, config: LoopConfig, about: dict[str, Any]) -> None:
        self.config, self.about = config, about
        self.trainables: dict[str, Trainable] = {}

    @abstractmethod
    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step and return the values to log.

        All random numbers must come from ``generator``. With several processes, draw the random numbers of
        rows with the functions of :mod:`streamchar.train.distributed.parallel`.
        """


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of a step."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def run(stage: Stage, directory: Path, minutes: float | None = None) -> int:
    """Train a stage until its last step or for a number of minutes; resumes from its checkpoint.

    SIGINT and SIGTERM end the run after the current step, with a checkpoint. With several processes, each
    calls this function with its own copy of the stage, and a signal to any of them ends them all.

    Args:
        stage: a newly built stage.
        directory: directory of all stages; the folder of this stage holds checkpoint.pt and log.jsonl.
        minutes: minutes after which to save and stop; None for no limit.

    Returns:
        The number of steps done so far.

    Raises:
        TrainingError: the checkpoint cannot be read, is of other data or sizes, or was trained with a setting
            that must not change when a run resumes, such as the learning rate; or a gradient is not finite.
    """
    folder = directory / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    step = _resume(stage, folder / "checkpoint.pt")
    first = rank() == 0
    if first:
        _truncate_log(folder / "log.jsonl", step)
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
            over, due = any_rank(
                bool(stop) or (minutes is not None and now - started > 60 * minutes),
                now - saved > stage.config.save_seconds,
            )
            last = over or step == stage.config.steps
            if count == stage.config.log_steps or last:
                # Not every step has to log every value.
                local_means = [sum(values) / len(values) for values in logged.values()]
                entry = dict(zip(logged, mean_over_ranks(local_means), strict=True))
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
    """Yield a list to which SIGINT and SIGTERM append themselves instead of ending the process."""
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


def finished_checkpoint(directory: Path, stage: str) -> dict[str, Any]:
    """Return the checkpoint of a stage that was trained to its last step; its tensors are memory-mapped.

    Raises:
        TrainingError: the checkpoint does not exist, cannot be read, or is of an unfinished run.
    """
    file = directory / stage / "checkpoint.pt"
    if not file.is_file():
        raise TrainingError(
            f"stage {stage} has not been trained: {file} does not exist; run: streamchar train {stage}"
        )
    state: dict[str, Any] = read(file, f"run: streamchar train {stage}", mmap=True)
    step, steps = state["step"], state["config"]["steps"]
    if step < steps:
        raise TrainingError(
            f"stage {stage} is not finished: {file} has {step} of {steps} steps; "
            f"run: streamchar train {stage}, with --steps {step} to finish it where it is"
        )
    return state


def load_averaged(directory: Path, stage: str, modules: dict[str, nn.Module]) -> None:
    """Load the averaged weights of a finished stage into modules.

    Args:
        directory: directory of all stages.
        stage: name of the stage.
        modules: modules of the same sizes as the trained ones, by their names in the checkpoint.

    Raises:
        TrainingError: see :func:`finished_checkpoint`; or the checkpoint lacks one of the modules.
    """
    state = finished_checkpoint(directory, stage)["trained"]
    for name, module in modules.items():
        if name not in state:
            raise TrainingError(f"checkpoint of {stage} must hold {name}, got {', '.join(state)}")
        module.load_state_dict(state[name]["module"])
        parameters = dict(module.named_parameters())
        for parameter, value in zip(state[name]["names"], state[name]["ema"], strict=True):
            parameters[parameter].data.copy_(value)


def read_log(folder: Path) -> Iterator[dict[str, float]]:
    """Yield the entries of a stage's log, oldest first, up to a line that a killed run left incomplete."""
    with (folder / "log.jsonl").open() as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return


def _resume(stage: Stage, file: Path) -> int:
    if not file.is_file():
        return 0
    # With sharding, each process reads only its own rows, so the file is mapped instead of read.
    state = read(file, f"run: streamchar train {stage.name}", mmap=stage.config.shard)
    if state["about"] != stage.about:
        raise TrainingError(
            f"{file} must be made of {stage.about}, got {state['about']}; "
            "remove it or train in another directory"
        )
    was, now = (
        _fixed_settings(state["config"], state["processes"]),
        _fixed_settings(asdict(stage.config), world_size()),
    )
    if was != now:
        changed = [name for name in now if was[name] != now[name]]
        wanted, got = (", ".join(f"{name} {each[name]}" for name in changed) for each in (was, now))
        raise TrainingError(
            f"{file} must be continued with {wanted}, got {got}; use the settings it was trained with, "
            "remove the file, or train in another directory"
        )
    for name, trainable in stage.trainables.items():
        trainable.load_state_dict(state["trained"][name])
    step = int(state["step"])
    if stage.config.steps <= step < state["config"]["steps"]:
        # The run was shortened and is now finished; later stages read this from the checkpoint.
        _save(stage, file, step)
    return step


def _fixed_settings(config: dict[str, Any], processes: int) -> dict[str, Any]:
    """Return the settings that must not change when a run resumes."""
    free = ("steps", "batch", "save_seconds", "log_steps", "shard")
    # The number of processes may change as long as the total batch stays the same.
    rows = {"batch (of all processes)": config["batch"] * processes}
    return {name: value for name, value in config.items() if name not in free} | rows


def _truncate_log(file: Path, step: int) -> None:
    """Remove the entries that a killed run logged after its last checkpoint; those steps are repeated."""
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
        "processes": world_size(),
        "about": stage.about,
        "trained": {name: trainable.state_dict() for name, trainable in stage.trainables.items()},
    }
    if rank() == 0:
        write(state, file)
    # No process may read the checkpoint before it is written.
    barrier()
