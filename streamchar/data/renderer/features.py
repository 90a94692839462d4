"""Eyes, brows, nose and glasses."""

import torch
from torch import Tensor

from .head import HEAD_Y, HeadFrame
from .identity import Identity
from .paint import Canvas, ellipse, glow, mix
from .pose import Pose
from .torso import SHADE, WHITE, skin_shade

EYE_V = -0.035
_LINE = (52, 32, 36)


def _parabola(u: Tensor, half: float) -> Tensor:
    """Return a parabola that is 1 at 0 and 0 at +-half and beyond."""
    return (u / half).square_().neg_().add_(1).clamp_(min=0)


def paint_eyes(canvas: Canvas, identity: Identity, head: HeadFrame, pose: Tensor) -> None:
    """Paint both eyes with lids and lashes; the pose sets their gaze."""
    gaze_x, gaze_y = pose[:, Pose.GAZE_X, None, None], pose[:, Pose.GAZE_Y, None, None]
    width, height = identity.eye_width, identity.eye_height
    iris = 0.90 * min(height, 0.098)
    shade = skin_shade(identity)
    for side, column in ((-1, Pose.BLINK_LEFT), (1, Pose.BLINK_RIGHT)):
        shut = pose[:, column, None, None]
        at = side * identity.eye_spacing
        middle = HEAD_Y + EYE_V
        window = canvas.window((at - 0.36, middle - 0.34, at + 0.36, middle + 0.34))
        u, v = head.coordinates(window, 0.55, (at, EYE_V))
        v = v + u * (side * identity.eye_tilt / width)
        window.paint(glow(u, v, 1.55 * width, 1.6 * height, 0.35), mix(identity.skin, shade, 0.7))
        bow = _parabola(u, width)
        # Rounder than a parabola, because lids are close to circles near the corners.
        arc = bow.sqrt().add_(bow).mul_(0.5)
        lower = arc * (0.74 * height)
        upper = torch.lerp(arc * (-0.86 * height), lower, shut * 0.96)
        white = window.band(v, upper, lower)
        window.paint(white, (250, 248, 246))
        x, y = u - gaze_x * (0.34 * width), v + 0.06 * height - gaze_y * (0.30 * height)
        distance = ellipse(x, y, iris, iris)
        ring = window.edge(distance.clone()) * white
        window.paint(ring, mix(identity.eye_colour, (10, 8, 16), 0.45))
        window.paint(window.edge(distance + 0.016) * white, identity.eye_colour)
        window.paint(
            glow(x, y - 0.45 * iris, 0.8 * iris, 0.6 * iris, 0.6) * white,
            mix(identity.eye_colour, WHITE, 0.55),
        )
        window.paint(window.edge(distance.add_(0.52 * iris)) * white, (14, 10, 16))
        window.paint(
            window.edge(ellipse(x + 0.34 * iris, y + 0.36 * iris, 0.27 * iris, 0.27 * iris)) * white, WHITE
        )
        window.paint(white.mul_((upper + 0.045 - v).mul_(16).clamp_(0, 1)).mul_(0.35), SHADE)
        thickness = 0.022 + 0.016 * identity.lashes
        reach = _parabola(u, width * (1.06 + 0.12 * identity.lashes)).sqrt_()
        lash = window.band(v, upper - thickness * reach, upper + 0.004)
        window.paint(lash * reach.clamp(max=0.5).mul_(1.9).clamp_(max=1), _LINE)
        under = window.band(v, lower - 0.002, lower + 0.012 * reach)
        window.paint(under * reach.clamp(max=0.35), _LINE)
        crease = -height * 1.14 * arc - 0.014
        window.paint(window.band(v, crease - 0.006 * reach, crease + 0.006 * reach) * 0.45, shade)


def paint_brows(canvas: Canvas, identity: Identity, head: HeadFrame, pose: Tensor) -> None:
    """Paint both brows; only the glasses are painted over them."""
    colour = mix(identity.hair_colour, (60, 40, 36), 0.45)
    raised = pose[:, Pose.BROW_RAISE, None, None]
    for side in (-1, 1):
        at = side * (identity.eye_spacing + 0.01)
        rest = EYE_V - identity.brow_height
        middle = HEAD_Y + rest
        window = canvas.window((at - 0.36, middle - 0.28, at + 0.36, middle + 0.28))
        u, v = head.coordinates(window, 0.5, (at, rest))
        out = u * side
        half = 1.18 * identity.eye_width
        curve = (
            (u / half)
            .square_()
            .mul_(identity.brow_arch)
            .sub_(out * (identity.brow_slope / half))
            .sub_(0.045 * raised)
        )
        taper = (
            (out * (-0.30 / half) + 0.85).mul_(_parabola(u, half).sqrt_()).mul_(0.5 * identity.brow_thickness)
        )
        window.paint(window.band(v, curve - taper, curve + taper) * 0.92, colour)


def paint_nose(canvas: Canvas, identity: Identity, head: HeadFrame) -> None:
    """Paint the nose: bridge, tip and nostrils."""
    tip = identity.nose_length
    window = canvas.window((-0.34, HEAD_Y - 0.22, 0.34, HEAD_Y + tip + 0.26))
    u, v = head.coordinates(window, 1.0, (0.0, tip))
    skin, shade = identity.skin, skin_shade(identity)
    wide = identity.nose_width
    deep = mix(shade, SHADE, 0.25)
    window.paint(glow(u - 0.55 * wide, v + 0.08, 0.7 * wide, 0.22, 0.38), shade)
    window.paint(glow(u, v - 0.012, 1.5 * wide, 0.062, 0.75), shade)
    window.paint(glow(u, v + 0.03, 1.05 * wide, 0.058, 0.95), mix(skin, (236, 110, 90), 0.10))
    for side in (-1, 1):
        window.paint(glow(u - side * 0.55 * wide, v - 0.016, 0.42 * wide, 0.024, 1.0), mix(deep, SHADE, 0.35))
    window.paint(glow(u + 0.25 * wide, v + 0.045, 0.55 * wide, 0.05, 0.65), mix(skin, WHITE, 0.65))


def paint_glasses(canvas: Canvas, identity: Identity, head: HeadFrame) -> None:
    """Paint glasses: lenses with a faint reflection, frames, bridge and temples."""
    middle = HEAD_Y + EYE_V
    window = canvas.window((-0.72, middle - 0.36, 0.72, middle + 0.36))
    u, v = head.coordinates(window, 0.65, (0.0, EYE_V))
    # Both lenses in one shape, because the head is symmetric about u = 0.
    out = u.abs().sub_(identity.eye_spacing + 0.005)
    lens = ellipse(out, v - 0.01, identity.eye_spacing - 0.025, 0.155)
    window.paint(window.edge(lens.clone()) * 0.10, WHITE)
    rim = lens.abs_().sub_(0.013)
    bridge = torch.maximum((v + 0.02).abs_().sub_(0.011), u.abs() - 0.03)
    temple = torch.maximum((v + 0.04).abs_().sub_(0.012), (0.19 - out).clamp_(min=-1))
    temple = torch.maximum(temple, u.abs() - identity.face_width)
    window.paint(window.edge(torch.minimum(torch.minimum(rim, bridge), temple)), identity.glasses_colour)
