"""A character's pose over time: the mouth from the phones, everything else alive on its own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .pose import LIMITS, Pose, neutral
from .visemes import FRAME_RATE, Phone, frame_times, mouth_track

#: Seconds between blinks, least and most, and the seconds one takes.
BLINK_EVERY, BLINK_SECONDS = (2.0, 5.0), 0.16
#: Seconds that a glance takes to the next point.
GLANCE_SECONDS = 0.09
#: Seconds in which a clip moves off the neutral pose.
SETTLING = 0.8
#: How far each part of the head strays, in its column's units, and the hertz of its slowest wave.
SWAY: dict[Pose, tuple[float, float]] = {
    Pose.HEAD_X: (0.035, 0.11),
    Pose.HEAD_Y: (0.014, 0.15),
    Pose.HEAD_ROLL: (0.045, 0.10),
    Pose.HEAD_YAW: (0.70, 0.12),
    Pose.HEAD_NOD: (0.45, 0.16),
    Pose.HEAD_SCALE: (0.012, 0.08),
    Pose.BROW_RAISE: (0.40, 0.20),
    Pose.SMILE: (0.25, 0.05),
}


def _generators(seed: int, count: int) -> list[torch.Generator]:
    """Return independent generators, so that a longer clip begins as a shorter one of the same seed does."""
    parent = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (count,), generator=parent).tolist()
    return [torch.Generator().manual_seed(child) for child in seeds]


def _eased(progress: Tensor) -> Tensor:
    """Return the smoothstep of a progress from 0 to 1."""
    share = progress.clamp(0, 1)
    return share * share * (3 - 2 * share)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _waves(time: Tensor, reach: float, slowest: float, generator: torch.Generator) -> Tensor:
    """Return a smooth wandering value within +-reach: three sines whose sizes fall with their speed."""
    sizes = (0.6, 0.28, 0.12)
    total = torch.zeros_like(time)
    for size, speed in zip(sizes, (1.0, 2.3, 4.1)):
        hertz = slowest * speed * _uniform(0.85, 1.15, generator)
        total += size * torch.sin(2 * math.pi * (hertz * time + _uniform(0, 1, generator)))
    return total * reach


def _blinks(time: Tensor, generator: torch.Generator) -> Tensor:
    """Return how far the lids are shut: quickly down, more slowly up."""
    shut = torch.zeros_like(time)
    at = _uniform(1.0, BLINK_EVERY[1], generator)
    while at < float(time[-1]) + BLINK_SECONDS:
        since = (time - at) / BLINK_SECONDS
        down, up = (since / 0.4).clamp(0, 1), ((1 - since) / 0.6).clamp(0, 1)
        near = torch.minimum(down, up)
        shut = torch.maximum(shut, (near * 1.25).clamp(max=1))
        at += _uniform(*BLINK_EVERY, generator)
    return shut


def _glances(time: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Return a gaze that rests on a point for a while and jumps to the next."""
    gaze = torch.zeros_like(time)
    at, before = 0.0, 0.0
    while (at := at + _uniform(0.8, 2.6, generator)) < float(time[-1]):
        # Every other point is near the viewer's eyes.
        target = _uniform(-reach, reach, generator) * (1.0 if _uniform(0, 1, generator) < 0.5 else 0.2)
        gaze += (target - before) * _eased((time - at) / GLANCE_SECONDS)
        before = target
    return gaze


def animate(phones: Sequence[Phone], frames: int, seed: int) -> Tensor:
    """Return the pose of every frame of a clip: [frames, len(Pose)], fp32.

    Frame i shows the time (i + 0.5) / 24 s. The mouth columns depend on the phones alone; blinks, brows,
    gaze, smile and the sway of the head on the seed alone, leaving the neutral pose within the first second.

    Args:
        phones: in order of time, in seconds from the clip's start; time not covered by any is silence.
        frames: number of frames, at least 1.
        seed: same phones, frames and seed, same poses.

    Raises:
        PhoneError: a symbol is not in `ALPHABET`, or times are out of order.
        ValueError: ``frames`` is less than 1.
    """
    if frames < 1:
        raise ValueError(
            f"frames must be at least 1, got {frames}; ask for the frames of {1 / FRAME_RATE:.3f} s or more"
        )
    mouth = mouth_track(phones, frames)
    pose = neutral(frames)
    pose[:, : mouth.shape[1]] = mouth
    time = frame_times(frames)
    sway, glance_x, glance_y, blink = _generators(seed, 4)
    settled = _eased(time / SETTLING)
    for column, (reach, slowest) in SWAY.items():
        pose[:, column] = (_waves(time, reach, slowest, sway) * settled).float()
    pose[:, Pose.GAZE_X] = (_glances(time, 0.8, glance_x) * settled).float()
    pose[:, Pose.GAZE_Y] = (_glances(time, 0.4, glance_y) * settled).float()
    shut = _blinks(time, blink).float()
    pose[:, Pose.BLINK_LEFT] = shut
    pose[:, Pose.BLINK_RIGHT] = shut
    for column, (low, high) in LIMITS.items():
        pose[:, column].clamp_(low, high)
    return pose
