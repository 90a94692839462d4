"""The columns of a pose: everything about a drawn frame that changes from one frame to the next."""

from enum import IntEnum

import torch
from torch import Tensor


class Pose(IntEnum):
    """Name the columns of a pose tensor [frames, len(Pose)], fp32.

    Lengths are in units of half the picture's height, x to the viewer's right and y down; angles in radians,
    positive clockwise; everything else is a share between 0 (or -1) and 1.
    """

    MOUTH_OPEN = 0  # gap between the lips
    MOUTH_WIDTH = 1  # spread (+) or drawn in (-)
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
    HEAD_YAW = 16  # parallax of the features, not a turn in space
    HEAD_NOD = 17
    HEAD_SCALE = 18  # nearer (+) or farther (-), share of the size


#: Columns decided by the phones alone.
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
#: The reach of every column: what the renderer's windows allow for, and where it clamps.
LIMITS: dict[Pose, tuple[float, float]] = {
    **dict.fromkeys(Pose, (0.0, 1.0)),
    **dict.fromkeys(_SIGNED, (-1.0, 1.0)),
    Pose.HEAD_X: (-0.1, 0.1),
    Pose.HEAD_Y: (-0.06, 0.06),
    Pose.HEAD_ROLL: (-0.12, 0.12),
    Pose.HEAD_SCALE: (-0.05, 0.05),
}


def neutral(frames: int = 1) -> Tensor:
    """Return the resting pose, mouth closed and eyes open to the viewer: [frames, len(Pose)], fp32.

    The reference image of a character is its neutral frame.
    """
    return torch.zeros(frames, len(Pose))
