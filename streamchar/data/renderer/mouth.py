"""The mouth: lips, teeth, tongue and the dark inside."""

import torch
from torch import Tensor

from .head import HEAD_Y, HeadFrame
from .identity import Identity
from .paint import Canvas, Colour, glow, mix
from .pose import Pose
from .torso import SHADE, WHITE, skin_shade

MOUTH_V = 0.335
#: Colour of the inside of every character's mouth; no other part of a picture has it.
MOUTH_DARK: Colour = (64, 8, 22)
TEETH: Colour = (248, 244, 236)
TONGUE: Colour = (218, 96, 104)
#: Gap between the lips at full opening, in halves of the picture's height.
FULL_GAP = 0.215


def paint_mouth(canvas: Canvas, identity: Identity, head: HeadFrame, pose: Tensor) -> None:
    """Paint the mouth. In the neutral pose, the lips are closed and nothing inside is visible."""
    opening, spread, rounded, tuck, press, teeth, tongue, smile = (
        pose[:, column, None, None]
        for column in (
            Pose.MOUTH_OPEN,
            Pose.MOUTH_WIDTH,
            Pose.LIP_ROUND,
            Pose.LIP_TUCK,
            Pose.LIP_PRESS,
            Pose.TEETH,
            Pose.TONGUE,
            Pose.SMILE,
        )
    )
    middle = HEAD_Y + MOUTH_V
    window = canvas.window((-0.48, middle - 0.30, 0.48, middle + 0.40))
    u, v = head.coordinates(window, 0.75, (0.0, MOUTH_V))

    half = identity.mouth_width * (1 + 0.17 * spread + 0.10 * smile - 0.42 * rounded - 0.06 * opening)
    x = u / half
    square = x * x
    bulge = (1 - square).clamp_(min=0)
    root = bulge.sqrt()
    arc = torch.lerp(bulge, root, 0.30 + 0.60 * rounded)
    corners = (0.034 + 0.05 * smile + 0.006 * press) * (1 - 0.85 * rounded) * (1 - 0.45 * opening)
    level = square.clamp(max=1.4).mul_(-corners)

    gap = FULL_GAP * opening
    above = 0.26 + 0.20 * rounded
    top = level - arc * (above * gap + 0.028 * tuck)
    bottom = level + arc * ((1 - above) * gap + 0.004 * tuck)
    fullness = (1 + 0.35 * rounded) * (1 - 0.42 * press) * (1 - 0.12 * opening)
    upper = identity.upper_lip * fullness
    lower = identity.lower_lip * fullness * (1 - 0.3 * tuck)
    bow = (square * identity.cupids_bow).add_(1).mul_(bulge)
    outer_top = top - bow * upper
    outer_bottom = bottom + torch.lerp(bulge, root, 0.35 + 0.45 * rounded) * lower

    colour = identity.lip_colour
    dark = mix(colour, SHADE, 0.38)
    shade = skin_shade(identity)
    window.paint(glow(u, v - (0.75 * gap + lower + 0.035), 0.16, 0.05, 0.5), shade)
    window.paint(window.band(v, outer_top, level), mix(colour, dark, 0.38))
    lip = window.band(v, level, outer_bottom)
    window.paint(lip, colour)
    shine = glow(u + 0.03, v - ((1 - above) * gap + 0.42 * lower), 0.11, 0.030, 0.5)
    window.paint(shine.mul_(lip), mix(colour, WHITE, 0.6))
    line = 0.009 + 0.006 * press
    fade = arc.clamp(max=0.35).mul_(2.6)
    window.paint(window.band(v, level - line, level + line) * fade, mix(dark, (30, 0, 14), 0.35))

    inside = window.band(v, top, bottom)
    window.paint(inside, MOUTH_DARK)
    height = (bottom - top).clamp_(min=0)
    flat = (1 - square * square).clamp_(min=0)
    rise = height * (flat * (0.20 + 0.40 * tongue))
    window.paint(window.band(v, bottom - rise, bottom), TONGUE)
    covered = ((0.22 + 0.26 * teeth + tuck) * (1 - 1.15 * rounded * (1 - teeth))).clamp(0, 1)
    row = (0.86 - x.abs()).mul_(6).clamp_(0, 1)
    window.paint(window.band(v, top, top + height * covered) * row, TEETH)
    below = (0.30 * teeth * (1 - 0.6 * tongue)).clamp(0, 1)
    window.paint(window.band(v, bottom - height * below, bottom) * row, mix(TEETH, SHADE, 0.12))
