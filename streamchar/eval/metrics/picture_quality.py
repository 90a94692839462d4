"""Peak signal-to-noise ratio and structural similarity of clips."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..arrays import Frames

PEAK = 255.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(frames: Frames, others: Frames) -> float:
    """Return the peak signal-to-noise ratio of a clip in dB, over all pixels and channels; infinite if equal.

    Args:
        frames: [frames, height, width, 3] uint8.
        others: clip to compare with, of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(frames, others)
    error = float(np.square(frames.astype(np.float64) - others).mean())
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(frames: Frames, others: Frames) -> float:
    """Return the mean structural similarity of two clips; 1 if they are equal.

    Uses Gaussian windows of 11 x 11 pixels with a standard deviation of 1.5, only those that lie inside the
    picture, for each channel separately.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    equation 13.

    Args:
        frames: [frames, height, width, 3] uint8, at least 11 pixels high and wide.
        others: clip to compare with, of the same shape.

    Raises:
        ValueError: the shapes differ, or the pictures are smaller than a window.
    """
    _require_same_shape(frames, others)
    if min(frames.shape[1:3]) < _WINDOW:
        raise ValueError(f"pictures must be at least {_WINDOW} pixels high and wide, got {frames.shape[1:3]}")
    total = 0.0
    # One frame at a time: fp64 copies of a whole clip would take gigabytes.
    for frame, other in zip(frames, others):
        x, y = (torch.from_numpy(each.copy()).permute(2, 0, 1).double()[:, None] for each in (frame, other))
        total += float(_similarity(x, y).mean())
    return total / len(frames)


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x * mean_x
    variance_y = _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return luminance * structure


def _blurred(x: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window /= window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))


def _require_same_shape(frames: Frames, others: Frames) -> None:
    if frames.shape != others.shape or frames.ndim != 4 or not frames.size:
        raise ValueError(
            "clips must have the same shape [frames, height, width, 3], "
            f"got {frames.shape} and {others.shape}"
        )
