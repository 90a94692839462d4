"""Colour, sharpness and movement of the face. Long streams tend to fade and to blur."""

import numpy as np

from ...data.renderer.character import FACE_BOX
from ..arrays import Frames, Values

# Weights of red, green and blue in luma, ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)


def movement(frames: Frames, before: Frames | None) -> Values:
    """Return the mean absolute difference between each face and the face one frame earlier.

    Args:
        frames: [frames, height, width, 3] uint8 RGB.
        before: [height, width, 3], the frame before the first one; None if there is none. Then the first
            frame has no movement.

    Returns:
        [frames], in levels of 0 to 255.
    """
    faces = face(np.concatenate([frames[:1] if before is None else before[None], frames])).astype(np.int16)
    moved: Values = np.abs(np.diff(faces, axis=0)).mean((1, 2, 3))
    return moved


class FaceMeter:
    """Compare faces with a reference.

    Args:
        reference: [height, width, 3] uint8 RGB.
    """

    def __init__(self, reference: Frames) -> None:
        self._colour = mean_colour(reference[None])[0]
        self._sharpness = laplacian_energy(reference[None])[0]

    def colour(self, frames: Frames) -> Values:
        """Return how far the mean colour of each face is from the reference's.

        Args:
            frames: [frames, height, width, 3] uint8 RGB.

        Returns:
            [frames]: absolute difference in levels of 0 to 255, averaged over red, green and blue.
        """
        distance: Values = np.abs(mean_colour(frames) - self._colour).mean(1)
        return distance

    def sharpness(self, frames: Frames) -> Values:
        """Return the Laplacian energy of each face divided by the reference's.

        Args:
            frames: [frames, height, width, 3] uint8 RGB.

        Returns:
            [frames]; below 1 the face is more blurred than the reference.
        """
        ratio: Values = laplacian_energy(frames) / self._sharpness
        return ratio


def mean_colour(frames: Frames) -> Values:
    """Return the mean red, green and blue of each face: [frames, 3], 0 to 255."""
    return np.asarray(face(frames).mean((1, 2), dtype=np.float64))


def laplacian_energy(frames: Frames) -> Values:
    """Return the mean square of the 4-neighbour Laplacian of each face's luma: [frames]."""
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
    """Return the part of each frame that contains the face while the head is at rest."""
    height, width = frames.shape[1:3]
    left, top, right, bottom = FACE_BOX
    # The box is relative to the square in the middle of the picture.
    offset = (width - height) / 2
    rows = slice(round(top * height), round(bottom * height))
    return frames[:, rows, round(left * height + offset) : round(right * height + offset)]
