"""Colour and sharpness of the face beside the reference's, where long streams fade, and how much it moves."""

import numpy as np
import numpy.typing as npt

from ..data.character import FACE_BOX

#: Weights of red, green and blue in brightness, ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)

Frames = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]


def movement(frames: Frames, before: Frames | None) -> Values:
    """Return how much each face differs from the frame before it, [frames]: mean absolute levels of 0 to 255.

    Args:
        frames: [frames, height, width, 3] uint8 RGB.
        before: [height, width, 3], the frame before the first; None where there is none, and the first
            counts as still.
    """
    faces = face(np.concatenate([frames[:1] if before is None else before[None], frames])).astype(np.int16)
    moved: Values = np.abs(np.diff(faces, axis=0)).mean((1, 2, 3))
    return moved


class FaceMeter:
    """Compare faces with the reference's.

    Args:
        reference: [height, width, 3] uint8 RGB.
    """

    def __init__(self, reference: Frames) -> None:
        self._colour = mean_colour(reference[None])[0]
        self._sharpness = laplacian_energy(reference[None])[0]

    def colour(self, frames: Frames) -> Values:
        """Return how far the mean colour of each face is from the reference's, [frames].

        The mean over red, green and blue of the absolute difference, in levels of 0 to 255.

        Args:
            frames: [frames, height, width, 3] uint8 RGB.
        """
        distance: Values = np.abs(mean_colour(frames) - self._colour).mean(1)
        return distance

    def sharpness(self, frames: Frames) -> Values:
        """Return the Laplacian energy of each face over the reference's, [frames]: below 1 is blurred.

        Args:
            frames: [frames, height, width, 3] uint8 RGB.
        """
        share: Values = laplacian_energy(frames) / self._sharpness
        return share


def mean_colour(frames: Frames) -> Values:
    """Return the mean red, green and blue of each face, [frames, 3], 0 to 255."""
    return np.asarray(face(frames).mean((1, 2), dtype=np.float64))


def laplacian_energy(frames: Frames) -> Values:
    """Return the mean square of the Laplacian of each face's brightness, over four neighbours: [frames]."""
    luma = face(frames) @ np.asarray(_LUMA)
    laplacian = (
        luma[:, :-2, 1:-1]
        + luma[:, 2:, 1:-1]
        + luma[:, 1:-1, :-2]
        + luma[:, 1:-1, 2:]
        - 4 * luma[:, 1:-1, 1:-1]
    )
    return np.asarray(np.square(laplacian).mean((1, 2)))


def face(frames: Frames) -> Frames:
    """Return the part of each frame in which the face lies while the head is at rest."""
    height, width = frames.shape[1:3]
    left, top, right, bottom = FACE_BOX
    offset = (width - height) / 2
    rows = slice(round(top * height), round(bottom * height))
    return frames[:, rows, round(left * height + offset) : round(right * height + offset)]
