"""Muon: momentum with orthogonalised updates, for the weight matrices of a network.

Every direction of an update has the same size, so faint directions, which carry detail, are learned as fast
as strong ones. Without it, the video VAE produced blurred pictures for hundreds of steps.

Source: Muon, arXiv 2502.16982; the quintic iteration and its coefficients, Jordan et al. 2024.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..distributed.sharding import ParameterShard

#: Coefficients of p(x) = a x + b x^3 + c x^5, whose iteration drives singular values in (0, 1] to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the trained weight matrices of a module: no embeddings, none with a single row or column."""
    return [
        parameter
        for owner in module.modules()
        if not isinstance(owner, nn.Embedding)
        for name, parameter in owner.named_parameters(recurse=False)
        if name == "weight"
        and parameter.dim() > 1
        and min(parameter.shape[:2]) > 1
        and parameter.requires_grad
    ]


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return a matrix with about the same singular vectors and singular values near 1, fp32."""
    a, b, c = COEFFICIENTS
    x: Tensor = (matrix / matrix.norm().clamp(min=1e-12)).bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum. Convolution weights are flattened to [outputs, rest].

    Args:
        parameters: fp32, two dimensions or more.
        lr: step size relative to weights of unit gain; 0.02 is usual.
        momentum: decay of the gradient's running average.
        weight_decay: decay per step, relative to ``lr``.
        shards: for parameters that are rows of a larger matrix, their :class:`ParameterShard`. The singular
            vectors are those of the whole matrix, so every process computes the whole update and applies its
            own rows.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        shards: Mapping[Tensor, ParameterShard] | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._shards = shards or {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
                shard = self._shards.get(parameter) or ParameterShard(parameter)
                whole = shard.gather(ahead)
                flat = whole.flatten(1)
                update = shard.local_rows(orthogonalise(flat).view(whole.shape))
                size = max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * size)
