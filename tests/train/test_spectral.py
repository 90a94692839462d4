"""Spectral losses and spectrum discriminators on sounds with known spectra."""

from itertools import pairwise

import pytest
import torch

from streamchar.config import CLOCK
from streamchar.train.losses.adversarial import discriminator_loss, generator_loss
from streamchar.train.losses.spectral import (
    DISCRIMINATOR_WINDOWS,
    SpectrumDiscriminators,
    spectral_loss,
    spectrum,
)


def tone(hertz, samples=6000, level=1.0):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / CLOCK.sample_rate)[None]


@pytest.mark.parametrize("length", [256, 1024])
def test_a_sine_has_the_magnitude_half(length):
    frequency = CLOCK.sample_rate / length * 8  # the centre of bin 8
    magnitude = spectrum(tone(frequency, level=0.7), length).abs()
    assert magnitude.shape == (1, (6000 - length) // (length // 4) + 1, length // 2 + 1)
    torch.testing.assert_close(magnitude[..., 8], torch.full_like(magnitude[..., 8], 0.35), rtol=1e-3, atol=0)


def test_the_loss_grows_with_the_distance_from_zero(rng):
    real = tone(440.0) * 0.5
    noise = torch.randn(real.shape, generator=rng)
    losses = [float(spectral_loss(real + level * noise, real)) for level in (0.0, 1e-3, 1e-2, 0.1, 1.0)]
    assert losses[0] == 0
    assert all(a < b for a, b in pairwise(losses))


def test_the_loss_depends_on_pitch_and_not_on_phase():
    real = tone(440.0)
    shifted = torch.sin(2 * torch.pi * 440.0 * torch.arange(6000) / CLOCK.sample_rate + 1.0)[None]
    assert spectral_loss(shifted, real) < 0.05 * spectral_loss(tone(550.0), real)


def test_silence_has_a_finite_loss_and_gradient():
    made = torch.zeros(1, 6000, requires_grad=True)
    loss = spectral_loss(made, torch.zeros(1, 6000))
    assert loss == 0
    (loss + spectral_loss(made, tone(440.0))).backward()
    assert torch.isfinite(made.grad).all()


def test_discriminators_return_logits_with_gradients(rng):
    torch.manual_seed(0)
    discriminators = SpectrumDiscriminators()
    audio = (0.1 * torch.randn(2, 6000, generator=rng)).requires_grad_()
    found = discriminators(audio)
    assert len(found) == len(DISCRIMINATOR_WINDOWS)
    for features in found:
        assert features[-1].shape[:2] == (2, 1)
        assert min(features[-1].shape[2:]) > 1
    generator_loss(found).backward()
    assert torch.isfinite(audio.grad).all()
    assert audio.grad.abs().max() > 0


def test_discriminators_learn_to_separate_two_sounds():
    torch.manual_seed(0)
    discriminators = SpectrumDiscriminators()
    real, made = tone(440.0).repeat(2, 1), tone(3000.0).repeat(2, 1)
    optimizer = torch.optim.AdamW(discriminators.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = discriminator_loss(discriminators(real), discriminators(made))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
