"""A module with its optimizers and the average of its weights, in one process or sharded over several."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import StreamCharError
from ..distributed.parallel import all_reduce_, average_, rank, world_size
from ..distributed.sharding import ParameterShard, Shardable, local_tensor, reshard
from .muon import Muon, matrices

#: Weight decay of matrices; biases, norms and other vectors have none.
WEIGHT_DECAY = 0.01


class TrainingError(StreamCharError, RuntimeError):
    """Training cannot start or continue; the message says why and what to do."""


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the training loop.

    Attributes:
        steps: total number of steps. The learning rate rises over the first ``warmup`` steps, stays constant,
            and falls to zero over the last third.
        lr: peak learning rate of AdamW.
        batch: examples per step in each process.
        matrix_lr: peak learning rate of Muon, which trains the weight matrices if it is above 0.
        warmup: steps over which the learning rate rises.
        ema: decay per step of the averaged weights.
        clip: largest norm of the gradient.
        seed: seed of all random numbers.
        save_seconds: seconds between checkpoints.
        log_steps: steps per entry of the log; an entry holds their means.
        shard: whether weights and optimizer state are sharded over the processes instead of replicated.
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
        """Return the factor of the learning rate at a step.

        Its curve is a trapezium, so a run can be extended along the flat part.
        """
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        fall = min(1.0, 3 * (self.steps - step) / self.steps)
        return min(rise, fall)


class Trainable:
    """A module with its optimizers and the exponential moving average (EMA) of its weights.

    A 16-bit module is trained through fp32 master weights, so that steps too small for 16 bits add up.
    Gradients are averaged over all processes.

    Source: master weights, arXiv 1710.03740, section 3.1. The average is d a + (1 - d) w with the decay
    d = min(ema, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage.

    Args:
        module: the module; its parameters that require a gradient are trained.
        config: learning rates, gradient clipping and averaging.
        lr_scale: factor on the learning rates of the config.
        betas: betas of AdamW.

    Raises:
        TrainingError: the config asks for sharding, but there is only one process or the module is not
            :class:`~streamchar.train.distributed.sharding.Shardable`.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoopConfig,
        lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.module, self.config = module, config
        # Dtypes of the module before sharding, which are those of a checkpoint.
        self._dtypes = {name: each.dtype for name, each in module.state_dict().items()}
        if config.shard:
            if not isinstance(module, Shardable):
                kind = type(module).__name__
                raise TrainingError(f"shard must be off for a {kind}, which is small; leave out --shard")
            if world_size() == 1:
                raise TrainingError(
                    "shard must be off in one process; start several: torchrun --nproc-per-node"
                )
            module.shard()
        named = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        self.names, self.parameters = [name for name, _ in named], [each for _, each in named]
        self.master = [
            local_tensor(each) if each.dtype == torch.float32 else each.detach().float()
            for each in self.parameters
        ]
        pairs = list(zip(self.parameters, self.master, strict=True))
        self._shards = {master: ParameterShard(parameter) for parameter, master in pairs}
        muon_ids = {id(each) for each in matrices(module)} if config.matrix_lr else set()
        by_muon = [master for parameter, master in pairs if id(parameter) in muon_ids]
        rest = [master for parameter, master in pairs if id(parameter) not in muon_ids]
        groups = [
            {"params": [each for each in rest if each.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [each for each in rest if each.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True), config.lr * lr_scale)
        ]
        if by_muon:
            muon = Muon(by_muon, config.matrix_lr, weight_decay=WEIGHT_DECAY, shards=self._shards)
            self.optimizers.append((muon, config.matrix_lr * lr_scale))
        self.ema = [each.detach().clone() for each in self.master]

    def update(self, loss: Tensor, step: int) -> float:
        """Backpropagate ``loss``, take an optimizer step, and return the gradient norm before clipping.

        Raises:
            TrainingError: the gradient is not finite; the weights are then unchanged.
        """
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.config.pace(step)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        reshard(self.module)
        for master, parameter in zip(self.master, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else local_tensor(parameter.grad).to(master.dtype)
        norm = self._average_and_clip()
        if not torch.isfinite(norm):
            raise TrainingError(
                f"gradients must be finite, got {float(norm)} at step {step}; lower the learning rate"
            )
        for optimizer, _ in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.master, self.parameters, strict=True):
                if parameter.dtype != master.dtype:
                    parameter.copy_(master)
        # The decay starts low: at step 10, a long average would consist mostly of the random initial weights.
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.ema, [each.detach() for each in self.master], 1 - decay)
        return float(norm)

    def _average_and_clip(self) -> Tensor:
        """Average the gradients that FSDP has not averaged, and clip the norm over all of them."""
        grads = [(each.grad, self._shards[each].sharded) for each in self.master if each.grad is not None]
        sharded = [grad for grad, is_sharded in grads if is_sharded]
        replicated = [grad for grad, is_sharded in grads if not is_sharded]
        average_(replicated)
        norm = nn.utils.get_total_norm(replicated)
        if sharded:
            norm = (norm**2 + all_reduce_(nn.utils.get_total_norm(sharded) ** 2)).sqrt()
        nn.utils.clip_grads_with_norm_(self.master, self.config.clip, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs; a collective call.

        The state is that of the whole module, sharded or not. If it is sharded, only process 0 gets the
        sharded tensors; in the other processes they are empty.
        """
        module = {
            name: self._whole(ParameterShard(value), local_tensor(value)).to(self._dtypes[name])
            for name, value in self.module.state_dict().items()
        }
        optimizers = [optimizer.state_dict() for optimizer, _ in self.optimizers]
        for (optimizer, _), saved in zip(self.optimizers, optimizers, strict=True):
            saved["state"] = _map_state(
                optimizer, saved["state"], lambda p, x: self._whole(self._shards[p], x)
            )
        whole = [
            [self._whole(self._shards[p], each) for p, each in zip(self.master, tensors, strict=True)]
            for tensors in ([each.detach() for each in self.master], self.ema)
        ]
        return {
            "module": module,
            "names": self.names,
            "wide": whole[0],
            "optimisers": optimizers,
            "ema": whole[1],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned, in any number of processes."""
        # Sharded parameters are trained ones and share storage with their master weights, restored below.
        kept = {name for name, value in self.module.state_dict().items() if not ParameterShard(value).sharded}
        self.module.load_state_dict(
            {name: state["module"][name] for name in kept}, strict=not self.config.shard
        )
        for tensors, saved in ((self.master, state["wide"]), (self.ema, state["ema"])):
            with torch.no_grad():
                for master, tensor, value in zip(self.master, tensors, saved, strict=True):
                    tensor.copy_(self._shards[master].local_rows(value))
        for (optimizer, _), saved in zip(self.optimizers, state["optimisers"], strict=True):
            own = _map_state(optimizer, saved["state"], lambda p, x: self._shards[p].local_rows(x))
            optimizer.load_state_dict({**saved, "state": own})

    def _whole(self, shard: ParameterShard, rows: Tensor) -> Tensor:
        whole = shard.gather(rows)
        # A single copy in host memory is enough; the device may not have room for it.
        return whole if not shard.sharded else whole.cpu() if rank() == 0 else whole.new_empty(0)


def _map_state(
    optimizer: torch.optim.Optimizer,
    state: dict[int, dict[str, Any]],
    change: Callable[[Tensor, Tensor], Tensor],
) -> dict[int, dict[str, Any]]:
    """Apply ``change(parameter, tensor)`` to every tensor of an optimizer's state that is not a scalar."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return {
        index: {
            name: change(parameters[index], value) if torch.is_tensor(value) and value.dim() else value
            for name, value in values.items()
        }
        for index, values in state.items()
    }
