"""The weights that ship hold over time, not only for the first moments that they were looked at."""

import numpy as np
import pytest
import torch
from torch import Tensor

from streamchar.data.renderer.character import Identity, animate, neutral, render
from streamchar.data.renderer.visemes import Phone
from streamchar.engine import StreamCharEngine
from streamchar.eval.metrics.face import FaceMeter


@pytest.fixture(scope="module")
def round_trip() -> tuple[Tensor, Tensor]:
    """Frames of a character that was never trained on and what the VAE makes of them, [1, 61, 3, 96, 96]."""
    vae = StreamCharEngine.from_preset("tiny").vae
    # A second of silence, a second of "a", and again.
    phones = [Phone("a" if second % 2 else ".", second, second + 1.0) for second in range(3)]
    pose = torch.cat((neutral(), animate(phones, 60, 0)))
    frames = render(Identity.sample(1_000_003), pose, 96, 96).float()[None] / 127.5 - 1
    with torch.inference_mode():
        return frames, vae.decode_clip(vae.encode(frames)).clamp(-1, 1)


def test_late_pictures_of_a_round_trip_are_as_good_as_early_ones(round_trip):
    frames, made = round_trip
    error = (made - frames).square().mean((0, 2, 3, 4)) / 4
    quality = -10 * error.log10()
    assert quality[1:9].mean() > 20
    assert quality[-8:].mean() > quality[1:9].mean() - 2.5


def test_pictures_of_a_round_trip_are_neither_blurred_nor_noisy(round_trip):
    frames, made = (((part[0] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy() for part in round_trip)
    sharpness = FaceMeter(frames[0]).sharpness(made)
    # 0.14 before the decoder was trained against a discriminator; noise raises it without end.
    assert 0.4 < np.median(sharpness) < 1.2
    assert sharpness[1:].min() > 0.3
