"""Frames side by side, to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .sources import Item, Source, reference_frame

# Frames shown of a clip: from this one on, one in so many, this many where it is long enough.
_FROM, _STEP, _SHOWN = 6, 3, 11


def spoken_frames(source: Source, items: Sequence[Item]) -> npt.NDArray[np.uint8]:
    """Let a source speak items, at least one, and return references and frames.

    Returns:
        [items, columns, height, width, 3] uint8, first the reference, then every third frame, as many as the
        shortest clip has, 11 at most.
    """
    rows = []
    for item in items:
        video = source.make(item).video
        reference = reference_frame(item.identity, *video.shape[1:3])
        rows.append(np.concatenate([reference[None], video[_FROM::_STEP][:_SHOWN]]))
    columns = min(map(len, rows))
    return np.stack([row[:columns] for row in rows])


def save_sheet(shown: npt.NDArray[np.uint8], target: Path) -> None:
    """Write frames as one picture.

    Args:
        shown: [rows, columns, height, width, 3] uint8 RGB.
        target: a PNG file.
    """
    rows, columns, height, width, _ = shown.shape
    Image.fromarray(shown.swapaxes(1, 2).reshape(rows * height, columns * width, 3)).save(
        target, optimize=True
    )
