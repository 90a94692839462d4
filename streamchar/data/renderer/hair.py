"""Hair: a shape behind the head for long styles, and a shape over the skull above the face."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .identity import Hair, Identity
from .paint import Canvas, Colour, ellipse, glow, mix

DARK: Colour = (20, 10, 24)
LIGHT: Colour = (255, 236, 206)


@dataclass(frozen=True)
class Cut:
    """The geometry of a hair style, in the head's coordinates.

    Attributes:
        side: width beyond the face.
        crown: height above the skull, as a multiple of the identity's crown.
        drop: height over which the sides of the front shape hang vertically.
        lift: tilt of the crown towards the side of the parting.
        waves: amplitude and frequency of the ripples of the outline.
        centre: quadratic coefficient of the hair line.
        quartic: quartic coefficient of the hair line.
        fringe: added to the identity's hair line, downwards.
        parted: how far the middle of the hair line follows the identity's parting, from 0 to 1.
        ears: whether the ears are visible.
        end: height at which the front shape is cut off.
        soft: height over which the hair line fades out, 0 for a sharp edge.
        back: lower end of the shape behind the head, 0 for none.
        back_side: width of the shape behind the head beyond the face.
    """

    side: float = 0.025
    crown: float = 1.0
    drop: float = 0.0
    lift: float = 0.0
    waves: tuple[float, float] = (0.0, 0.0)
    centre: float = 1.3
    quartic: float = 6.0
    fringe: float = 0.0
    parted: float = 0.0
    ears: bool = True
    end: float = 9.0
    soft: float = 0.0
    back: float = 0.0
    back_side: float = 0.0


# fmt: off
CUTS: dict[Hair, Cut] = {
    Hair.BUZZ: Cut(side=0.006, crown=0.25, centre=0.4, quartic=8.0, end=0.0, soft=0.05),
    Hair.SHORT: Cut(side=0.02, crown=1.5, lift=0.08, waves=(0.022, 21.0), centre=0.45, quartic=7.5,
                    fringe=-0.04, parted=0.3, end=0.0),
    Hair.SIDE_PART: Cut(side=0.025, crown=1.4, lift=0.12, centre=0.65, quartic=5.5, fringe=-0.02, parted=1.0,
                        end=0.02),
    Hair.QUIFF: Cut(side=0.012, crown=2.0, lift=0.16, waves=(0.018, 15.0), centre=0.6, quartic=7.5,
                    fringe=-0.03, end=0.0),
    Hair.FRINGE: Cut(side=0.045, crown=1.1, waves=(0.010, 30.0), centre=0.1, quartic=9.0, fringe=0.11,
                     end=0.14),
    Hair.BOB: Cut(side=0.085, drop=0.20, centre=0.15, quartic=15.0, fringe=0.08, ears=False, end=0.33,
                  back=0.46, back_side=0.10),
    Hair.LONG: Cut(side=0.07, drop=0.5, waves=(0.014, 11.0), centre=1.3, quartic=10.0, parted=0.6, ears=False,
                   back=1.15, back_side=0.15),
    Hair.BUN: Cut(side=0.015, crown=0.6, centre=1.0, quartic=5.0, fringe=-0.02, end=0.06),
    Hair.CURLY: Cut(side=0.07, crown=1.7, waves=(0.035, 19.0), centre=0.9, quartic=5.0, back=0.30,
                    back_side=0.13),
    Hair.AFRO: Cut(side=0.10, crown=1.6, waves=(0.016, 24.0), centre=0.7, quartic=5.0, back=0.22,
                   back_side=0.30),
}
# fmt: on


def _dome(
    identity: Identity, cut: Cut, u: Tensor, v: Tensor, side: float, crown: float, drop: float
) -> Tensor:
    """Return the signed distance to a skull-shaped outline with sides that are vertical for ``drop``."""
    width = identity.face_width + side
    height = identity.face_height + crown * identity.crown
    lower = (v - drop).clamp(min=0).mul_(height / 0.45)
    upper = v.clamp(max=0)
    if cut.lift:
        upper = upper.add(u * (-cut.lift * (1 if identity.part < 0 else -1)))
    distance = ellipse(u, lower.add_(upper), width, height)
    if cut.waves[0]:
        size, rate = cut.waves
        distance.add_(torch.sin(u * rate).mul_(torch.sin(v * rate + 1.0)).mul_(size))
    return distance


def paint_back_hair(canvas: Canvas, identity: Identity, u: Tensor, v: Tensor) -> None:
    """Paint the hair behind head and neck; u, v are head coordinates, [frames, height, width]."""
    dark = mix(identity.hair_colour, DARK, 0.28)
    if identity.hair is Hair.BUN:
        top = identity.face_height + 0.12
        bun = canvas.edge(ellipse(u, v + top, 0.19, 0.16))
        canvas.paint(bun, identity.hair_colour)
        canvas.paint(glow(u + 0.05, v + top + 0.04, 0.14, 0.09, 0.35), mix(identity.hair_colour, LIGHT, 0.5))
    cut = CUTS.get(identity.hair)
    if cut is None or not cut.back:
        return
    drop = max(cut.back - 0.45, 0.0)
    canvas.paint(canvas.edge(_dome(identity, cut, u, v, cut.back_side, 1.3 * cut.crown, drop)), dark)


def paint_hair(canvas: Canvas, identity: Identity, u: Tensor, v: Tensor) -> None:
    """Paint the hair above the hair line; u, v are head coordinates, [frames, height, width]."""
    cut = CUTS.get(identity.hair)
    if cut is None:
        return
    colour = identity.hair_colour
    outline = _dome(identity, cut, u, v, cut.side, cut.crown, cut.drop)
    offset = u - cut.parted * identity.part
    square = offset * offset
    line = (square * cut.centre).add_((u * u).square_().mul_(cut.quartic)).sub_(identity.fringe - cut.fringe)
    if cut.waves[0]:
        line.add_(torch.sin(u * (1.7 * cut.waves[1])).mul_(0.8 * min(cut.waves[0], 0.02)))
    steep = (offset.abs().mul_(2 * cut.centre)).add_(u.abs().pow_(3).mul_(4 * cut.quartic))
    below = (v - line).div_(steep.square_().add_(1).sqrt_())
    depth = below.clone()
    if cut.end < 1:
        below = torch.maximum(below, v - cut.end)
    if cut.soft:
        hair = canvas.edge(outline).mul_((0.5 - below / cut.soft).clamp_(0, 1)).mul_(0.85)
    else:
        hair = canvas.edge(torch.maximum(outline, below))
    canvas.paint(hair, colour)
    shadow = (depth.mul_(7).add_(1)).clamp_(0, 1).square_().mul_(hair).mul_(0.35)
    canvas.paint(shadow, mix(colour, DARK, 0.5))
    strands = torch.sin((u * 34).add_(v * (u * 26))).clamp_(min=0).mul_(hair).mul_(0.16)
    canvas.paint(strands, mix(colour, DARK, 0.55))
    top = 0.80 * identity.face_height
    shine = glow(u + 0.16, v + top, 0.30, 0.17, 0.42)
    if cut.waves[0]:
        shine.mul_(torch.sin(u * (1.6 * cut.waves[1]) + v * 5).mul_(0.4).add_(0.75))
    canvas.paint(shine.mul_(hair), mix(colour, LIGHT, 0.55))
