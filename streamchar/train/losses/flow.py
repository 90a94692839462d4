"""Rectified flow: the training noise levels, and the straight path between data and noise.

x = (1 - sigma) z + sigma eps and v = eps - z, so z = x - sigma v, with data z, noise eps and velocity v.

Source: rectified flow, arXiv 2209.03003, section 2.1; the same path in flow matching, arXiv 2210.02747,
section 4.1, "optimal transport conditional VFs". In both papers, time runs in the opposite direction.
"""

import torch
from torch import Tensor

from ..distributed.parallel import rand

#: Shift of the training noise levels towards pure noise, where the levels of the few-step schedule are.
SHIFT = 3.0


def draw_sigmas(shape: tuple[int, ...], generator: torch.Generator, shift: float = SHIFT) -> Tensor:
    """Draw noise levels in (0, 1]: shift * t / (1 + (shift - 1) * t) with t uniform.

    One in eight is exactly 1, the level at which generation starts. The first dimension of ``shape`` is the
    rows of this process.

    Source: the shift, arXiv 2403.03206 section 5.3.2.
    """
    t = 1 - rand(shape, generator)
    sigmas = shift * t / (1 + (shift - 1) * t)
    return torch.where(rand(shape, generator) < 0.125, torch.ones_like(sigmas), sigmas)


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return ``(1 - sigma) clean + sigma noise``; ``sigma`` has the leading dimensions of ``clean``."""
    level = sigma.reshape(*sigma.shape, *(1,) * (clean.dim() - sigma.dim()))
    return (1 - level) * clean + level * noise


def to_clean(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean data that ``velocity`` predicts for ``x`` at noise level ``sigma``: x - sigma v."""
    return x - sigma.reshape(*sigma.shape, *(1,) * (x.dim() - sigma.dim())) * velocity
