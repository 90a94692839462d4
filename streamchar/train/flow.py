"""Rectified flow: noise levels to train on, and the straight line between data and noise.

x = (1 - sigma) z + sigma eps, velocity v = eps - z, so that z = x - sigma v.

Source: rectified flow, arXiv 2209.03003, section 2.1; the same path in flow matching, arXiv 2210.02747,
section 4.1, "optimal transport conditional VFs". In both, time runs the other way.
"""

import torch
from torch import Tensor

from .parallel import rand

#: Shift of the noise levels that are trained, towards noise: the few-step schedule lives there.
SHIFT = 3.0


def draw_sigmas(shape: tuple[int, ...], generator: torch.Generator, shift: float = SHIFT) -> Tensor:
    """Draw noise levels in (0, 1], even in t and warped to shift * t / (1 + (shift - 1) * t).

    One in eight is exactly 1, where generation starts (the warp: arXiv 2403.03206 section 5.3.2). The
    first dimension of ``shape`` is rows of this process.
    """
    t = 1 - rand(shape, generator)
    sigmas = shift * t / (1 + (shift - 1) * t)
    return torch.where(rand(shape, generator) < 0.125, torch.ones_like(sigmas), sigmas)


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return x at noise level ``sigma``, whose shape is the leading dimensions of ``clean``."""
    level = sigma.reshape(*sigma.shape, *(1,) * (clean.dim() - sigma.dim()))
    return (1 - level) * clean + level * noise


def to_clean(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean data that a velocity at noise level ``sigma`` points at."""
    return x - sigma.reshape(*sigma.shape, *(1,) * (x.dim() - sigma.dim())) * velocity
