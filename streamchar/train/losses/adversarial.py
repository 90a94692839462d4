"""Adversarial losses of a generator and its discriminators."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..loop import Trainable


def discriminator_loss(real: list[list[Tensor]], made: list[list[Tensor]]) -> Tensor:
    """Return the discriminators' hinge loss: logits above 1 on real samples, below -1 on generated ones.

    mean max(0, 1 - D(real)) + mean max(0, 1 + D(made)), averaged over discriminators.

    Args:
        real: per discriminator, the features of every layer for real samples, the logits last.
        made: the same for generated samples.

    Source: the hinge loss of arXiv 1705.02894.
    """
    terms = [F.relu(1 - r[-1]).mean() + F.relu(1 + m[-1]).mean() for r, m in zip(real, made, strict=True)]
    return torch.stack(terms).mean()


def generator_loss(made: list[list[Tensor]]) -> Tensor:
    """Return the hinge loss of the generator, -mean D(made), averaged over discriminators.

    Args:
        made: per discriminator, the features of every layer for generated samples, the logits last.
    """
    return torch.stack([-each[-1].mean() for each in made]).mean()


def feature_loss(real: list[list[Tensor]], made: list[list[Tensor]]) -> Tensor:
    """Return the feature-matching loss: the relative distance of the discriminators' features.

    mean |D_l(made) - D_l(real)| / mean |D_l(real)|, averaged over layers l and discriminators.

    Args:
        real: per discriminator, the features of every layer for real samples, the logits last.
        made: the same for generated samples.

    Source: EnCodec, arXiv 2210.13438, section 3.4.
    """
    terms = [
        (m - r.detach()).abs().mean() / r.detach().abs().mean().clamp(min=1e-4)
        for rs, ms in zip(real, made, strict=True)
        for r, m in zip(rs[:-1], ms[:-1], strict=True)
    ]
    return torch.stack(terms).mean()


def adversarial_losses(
    discriminators: nn.Module, trainable: Trainable, real: Tensor, made: Tensor, step: int
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Train the discriminators for one step and return the generator's losses against them.

    Args:
        discriminators: return, per discriminator, the features of every layer, the logits last.
        trainable: trains the discriminators.
        real: [batch, ...] fp32, real samples.
        made: generated samples, the same shape.
        step: training step.

    Returns:
        The generator loss and the feature-matching loss, both with gradients to ``made``, and values for the
        log: "judged", the discriminator loss, "fooled" and "features".

    Source: hinge loss with feature matching as in MelGAN, arXiv 1910.06711.
    """
    device = real.device.type
    with torch.autocast(device, torch.bfloat16):
        judged = discriminator_loss(discriminators(real), discriminators(made.detach()))
    trainable.update(judged, step)
    with torch.autocast(device, torch.bfloat16):
        with torch.no_grad():
            of_real = discriminators(real)
        of_made = discriminators(made)
        fooled, features = generator_loss(of_made), feature_loss(of_real, of_made)
    logged = {"judged": judged.item(), "fooled": fooled.item(), "features": features.item()}
    return fooled, features, logged
