"""A character's pose over time: the mouth follows the phones, everything else moves at random."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...config import CLOCK
from ...errors import ArgumentError
from .pose import LIMITS, Pose, neutral
from .visemes import Phone, frame_times, mouth_track

#: Shortest and longest time between blinks, and the duration of a blink, in seconds.
BLINK_EVERY, BLINK_SECONDS = (2.0, 5.0), 0.16
#: Duration of an eye movement, in seconds.
GLANCE_SECONDS = 0.09
#: Time in which a clip leaves the neutral pose, in seconds.
SETTLING = 0.8
#: Per column, the amplitude of its sway in the column's units and the frequency of its slowest wave in hertz.
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
    """Return independent generators, so that a longer clip starts like a shorter one of the same seed."""
    parent = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (count,), generator=parent).tolist()
    return [torch.Generator().manual_seed(child) for child in seeds]


def _eased(progress: Tensor) -> Tensor:
    """Return the smoothstep function of a progress from 0 to 1."""
    share = progress.clamp(0, 1)
    return share * share * (3 - 2 * share)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _waves(time: Tensor, reach: float, slowest: float, generator: torch.Generator) -> Tensor:
    """Return a smoothly varying value within +-reach: three sines, the faster the smaller."""
    sizes = (0.6, 0.28, 0.12)
    total = torch.zeros_like(time)
    for size, speed in zip(sizes, (1.0, 2.3, 4.1)):
        hertz = slowest * speed * _uniform(0.85, 1.15, generator)
        total += size * torch.sin(2 * math.pi * (hertz * time + _uniform(0, 1, generator)))
    return total * reach


def _blinks(time: Tensor, generator: torch.Generator) -> Tensor:
    """Return how far the lids are closed; they close faster than they open."""
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
    """Return a gaze that rests on points and jumps from one to the next."""
    gaze = torch.zeros_like(time)
    at, before = 0.0, 0.0
    while (at := at + _uniform(0.8, 2.6, generator)) < float(time[-1]):
        # On average, every second point is close to the viewer's eyes.
        target = _uniform(-reach, reach, generator) * (1.0 if _uniform(0, 1, generator) < 0.5 else 0.2)
        gaze += (target - before) * _eased((time - at) / GLANCE_SECONDS)
        before = target
    return gaze


def animate(phones: Sequence[Phone], frames: int, seed: int) -> Tensor:
    """Return the pose of every frame of a clip: [frames, len(Pose)], fp32.

    Frame i shows the time (i + 0.5) / frame rate. The mouth columns depend on the phones alone. Blinks,
    brows, gaze, smile and the sway of the head depend on the seed alone; a clip starts near the neutral pose.

    Args:
        phones: phones in order of time, in seconds from the start of the clip; gaps are silence.
        frames: number of frames, at least 1.
        seed: seed of everything but the mouth.

    Raises:
        PhoneError: a symbol is not in :data:`~streamchar.data.renderer.visemes.ALPHABET`, or the times are
            out of order.
        ArgumentError: ``frames`` is less than 1.
    """
    remedy = f"animate a clip of at least {1 / CLOCK.frame_rate:.3f} s"
    ArgumentError.require(frames >= 1, "frames", "at least 1", frames, remedy)
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
