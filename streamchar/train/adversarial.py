"""Losses between a network that makes something and discriminators that tell it from what is real."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loop import Trained


def hinge_real_made(real: list[list[Tensor]], made: list[list[Tensor]]) -> Tensor:
    """Return the discriminators' hinge loss: verdicts on real above 1, on made below -1.

    mean max(0, 1 - D(real)) + mean max(0, 1 + D(made)), a mean over discriminators.

    Args:
        real: features of every layer of each discriminator, verdicts last.
        made: the same of what was made.

    Source: the hinge loss of arXiv 1705.02894.
    """
    terms = [F.relu(1 - r[-1]).mean() + F.relu(1 + m[-1]).mean() for r, m in zip(real, made, strict=True)]
    return torch.stack(terms).mean()


def hinge_fooled(made: list[list[Tensor]]) -> Tensor:
    """Return the generator's loss, -mean D(made): verdicts on what it made as high as they go."""
    return torch.stack([-each[-1].mean() for each in made]).mean()


def feature_loss(real: list[list[Tensor]], made: list[list[Tensor]]) -> Tensor:
    """Return the mean distance of the discriminators' features, relative to their size on what is real.

    mean |D_l(made) - D_l(real)| / mean |D_l(real)|, a mean over layers l and discriminators.

    Source: EnCodec, arXiv 2210.13438, section 3.4.
    """
    terms = [
        (m - r.detach()).abs().mean() / r.detach().abs().mean().clamp(min=1e-4)
        for rs, ms in zip(real, made, strict=True)
        for r, m in zip(rs[:-1], ms[:-1], strict=True)
    ]
    return torch.stack(terms).mean()


def adversarial_losses(
    discriminators: nn.Module, trained: Trained, real: Tensor, made: Tensor, step: int
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Take one step of the discriminators; return what they then say of what was made.

    Args:
        discriminators: give the features of every layer of each of them, verdicts last.
        trained: trains them.
        real: what they are shown as real, [batch, ...] fp32.
        made: as made, the same shape.
        step: of the training.

    Returns:
        The generator's loss, that of features, both with gradients to ``made``, and figures for the log.

    Source: hinge loss and feature matching together as in MelGAN, arXiv 1910.06711.
    """
    device = real.device.type
    with torch.autocast(device, torch.bfloat16):
        judged = hinge_real_made(discriminators(real), discriminators(made.detach()))
    trained.update(judged, step)
    with torch.autocast(device, torch.bfloat16):
        with torch.no_grad():
            of_real = discriminators(real)
        of_made = discriminators(made)
        fooled, features = hinge_fooled(of_made), feature_loss(of_real, of_made)
    logged = {"judged": judged.item(), "fooled": fooled.item(), "features": features.item()}
    return fooled, features, logged
