"""Losses on spectra and verdicts of discriminators, on values known beforehand."""

from itertools import pairwise

import pytest
import torch

from streamchar.train.adversarial import hinge_fooled, hinge_real_made
from streamchar.train.spectral import (
    DISCRIMINATED,
    Discriminators,
    spectral_loss,
    spectrum,
)


def tone(hertz, samples=6000, level=1.0):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / 24000)[None]


@pytest.mark.parametrize("length", [256, 1024])
def test_a_sine_has_the_magnitude_half(length):
    frequency = 24000 / length * 8  # at the centre of a bin
    magnitude = spectrum(tone(frequency, level=0.7), length).abs()
    assert magnitude.shape == (1, (6000 - length) // (length // 4) + 1, length // 2 + 1)
    torch.testing.assert_close(magnitude[..., 8], torch.full_like(magnitude[..., 8], 0.35), rtol=1e-3, atol=0)


def test_equal_sounds_have_no_loss_and_it_grows_with_the_distance(rng):
    real = tone(440.0) * 0.5
    noise = torch.randn(real.shape, generator=rng)
    losses = [float(spectral_loss(real + level * noise, real)) for level in (0.0, 1e-3, 1e-2, 0.1, 1.0)]
    assert losses[0] == 0
    assert all(a < b for a, b in pairwise(losses))


def test_the_loss_hears_another_pitch_and_not_another_phase():
    real = tone(440.0)
    shifted = torch.sin(2 * torch.pi * 440.0 * torch.arange(6000) / 24000 + 1.0)[None]
    assert spectral_loss(shifted, real) < 0.05 * spectral_loss(tone(550.0), real)


def test_silence_has_a_finite_loss_and_gradient():
    made = torch.zeros(1, 6000, requires_grad=True)
    loss = spectral_loss(made, torch.zeros(1, 6000))
    assert loss == 0
    (loss + spectral_loss(made, tone(440.0))).backward()
    assert torch.isfinite(made.grad).all()


def test_discriminators_judge_patches_and_pass_gradients_to_the_sound(rng):
    torch.manual_seed(0)
    judges = Discriminators()
    audio = (0.1 * torch.randn(2, 6000, generator=rng)).requires_grad_()
    found = judges(audio)
    assert len(found) == len(DISCRIMINATED)
    for features in found:
        assert features[-1].shape[:2] == (2, 1)
        assert min(features[-1].shape[2:]) > 1
    hinge_fooled(found).backward()
    assert torch.isfinite(audio.grad).all()
    assert audio.grad.abs().max() > 0


def test_a_few_steps_teach_discriminators_to_tell_two_sounds_apart():
    torch.manual_seed(0)
    judges = Discriminators()
    real, made = tone(440.0).repeat(2, 1), tone(3000.0).repeat(2, 1)
    optimiser = torch.optim.AdamW(judges.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = hinge_real_made(judges(real), judges(made))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
