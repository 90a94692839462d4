"""Identity: which of a gallery of characters does a generated frame look like?"""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

# Cells a side that a picture is averaged over: hair, eyes, clothes and ground fall into different ones.
_CELLS = 12

Frames = npt.NDArray[np.uint8]


class Gallery:
    """References that frames are compared with by the colours of their regions.

    Args:
        references: [characters, height, width, 3] uint8 RGB, a neutral picture of each.

    Raises:
        ValueError: there are fewer than two.
    """

    def __init__(self, references: Frames) -> None:
        if len(references) < 2:
            raise ValueError(f"references must be at least 2 pictures, got {len(references)}")
        self._embedded = embedding(references)
        self._mean = self._embedded.mean(0)

    def nearest(self, frames: Frames) -> npt.NDArray[np.int64]:
        """Return the index of the most similar reference of each frame, [frames].

        Args:
            frames: [frames, height, width, 3] uint8 RGB.
        """
        found: npt.NDArray[np.int64] = torch.cdist(embedding(frames), self._embedded).argmin(1).numpy()
        return found

    def similarity(self, frames: Frames, index: int) -> npt.NDArray[np.float64]:
        """Return how alike each frame and a reference are, [frames]: 1 the same, about 0 any two characters.

        The cosine of what both have apart from the mean of the gallery.

        Args:
            frames: [frames, height, width, 3] uint8 RGB.
            index: of the reference.
        """
        own = (self._embedded[index] - self._mean)[None]
        alike = F.cosine_similarity(embedding(frames) - self._mean, own)
        return np.asarray(alike.double())


def embedding(frames: Frames) -> torch.Tensor:
    """Return the mean colours of the cells of a grid over each frame: [frames, cells * cells * 3] fp32."""
    planes = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(planes, _CELLS).flatten(1)
