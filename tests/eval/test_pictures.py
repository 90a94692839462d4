"""Picture quality against known values and a slow fp64 reference; identity of rendered characters."""

import math

import numpy as np
import pytest

from streamchar.data.renderer.character import Identity, animate, render
from streamchar.eval.metrics.identity import Gallery
from streamchar.eval.metrics.picture_quality import psnr, ssim
from streamchar.eval.sources import reference_frame


def noise(seed: int, shape: tuple[int, ...] = (1, 13, 14, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_equal_clips_score_best() -> None:
    clip = noise(0)
    assert psnr(clip, clip) == math.inf
    assert ssim(clip, clip) == pytest.approx(1)


def test_psnr_of_a_constant_error() -> None:
    clip = np.full((2, 12, 12, 3), 100, np.uint8)
    assert psnr(clip, clip + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(clip + np.uint8(5), clip) == psnr(clip, clip + np.uint8(5))


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    flat = np.full((1, 16, 16, 3), 80, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(flat, flat + np.uint8(40)) == pytest.approx((2 * 80 * 120 + c1) / (80**2 + 120**2 + c1))


def test_ssim_agrees_with_the_formula_window_by_window() -> None:
    x, y = noise(1), noise(2)
    y = (x * 0.7 + y * 0.3).astype(np.uint8)
    reach = np.arange(-5, 6)
    window = np.exp(-(reach[:, None] ** 2 + reach**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        for row in range(3):
            for column in range(4):
                a, b = (
                    p[0, row : row + 11, column : column + 11, channel].astype(np.float64) for p in (x, y)
                )
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                luminance = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
                values.append(luminance * (2 * cov + c2) / (va + vb + c2))
    assert ssim(x, y) == pytest.approx(np.mean(values), rel=1e-10)


def test_clips_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="clips must have the same shape"):
        psnr(noise(0), noise(0)[:, :-1])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(noise(0)[:, :8], noise(0)[:, :8])


def test_every_moving_frame_is_nearest_to_its_own_character() -> None:
    size, seeds = 64, range(100, 132)
    gallery = Gallery(np.stack([reference_frame(seed, size, size) for seed in seeds]))
    for index, seed in enumerate(seeds):
        pose = animate([], 48, seed)[::12]
        video = render(Identity.sample(seed), pose, size, size).permute(0, 2, 3, 1).numpy()
        assert (gallery.nearest(video) == index).all()


def test_a_gallery_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Gallery(noise(0))
