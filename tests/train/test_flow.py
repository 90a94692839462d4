"""Rectified flow on a Gaussian, whose best velocity has a closed form."""

import pytest
import torch

from streamchar.train.losses.flow import draw_sigmas, interpolate, to_clean


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2, 5)], ids=str)
def test_the_velocity_of_the_path_leads_to_the_clean_data(shape, rng):
    clean, noise = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([1.0, 0.3, 1e-3], dtype=torch.float64)
    x = interpolate(clean, noise, sigma)
    torch.testing.assert_close(to_clean(x, noise - clean, sigma), clean)
    torch.testing.assert_close(x[0], noise[0])
    assert torch.equal(interpolate(clean, noise, torch.zeros(3)), clean)


def test_levels_may_have_several_dimensions(rng):
    clean, noise = (torch.randn(2, 3, 4, 5, generator=rng) for _ in range(2))
    sigma = torch.rand(2, 3, generator=rng)
    x = interpolate(clean, noise, sigma)
    for row in range(2):
        assert torch.equal(x[row], interpolate(clean[row], noise[row], sigma[row]))


@pytest.mark.parametrize("sigma", [0.2, 0.6, 0.9])
def test_a_linear_fit_of_velocities_is_the_best_velocity(sigma, rng):
    mean, std, count = 1.5, 0.4, 200_000
    clean = mean + std * torch.randn(count, generator=rng, dtype=torch.float64)
    noise = torch.randn(count, generator=rng, dtype=torch.float64)
    x = interpolate(clean, noise, torch.full((count,), sigma, dtype=torch.float64))
    design = torch.stack((x, torch.ones_like(x)), 1)
    slope, offset = torch.linalg.lstsq(design, (noise - clean)[:, None]).solution[:, 0].tolist()
    # E[eps - z | x] = -mean + (sigma - (1 - sigma) std^2) / var(x) * (x - (1 - sigma) mean)
    best = (sigma - (1 - sigma) * std**2) / ((1 - sigma) ** 2 * std**2 + sigma**2)
    # Six standard errors of the slope; the deviation of the residual is below 2, that of x above 0.2.
    tolerance = 6 * 2 / 0.2 / count**0.5
    assert slope == pytest.approx(best, abs=tolerance)
    assert offset == pytest.approx(-mean - best * (1 - sigma) * mean, abs=2 * tolerance)


def test_one_level_in_eight_is_pure_noise(rng):
    sigmas = draw_sigmas((40_000,), rng)
    assert ((sigmas > 0) & (sigmas <= 1)).all()
    share = (sigmas == 1).double().mean().item()
    assert share == pytest.approx(0.125, abs=6 * (0.125 * 0.875 / 40_000) ** 0.5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_uniform_before_the_shift(shift, rng):
    sigmas = draw_sigmas((40_000,), rng, shift)
    warped = sigmas[sigmas < 1]
    even = (warped / (shift - (shift - 1) * warped)).sort().values
    expected = torch.linspace(0, 1, len(even))
    # Kolmogorov-Smirnov test: one draw in a thousand exceeds 1.95 / sqrt(n).
    assert (even - expected).abs().max() < 1.95 / len(even) ** 0.5
