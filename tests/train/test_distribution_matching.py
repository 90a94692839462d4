"""Distribution matching on Gaussians, whose scores have a closed form."""

import pytest
import torch

from streamchar.train.losses.distribution_matching import distribution_matching_loss, guided
from streamchar.train.losses.flow import draw_sigmas, interpolate


def clean_of_gaussian(x, sigma, mean, std):
    """Return E[z | x] for z of N(mean, std^2) and x = (1 - sigma) z + sigma eps."""
    keep = 1 - sigma
    gain = keep * std**2 / (keep**2 * std**2 + sigma**2)
    return mean + gain * (x - keep * mean)


def test_a_generator_learns_mean_and_deviation_of_the_data():
    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.zeros((), requires_grad=True), torch.ones((), requires_grad=True)
    optimizer = torch.optim.Adam([mean, scale], lr=0.02)
    for _ in range(1500):
        sample = mean + scale * torch.randn(256, 1, generator=generator)
        sigma = draw_sigmas((256,), generator)[:, None].clamp(0.02, 0.98)
        x = interpolate(sample.detach(), torch.randn(256, 1, generator=generator), sigma[:, 0])
        real = clean_of_gaussian(x, sigma, 1.5, 0.4)
        made = clean_of_gaussian(x, sigma, mean.detach(), scale.detach())
        optimizer.zero_grad()
        distribution_matching_loss(sample, real, made).backward()
        optimizer.step()
    assert mean.item() == pytest.approx(1.5, abs=0.08)
    assert abs(scale.item()) == pytest.approx(0.4, abs=0.08)


def test_the_gradient_is_the_difference_of_clean_predictions():
    generator = torch.Generator().manual_seed(1)
    sample, real, made = (torch.randn(3, 2, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    sample.requires_grad_()
    distribution_matching_loss(sample, real, made).backward()
    spread = (sample - real).abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(sample.grad, ((made - real) / spread / sample.numel()).detach())


def test_a_matching_generator_has_no_gradient():
    sample = torch.randn(4, 6, requires_grad=True)
    distribution_matching_loss(sample, sample.detach() * 0.5, sample.detach() * 0.5).backward()
    assert sample.grad.abs().max() == 0


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_extrapolates_the_mean_of_a_gaussian(guidance):
    x, sigma = torch.linspace(-2, 2, 9), 0.6
    with_text, without = (clean_of_gaussian(x, sigma, mean, 0.5) for mean in (1.0, 0.2))
    # Guidance between two Gaussians of one width gives a third; its mean is on the line through theirs.
    third = clean_of_gaussian(x, sigma, 0.2 + guidance * 0.8, 0.5)
    torch.testing.assert_close(guided(with_text, without, guidance), third)
