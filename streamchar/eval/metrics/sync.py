"""Lip sync: how well the movement of the lips matches the sound, and the offset between them.

The gap between the lips is read from the pixels of each frame. The expected gap is a function of the phones.
Both are correlated at every lag, pooled over clips, because a single sentence is too short for a stable
result. This is a measure of our own, not LSE-C or LSE-D of SyncNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ...config import CLOCK
from ...data.renderer.character import MOUTH_BOX, Identity, Pose, animate, mouth_openness, render
from ...data.renderer.visemes import VISEMES, Phone
from ..arrays import Frames, Values
from .align import spoken_span

#: Largest lag in frames, in both directions: half a second.
REACH = 12
# Margin around the neutral mouth for the sway of the head, as a share of the picture.
_SWAY = 0.04
# Frames rendered to calibrate a reader, and frames per phone in them.
_CALIBRATION, _PHONE_FRAMES = 320, 3
_RIDGE = 1.0
# Frames kept before and after the words. Longer silence in sound and picture says nothing about sync.
_AROUND = 6


class LipReader:
    """Read the gap between the lips from the pixels of one character's mouth.

    A ridge regression from the pixels around the mouth to the true gap. It is calibrated on renderings of the
    character, which says random phones and sways its head.

    Args:
        identity: the character.
        height: height of the pictures in pixels.
        width: width of the pictures in pixels.
        seed: seed of the calibration; must differ from the seeds of scored clips.
    """

    def __init__(self, identity: Identity, height: int, width: int, seed: int = 2**40) -> None:
        self._size = height, width
        generator = torch.Generator().manual_seed(seed)
        symbols = sorted(VISEMES)
        count = _CALIBRATION // _PHONE_FRAMES
        picks = torch.randint(len(symbols) + 4, (count,), generator=generator).tolist()
        step = _PHONE_FRAMES / CLOCK.frame_rate
        # Numbers beyond the last symbol are pauses.
        phones = [
            Phone(symbols[pick] if pick < len(symbols) else ".", index * step, (index + 1) * step)
            for index, pick in enumerate(picks)
        ]
        pose = animate(phones, _CALIBRATION, seed)
        rendered = render(identity, pose, height, width).permute(0, 2, 3, 1).numpy()
        pixels = self._pixels(rendered)
        gap = pose[:, Pose.MOUTH_OPEN].double().numpy()
        self._mean_pixels, self._mean_gap = pixels.mean(0), gap.mean()
        centred = pixels - self._mean_pixels
        gram = centred @ centred.T + _RIDGE * np.eye(len(centred))
        self._weights = centred.T @ np.linalg.solve(gram, gap - self._mean_gap)

    def read(self, frames: Frames) -> Values:
        """Return the gap between the lips in each frame, from about 0 (closed) to about 1 (wide open).

        Args:
            frames: [frames, height, width, 3] uint8 RGB.

        Returns:
            [frames].

        Raises:
            ValueError: the frames do not have the size of the calibration.
        """
        if frames.shape[1:] != (*self._size, 3):
            raise ValueError(
                f"frames must be [frames, {self._size[0]}, {self._size[1]}, 3], got {frames.shape}"
            )
        gap: Values = (self._pixels(frames) - self._mean_pixels) @ self._weights + self._mean_gap
        return gap

    def _pixels(self, frames: Frames) -> Values:
        height, width = self._size
        left, top, right, bottom = MOUTH_BOX
        # The box is relative to the square in the middle of the picture.
        offset = (width - height) / 2
        rows = slice(round((top - _SWAY) * height), round((bottom + _SWAY) * height))
        columns = slice(
            max(round((left - _SWAY) * height + offset), 0), round((right + _SWAY) * height + offset)
        )
        mouth = torch.from_numpy(frames[:, rows, columns].copy()).permute(0, 3, 1, 2).double() / 255
        return np.asarray(F.avg_pool2d(mouth, 2).flatten(1))


@dataclass(frozen=True)
class SyncScore:
    """Correlation of lips and sound.

    Attributes:
        offset: lag of the highest correlation in frames; positive if the lips are late.
        peak: the highest correlation.
        at_zero: the correlation at lag 0.
        clips: number of pooled clips.
    """

    offset: int
    peak: float
    at_zero: float
    clips: int


def sync_score(lips: Sequence[Values], expected: Sequence[Values], reach: int = REACH) -> SyncScore:
    """Correlate the gap between the lips with the expected gap, at every lag.

    Args:
        lips: measured gap of each clip, [frames].
        expected: gap that the sound requires, [frames] for each clip. If the lengths of a pair differ, the
            longer one is truncated.
        reach: largest lag in frames, in both directions.

    Raises:
        ValueError: no clip has more than ``reach`` frames and a moving mouth.
    """
    pairs = []
    for seen, wanted in zip(lips, expected):
        common = min(len(seen), len(wanted))
        seen, wanted = seen[:common], wanted[:common]
        if common > reach and seen.std() > 0 and wanted.std() > 0:
            pairs.append(((seen - seen.mean()) / seen.std(), (wanted - wanted.mean()) / wanted.std()))
    if not pairs:
        raise ValueError(f"at least one clip must have more than {reach} frames and a moving mouth, got none")
    lags = range(-reach, reach + 1)
    curve = np.asarray([_correlation(pairs, lag) for lag in lags])
    best = int(curve.argmax())
    return SyncScore(lags[best], float(curve[best]), float(curve[reach]), len(pairs))


def around_words(lips: Values, phones: Sequence[Phone]) -> tuple[Values, Values]:
    """Return the measured and the expected gap between the lips in the frames around the words.

    Args:
        lips: measured gap, [frames].
        phones: phones of the same frames, with times in seconds from the first frame.

    Raises:
        ValueError: all phones are silences.
    """
    first, last = (round(time * CLOCK.frame_rate) for time in spoken_span(phones))
    around = slice(max(first - _AROUND, 0), last + _AROUND)
    return lips[around], mouth_openness(phones, len(lips)).double().numpy()[around]


def _correlation(pairs: Sequence[tuple[Values, Values]], lag: int) -> float:
    """Return the correlation over all clips of the expected gap with the lips ``lag`` frames later."""
    seen = np.concatenate([lips[max(lag, 0) : len(lips) + min(lag, 0)] for lips, _ in pairs])
    wanted = np.concatenate([gap[max(-lag, 0) : len(gap) - max(lag, 0)] for _, gap in pairs])
    return float(np.corrcoef(seen, wanted)[0, 1])


def shifted(values: Values, frames: int) -> Values:
    """Return values delayed by ``frames`` frames, or advanced if negative; the end values are repeated."""
    index = np.arange(len(values)) - frames
    moved: Values = values[index.clip(0, len(values) - 1)]
    return moved
