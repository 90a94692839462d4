"""The columns of a pose: everything about a drawn character that changes between frames."""

from enum import IntEnum

import torch
from torch import Tensor


class Pose(IntEnum):
    """Columns of a pose tensor, [frames, len(Pose)] fp32.

    Lengths are in halves of the picture's height, x to the viewer's right and y downwards. Angles are in
    radians, clockwise. All other columns range from 0 (or -1) to 1.
    """

    MOUTH_OPEN = 0  # gap between the lips
    MOUTH_WIDTH = 1  # spread (+) or narrowed (-)
    LIP_ROUND = 2
    LIP_TUCK = 3  # lower lip against the upper teeth, as in f and v
    LIP_PRESS = 4  # lips pressed together, as in p, b and m
    TEETH = 5  # teeth shown between parted lips, as in s
    TONGUE = 6
    SMILE = 7
    BLINK_LEFT = 8  # the viewer's left
    BLINK_RIGHT = 9
    BROW_RAISE = 10
    GAZE_X = 11
    GAZE_Y = 12
    HEAD_X = 13
    HEAD_Y = 14
    HEAD_ROLL = 15
    HEAD_YAW = 16  # shifts the features by their depth; not a rotation in space
    HEAD_NOD = 17
    HEAD_SCALE = 18  # relative change of size: nearer (+) or farther (-)


#: Columns that depend on the phones alone.
MOUTH_COLUMNS = tuple(Pose(i) for i in range(Pose.TONGUE + 1))

_SIGNED = (
    Pose.MOUTH_WIDTH,
    Pose.SMILE,
    Pose.BROW_RAISE,
    Pose.GAZE_X,
    Pose.GAZE_Y,
    Pose.HEAD_YAW,
    Pose.HEAD_NOD,
)
#: Range of every column. The renderer clamps poses to it, and its windows are large enough for it.
LIMITS: dict[Pose, tuple[float, float]] = {
    **dict.fromkeys(Pose, (0.0, 1.0)),
    **dict.fromkeys(_SIGNED, (-1.0, 1.0)),
    Pose.HEAD_X: (-0.1, 0.1),
    Pose.HEAD_Y: (-0.06, 0.06),
    Pose.HEAD_ROLL: (-0.12, 0.12),
    Pose.HEAD_SCALE: (-0.05, 0.05),
}


def neutral(frames: int = 1) -> Tensor:
    """Return the neutral pose, mouth closed and eyes open: [frames, len(Pose)], fp32 zeros.

    The reference image of a character shows this pose.
    """
    return torch.zeros(frames, len(Pose))
