"""Lip sync: the gap between the lips is read from pixels, and an added delay is measured."""

import numpy as np
import pytest
import torch

from streamchar.data.renderer.character import Identity, Phone, Pose, animate, render
from streamchar.data.renderer.visemes import mouth_openness
from streamchar.eval.arrays import Values
from streamchar.eval.metrics.sync import LipReader, shifted, sync_score

SIZE = 64
FRAMES = 72


def phrase(seed: int) -> list[Phone]:
    """Return phones of uneven length with occasional pauses."""
    draw = np.random.default_rng(seed)
    ends = np.cumsum(draw.uniform(0.05, 0.2, 40))
    symbols = draw.choice(list("ɑiuptmsʃlnkæOə."), 40)
    return [Phone(str(s), float(a), float(b)) for s, a, b in zip(symbols, [0.0, *ends[:-1]], ends) if b < 3]


def rendered(identity: int, seed: int) -> np.ndarray:
    pose = animate(phrase(seed), FRAMES, seed)
    return render(Identity.sample(identity), pose, SIZE, SIZE).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def clips() -> tuple[list[Values], list[Values]]:
    reader = LipReader(Identity.sample(3), SIZE, SIZE)
    lips = [reader.read(rendered(3, seed)) for seed in range(4)]
    expected = [mouth_openness(phrase(seed), FRAMES).double().numpy() for seed in range(4)]
    return lips, expected


@pytest.mark.parametrize("identity", [0, 7])
def test_the_gap_between_the_lips_is_read_from_pixels(identity: int) -> None:
    pose = animate(phrase(11), FRAMES, 11)
    video = render(Identity.sample(identity), pose, SIZE, SIZE).permute(0, 2, 3, 1).numpy()
    read = LipReader(Identity.sample(identity), SIZE, SIZE).read(video)
    assert np.corrcoef(read, pose[:, Pose.MOUTH_OPEN].numpy())[0, 1] > 0.9


@pytest.mark.parametrize("delay", [0, 5, -8, 2])
def test_an_added_delay_is_measured(clips: tuple[list[Values], list[Values]], delay: int) -> None:
    lips, expected = clips
    found = sync_score([shifted(gap, delay) for gap in lips], expected)
    assert found.offset == delay
    assert found.peak > 0.85


def test_the_sound_of_another_clip_does_not_match_the_lips(clips: tuple[list[Values], list[Values]]) -> None:
    lips, expected = clips
    assert abs(sync_score(lips, expected[1:] + expected[:1]).at_zero) < 0.4
    assert sync_score(lips, expected).at_zero > 0.85


def test_lips_are_read_from_a_wide_picture() -> None:
    identity = Identity.sample(5)
    pose = animate(phrase(2), FRAMES, 2)
    wide = render(identity, pose, SIZE, 2 * SIZE).permute(0, 2, 3, 1).numpy()
    read = LipReader(identity, SIZE, 2 * SIZE).read(wide)
    assert np.corrcoef(read, pose[:, Pose.MOUTH_OPEN].numpy())[0, 1] > 0.9


def test_frames_of_another_size_are_refused() -> None:
    reader = LipReader(Identity.sample(0), SIZE, SIZE)
    with pytest.raises(ValueError, match=r"frames must be \[frames, 64, 64, 3\]"):
        reader.read(torch.zeros(2, 32, 32, 3, dtype=torch.uint8).numpy())


def test_still_lips_and_short_clips_have_no_score() -> None:
    moving = np.sin(np.arange(40.0))
    with pytest.raises(ValueError, match="moving mouth"):
        sync_score([np.zeros(40)], [moving])
    with pytest.raises(ValueError, match="more than 12 frames"):
        sync_score([moving[:10]], [moving[:10]])
