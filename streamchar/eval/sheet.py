"""Contact sheets: frames side by side in one picture, to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .arrays import Frames
from .sources import Item, Source, reference_frame

# Which frames of a clip are shown: the first, the distance between them, and the most of them.
_FIRST, _STEP, _MOST = 6, 3, 11


def spoken_frames(source: Source, items: Sequence[Item]) -> Frames:
    """Let a source speak items, and return reference pictures and frames of the clips.

    Args:
        source: what speaks.
        items: at least one.

    Returns:
        [items, columns, height, width, 3] uint8. The first column is the reference; the others are every
        third frame, as many as the shortest clip has and at most 11.
    """
    rows = []
    for item in items:
        video = source.make(item).video
        reference = reference_frame(item.identity, *video.shape[1:3])
        rows.append(np.concatenate([reference[None], video[_FIRST::_STEP][:_MOST]]))
    columns = min(map(len, rows))
    return np.stack([row[:columns] for row in rows])


def save_sheet(frames: Frames, target: Path) -> None:
    """Write frames as one picture.

    Args:
        frames: [rows, columns, height, width, 3] uint8 RGB.
        target: a PNG file.
    """
    rows, columns, height, width, _ = frames.shape
    pixels = frames.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    Image.fromarray(pixels).save(target, optimize=True)
