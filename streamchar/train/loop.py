"""The training loop: resumable, seeded by step, with an averaged copy of the weights and curves to look at.

All randomness of a step comes from a generator seeded with (seed, step), so a killed run that resumes from
its last checkpoint goes on exactly as if it had never been killed: on a CPU, to the bit.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from .muon import Muon, matrices

#: Weights pulled to zero a little; biases, norms and other vectors are left alone.
WEIGHT_DECAY = 0.01


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: in all; the learning rate rises over the first ``warmup``, stays, and falls to zero over the
            last third.
        lr: learning rate at its highest, of AdamW.
        matrix_lr: the same of Muon, which trains matrices where it is above 0.
        batch: examples of a step.
        warmup: steps.
        ema: decay of the averaged copy, a step.
        clip: norm that gradients are cut to.
        seed: of everything random.
        save_seconds: between checkpoints.
    """

    steps: int
    lr: float
    batch: int
    matrix_lr: float = 0.0
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_seconds: float = 120.0

    def pace(self, step: int) -> float:
        """Return the share of the learning rate at a step: a trapezium, its flat part easy to extend."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        fall = min(1.0, 3 * (self.steps - step) / self.steps)
        return min(rise, fall)


class Trained:
    """A module with its optimiser and its averaged copy.

    A module in 16 bits is trained through a copy of its weights in fp32, in which steps too small for it add
    up.

    Args:
        module: its parameters that require a gradient are trained.
        config: learning rate, clipping and averaging.
        lr_scale: of this module against the config's learning rate.
        betas: of AdamW.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoopConfig,
        lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.module, self.config = module, config
        named = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        self.names, self.parameters = [name for name, _ in named], [each for _, each in named]
        self.wide = [
            each if each.dtype == torch.float32 else each.detach().float() for each in self.parameters
        ]
        in_matrices = {id(each) for each in matrices(module)} if config.matrix_lr else set()
        pairs = list(zip(self.parameters, self.wide, strict=True))
        by_muon = [wide for narrow, wide in pairs if id(narrow) in in_matrices]
        rest = [wide for narrow, wide in pairs if id(narrow) not in in_matrices]
        groups = [
            {"params": [each for each in rest if each.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [each for each in rest if each.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimisers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True), config.lr * lr_scale)
        ]
        if by_muon:
            muon = Muon(by_muon, config.matrix_lr, weight_decay=WEIGHT_DECAY)
            self.optimisers.append((muon, config.matrix_lr * lr_scale))
        self.ema = [each.detach().clone() for each in self.wide]

    def update(self, loss: Tensor, step: int) -> float:
        """Take an optimiser step down ``loss`` and return the norm of the gradient."""
        for optimiser, rate in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * self.config.pace(step)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        for wide, parameter in zip(self.wide, self.parameters, strict=True):
            wide.grad = None if parameter.grad is None else parameter.grad.to(wide.dtype)
        norm = nn.utils.clip_grad_norm_(self.wide, self.config.clip)
        if not torch.isfinite(norm):
            raise TrainingError(f"gradients must be finite, got {float(norm)} at step {step}; lower the rate")
        for optimiser, _ in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            for wide, parameter in zip(self.wide, self.parameters, strict=True):
                if wide is not parameter:
                    parameter.copy_(wide)
        # A short memory first: an average over a thousand steps of ten is mostly the random start.
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.ema, [each.detach() for each in self.wide], 1 - decay)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "module": self.module.state_dict(),
            "names": self.names,
            "wide": [each.detach() for each in self.wide],
            "optimisers": [optimiser.state_dict() for optimiser, _ in self.optimisers],
            "ema": self.ema,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was."""
        self.module.load_state_dict(state["module"])
        with torch.no_grad():
            for wide, value in zip(self.wide, state["wide"], strict=True):
                wide.copy_(value)
        for (optimiser, _), saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for average, value in zip(self.ema, state["ema"], strict=True):
            average.copy_(value)


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
        """Take one step, drawing only from ``generator``, and return what to log."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step, on the CPU."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def run(stage: Stage, directory: Path, minutes: float | None = None) -> int:
    """Train a stage to its last step, or for so many minutes; resume where its checkpoint stands.

    Ctrl-C and a request to terminate end it after the step at hand, saved.

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
    _cut_log(folder / "log.jsonl", step)
    started = saved = time.monotonic()
    sums: dict[str, float] = {}
    count = 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with (
        Progress(*columns) as progress,
        (folder / "log.jsonl").open("a") as log,
        _stop_signals() as stop,
    ):
        bar = progress.add_task(stage.name, total=stage.config.steps, completed=step)
        while step < stage.config.steps and not stop:
            for name, value in stage.update(step, step_generator(stage.config.seed, step)).items():
                sums[name] = sums.get(name, 0.0) + value
            step, count = step + 1, count + 1
            now = time.monotonic()
            over = bool(stop) or (minutes is not None and now - started > 60 * minutes)
            last = over or step == stage.config.steps
            if count == 50 or last:
                entry = {name: value / count for name, value in sums.items()}
                text = " ".join(f"{name} {value:.4g}" for name, value in entry.items())
                progress.update(bar, completed=step, description=f"{stage.name} {step} {text}")
                entry = {"step": step, "seconds": round(now - started, 1), **entry}
                print(json.dumps(entry), file=log, flush=True)
                sums, count = {}, 0
            if last or now - saved > stage.config.save_seconds:
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
    state = torch.load(file, map_location="cpu", weights_only=True)
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
    # A kill while writing must leave the checkpoint before whole.
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)
