"""A module with its optimiser and averaged copy, in one process or split over several."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .muon import Muon, matrices
from .parallel import average_, rank, total_, world
from .sharding import Part, Shardable, local, release

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
        batch: examples of a step, in each process.
        warmup: steps.
        ema: decay of the averaged copy, a step.
        clip: norm that gradients are cut to.
        seed: of everything random.
        save_seconds: between checkpoints.
        log_steps: that an entry of the log is the mean of.
        shard: whether weights and optimiser state are split over the processes, or the same in all of them.
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
    log_steps: int = 50
    shard: bool = False

    def pace(self, step: int) -> float:
        """Return the share of the learning rate at a step: a trapezium, its flat part easy to extend."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        fall = min(1.0, 3 * (self.steps - step) / self.steps)
        return min(rise, fall)


class Trained:
    """A module with its optimiser and its averaged copy.

    A module in 16 bits is trained through a copy of its weights in fp32, in which steps too small for it add
    up. Gradients are averaged over all processes.

    Source: fp32 copies, arXiv 1710.03740, section 3.1; the average is d a + (1 - d) w with the decay
    d = min(ema, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage has it.

    Args:
        module: its parameters that require a gradient are trained.
        config: learning rate, clipping and averaging.
        lr_scale: of this module against the config's learning rate.
        betas: of AdamW.

    Raises:
        TrainingError: the config splits weights where there is one process, or the module does not say how.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoopConfig,
        lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.module, self.config = module, config
        #: Of the module where it is whole, as a checkpoint holds it.
        self._dtypes = {name: each.dtype for name, each in module.state_dict().items()}
        if config.shard:
            if not isinstance(module, Shardable):
                kind = type(module).__name__
                raise TrainingError(f"shard must be off for a {kind}, which is small; leave out --shard")
            if world() == 1:
                raise TrainingError(
                    "shard must be off in one process; start several: torchrun --nproc-per-node"
                )
            module.shard()
        named = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        self.names, self.parameters = [name for name, _ in named], [each for _, each in named]
        self.wide = [
            local(each) if each.dtype == torch.float32 else each.detach().float() for each in self.parameters
        ]
        pairs = list(zip(self.parameters, self.wide, strict=True))
        self._parts = {wide: Part(narrow) for narrow, wide in pairs}
        in_matrices = {id(each) for each in matrices(module)} if config.matrix_lr else set()
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
            muon = Muon(by_muon, config.matrix_lr, weight_decay=WEIGHT_DECAY, parts=self._parts)
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
        release(self.module)
        for wide, parameter in zip(self.wide, self.parameters, strict=True):
            wide.grad = None if parameter.grad is None else local(parameter.grad).to(wide.dtype)
        norm = self._average_and_clip()
        if not torch.isfinite(norm):
            raise TrainingError(f"gradients must be finite, got {float(norm)} at step {step}; lower the rate")
        for optimiser, _ in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            for wide, parameter in zip(self.wide, self.parameters, strict=True):
                if parameter.dtype != wide.dtype:
                    parameter.copy_(wide)
        # A short memory first: an average over a thousand steps of ten is mostly the random start.
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.ema, [each.detach() for each in self.wide], 1 - decay)
        return float(norm)

    def _average_and_clip(self) -> Tensor:
        """Average gradients that the module has not averaged itself, and cut them all to the norm allowed."""
        grads = [(each.grad, self._parts[each].split) for each in self.wide if each.grad is not None]
        split = [grad for grad, in_parts in grads if in_parts]
        everywhere = [grad for grad, in_parts in grads if not in_parts]
        average_(everywhere)
        norm = nn.utils.get_total_norm(everywhere)
        if split:
            norm = (norm**2 + total_(nn.utils.get_total_norm(split) ** 2)).sqrt()
        nn.utils.clip_grads_with_norm_(self.wide, self.config.clip, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, of the whole module.

        All processes call it together. Where the module is split, process 0 alone gets its weights.
        """
        module = {
            name: self._whole(Part(value), local(value)).to(self._dtypes[name])
            for name, value in self.module.state_dict().items()
        }
        optimisers = [optimiser.state_dict() for optimiser, _ in self.optimisers]
        for (optimiser, _), saved in zip(self.optimisers, optimisers, strict=True):
            saved["state"] = _each_tensor(
                optimiser, saved["state"], lambda p, x: self._whole(self._parts[p], x)
            )
        whole = [
            [self._whole(self._parts[wide], each) for wide, each in zip(self.wide, tensors, strict=True)]
            for tensors in ([each.detach() for each in self.wide], self.ema)
        ]
        return {
            "module": module,
            "names": self.names,
            "wide": whole[0],
            "optimisers": optimisers,
            "ema": whole[1],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was, in the same number of processes or in another."""
        # Parameters that are split are trained ones, which follow from their fp32 copies.
        kept = {name for name, value in self.module.state_dict().items() if not Part(value).split}
        self.module.load_state_dict(
            {name: state["module"][name] for name in kept}, strict=not self.config.shard
        )
        for tensors, saved in ((self.wide, state["wide"]), (self.ema, state["ema"])):
            with torch.no_grad():
                for wide, tensor, value in zip(self.wide, tensors, saved, strict=True):
                    tensor.copy_(self._parts[wide].take(value))
        for (optimiser, _), saved in zip(self.optimisers, state["optimisers"], strict=True):
            own = _each_tensor(optimiser, saved["state"], lambda p, x: self._parts[p].take(x))
            optimiser.load_state_dict({**saved, "state": own})

    def _whole(self, part: Part, rows: Tensor) -> Tensor:
        whole = part.gather(rows)
        # One copy is enough, and on the host: the device may have no room for it.
        return whole if not part.split else whole.cpu() if rank() == 0 else whole.new_empty(0)


def _each_tensor(
    optimiser: torch.optim.Optimizer,
    state: dict[int, dict[str, Any]],
    change: Callable[[Tensor, Tensor], Tensor],
) -> dict[int, dict[str, Any]]:
    """Change what an optimiser's state holds for each element of its parameters, given as first argument."""
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    return {
        index: {
            name: change(parameters[index], value) if torch.is_tensor(value) and value.dim() else value
            for name, value in values.items()
        }
        for index, values in state.items()
    }
