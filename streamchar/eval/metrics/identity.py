"""Identity: which character of a gallery a frame looks most like."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ..arrays import Frames, Values

# Cells per side of the grid that a picture is averaged over; separates hair, eyes, clothes and background.
_CELLS = 12


class Gallery:
    """Reference pictures of characters, compared with frames by the mean colours of their regions.

    Args:
        references: [characters, height, width, 3] uint8 RGB, a neutral picture of each character.

    Raises:
        ValueError: there are fewer than two references.
    """

    def __init__(self, references: Frames) -> None:
        if len(references) < 2:
            raise ValueError(f"references must be at least 2 pictures, got {len(references)}")
        self._embedded = embedding(references)
        self._mean = self._embedded.mean(0)

    def nearest(self, frames: Frames) -> npt.NDArray[np.int64]:
        """Return the index of the reference most similar to each frame, [frames].

        Args:
            frames: [frames, height, width, 3] uint8 RGB.
        """
        found: npt.NDArray[np.int64] = torch.cdist(embedding(frames), self._embedded).argmin(1).numpy()
        return found

    def similarity(self, frames: Frames, index: int) -> Values:
        """Return the cosine similarity of each frame and a reference, after subtracting the gallery's mean.

        Args:
            frames: [frames, height, width, 3] uint8 RGB.
            index: index of the reference.

        Returns:
            [frames]: 1 for equal pictures, about 0 for two random characters.
        """
        own = (self._embedded[index] - self._mean)[None]
        cosine = F.cosine_similarity(embedding(frames) - self._mean, own)
        return np.asarray(cosine.double())


def embedding(frames: Frames) -> torch.Tensor:
    """Return the mean colours of a grid of cells over each frame: [frames, cells * cells * 3] fp32."""
    planes = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(planes, _CELLS).flatten(1)
