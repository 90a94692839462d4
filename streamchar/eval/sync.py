"""Lip sync: does the mouth that is seen open when the sounds that are heard open it, and if not, how late?

The gap between the lips is read from the pixels of each frame, the gap that the sounds ask for is a function
of their phones, and the two are correlated at every lag, pooled over clips: a single sentence is too short to
tell. This is a measure of our own, not SyncNet's LSE-C or LSE-D.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ..data.character import MOUTH_BOX, Identity, Pose, animate, mouth_openness, render
from ..data.visemes import FRAME_RATE, VISEMES, Phone
from .align import spoken_span

#: Lags looked at, in frames to either side: half a second.
REACH = 12
# Share of the picture around the neutral mouth that the sway of the head may carry it to.
_SWAY = 0.04
# Frames drawn to calibrate a reader, and frames of a phone in them.
_CALIBRATION, _PHONE_FRAMES = 320, 3
_RIDGE = 1.0
# Frames kept around the words when lips are correlated; silence that both share says nothing about sync.
_AROUND = 6

Series = npt.NDArray[np.float64]
Frames = npt.NDArray[np.uint8]


class LipReader:
    """Read how far the lips are apart from the pixels of one character's mouth.

    A ridge regression from the pixels around the mouth to the true opening, calibrated on drawings of that
    character that say random phones with a swaying head.

    Args:
        identity: whose lips are read.
        height: of the pictures, in pixels.
        width: of the pictures.
        seed: of the calibration; must not be one of a clip that is scored.
    """

    def __init__(self, identity: Identity, height: int, width: int, seed: int = 2**40) -> None:
        self._size = height, width
        draw = torch.Generator().manual_seed(seed)
        symbols = sorted(VISEMES)
        picks = torch.randint(len(symbols) + 4, (_CALIBRATION // _PHONE_FRAMES,), generator=draw).tolist()
        step = _PHONE_FRAMES / 24
        # Picks past the last symbol are pauses.
        phones = [
            Phone(symbols[pick] if pick < len(symbols) else ".", index * step, (index + 1) * step)
            for index, pick in enumerate(picks)
        ]
        pose = animate(phones, _CALIBRATION, seed)
        drawn = render(identity, pose, height, width).permute(0, 2, 3, 1).numpy()
        pixels = self._pixels(drawn)
        opening = pose[:, Pose.MOUTH_OPEN].double().numpy()
        self._mean, self._level = pixels.mean(0), opening.mean()
        centred = pixels - self._mean
        gram = centred @ centred.T + _RIDGE * np.eye(len(centred))
        self._weights = centred.T @ np.linalg.solve(gram, opening - self._level)

    def read(self, frames: Frames) -> Series:
        """Return the gap of the lips in each frame, about 0 closed to about 1 wide open.

        Args:
            frames: [frames, height, width, 3] uint8 RGB.

        Raises:
            ValueError: the frames are not of the size that was calibrated for.
        """
        if frames.shape[1:] != (*self._size, 3):
            raise ValueError(
                f"frames must be [frames, {self._size[0]}, {self._size[1]}, 3], got {frames.shape}"
            )
        gap: Series = (self._pixels(frames) - self._mean) @ self._weights + self._level
        return gap

    def _pixels(self, frames: Frames) -> Series:
        height, width = self._size
        left, top, right, bottom = MOUTH_BOX
        # The box is given in shares of the square in the middle of the picture.
        offset = (width - height) / 2
        rows = slice(round((top - _SWAY) * height), round((bottom + _SWAY) * height))
        columns = slice(
            max(round((left - _SWAY) * height + offset), 0), round((right + _SWAY) * height + offset)
        )
        mouth = torch.from_numpy(frames[:, rows, columns].copy()).permute(0, 3, 1, 2).double() / 255
        return np.asarray(F.avg_pool2d(mouth, 2).flatten(1))


@dataclass(frozen=True)
class SyncScore:
    """What the lags say.

    Attributes:
        offset: frames by which the lips are late, at the highest correlation; negative where they are early.
        peak: the correlation there.
        at_zero: the correlation without any lag.
        clips: pooled.
    """

    offset: int
    peak: float
    at_zero: float
    clips: int


def sync_score(lips: Sequence[Series], asked: Sequence[Series], reach: int = REACH) -> SyncScore:
    """Correlate what the lips do with what the sounds ask for, at every lag.

    Args:
        lips: gap of the lips, [frames] for each clip.
        asked: what the sounds ask for in the same frames; of clips of unequal length the common part counts.
        reach: lags to either side, in frames.

    Raises:
        ValueError: no clip is longer than ``reach`` frames with a mouth that moves.
    """
    pairs = []
    for seen, heard in zip(lips, asked):
        common = min(len(seen), len(heard))
        seen, heard = seen[:common], heard[:common]
        if common > reach and seen.std() > 0 and heard.std() > 0:
            pairs.append(((seen - seen.mean()) / seen.std(), (heard - heard.mean()) / heard.std()))
    if not pairs:
        raise ValueError(f"a clip at least must have more than {reach} frames and a moving mouth, got none")
    lags = range(-reach, reach + 1)
    curve = np.asarray([_correlation(pairs, lag) for lag in lags])
    best = int(curve.argmax())
    return SyncScore(lags[best], float(curve[best]), float(curve[reach]), len(pairs))


def beside_words(lips: Series, phones: Sequence[Phone]) -> tuple[Series, Series]:
    """Return what the lips do and what the sounds ask for in the frames around the words.

    Args:
        lips: gap of the lips, [frames].
        phones: of the same frames, with times in seconds from the first.

    Raises:
        ValueError: there is no sound among the phones.
    """
    first, last = (round(time * FRAME_RATE) for time in spoken_span(phones))
    around = slice(max(first - _AROUND, 0), last + _AROUND)
    return lips[around], mouth_openness(phones, len(lips)).double().numpy()[around]


def _correlation(pairs: Sequence[tuple[Series, Series]], lag: int) -> float:
    """Pool the frames of all clips in which the lips, ``lag`` frames later, have a sound to go with."""
    seen = np.concatenate([lips[max(lag, 0) : len(lips) + min(lag, 0)] for lips, _ in pairs])
    heard = np.concatenate([asked[max(-lag, 0) : len(asked) - max(lag, 0)] for _, asked in pairs])
    return float(np.corrcoef(seen, heard)[0, 1])


def shifted(series: Series, frames: int) -> Series:
    """Return a series that comes ``frames`` later, or earlier where negative; its ends are held."""
    index = np.arange(len(series)) - frames
    moved: Series = series[index.clip(0, len(series) - 1)]
    return moved
