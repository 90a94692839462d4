"""Background, clothes and neck of a character."""

import torch
from torch import Tensor

from .identity import Identity, Neckline
from .paint import Canvas, Colour, ellipse, glow, mix

WHITE: Colour = (255, 255, 255)
SHADE: Colour = (70, 30, 50)


def skin_shade(identity: Identity) -> Colour:
    """Return the colour of skin in shadow."""
    red, green, blue = identity.skin
    return red * 0.78, green * 0.68, blue * 0.66


def paint_background(canvas: Canvas, identity: Identity) -> None:
    """Fill the canvas with a vertical gradient, a soft light and two faint discs."""
    x, y = canvas.x, canvas.y
    down = (y * 0.5 + 0.5).clamp(0, 1).expand(-1, len(x))
    canvas.planes.zero_()
    canvas.paint(torch.ones_like(down), mix(identity.background, WHITE, 0.12))
    canvas.paint(down, identity.background_low)
    canvas.paint(glow(x - identity.glow_x, y + 0.35, 1.3, 1.2, 0.55), mix(identity.background, WHITE, 0.75))
    for side, size in ((-0.9, 0.5), (0.75, 0.32)):
        disc = ellipse(x - side - 0.3 * identity.glow_x, y + 0.5 * size, size, size)
        canvas.paint(canvas.edge(disc) * 0.14, WHITE)


def paint_clothes(canvas: Canvas, identity: Identity) -> Tensor:
    """Paint shoulders and clothes, premultiplied by their coverage, and return it, [1, height, width]."""
    x, y = canvas.x, canvas.y
    wide = x.abs()
    top = 0.60 + 0.05 * identity.shoulders + 0.30 * wide * wide
    top = top + (wide - 0.80 + 0.06 * identity.shoulders).clamp(min=0).square() * 5.5
    slope = (1 + (0.6 * wide).square()).sqrt()
    colour = identity.clothes
    everywhere = torch.ones_like(wide + y)
    canvas.paint(everywhere, colour)
    if identity.stripes:
        wave = torch.sin((y - top * 0.35) * (6.2832 * identity.stripes / 0.5))
        canvas.paint(canvas.edge(-wave * (0.5 / 6.2832 / identity.stripes)), identity.stripe_colour)
    canvas.paint(glow(x + 0.25, y - 0.75, 0.6, 0.5, 0.28), mix(colour, WHITE, 0.6))
    side = ((wide - 0.35) * 1.1).clamp(0, 1)
    canvas.paint(side * side * 0.55 * everywhere, mix(colour, SHADE, 0.6))
    _paint_neckline(canvas, identity)
    body = canvas.edge((top - y) / slope)
    canvas.planes.mul_(body)
    return body[None]


def _paint_neckline(canvas: Canvas, identity: Identity) -> None:
    """Paint the neckline: the visible skin, its rim and a collar."""
    y, wide = canvas.y, canvas.x.abs()
    neck, skin, colour = identity.neck, skin_shade(identity), identity.clothes
    if identity.neckline is Neckline.TURTLENECK:
        canvas.paint(glow(canvas.x, y - 0.68, neck + 0.13, 0.16, 0.6), mix(colour, SHADE, 0.55))
        return
    if identity.neckline is Neckline.CREW:
        hole = ellipse(canvas.x, y - 0.60, neck + 0.07, 0.17)
    elif identity.neckline is Neckline.SCOOP:
        hole = ellipse(canvas.x, y - 0.60, neck + 0.16, 0.27)
    else:
        hole = (wide * 1.45 + y - 0.98).mul(0.57)
    if identity.neckline is Neckline.COLLAR:
        wing = torch.maximum((wide * 1.15 + y - 1.10) * 0.66, (wide - y * 0.55 - 0.02) * 0.88)
        canvas.paint(canvas.edge(wing - 0.02), mix(colour, SHADE, 0.35))
        canvas.paint(canvas.edge(wing), mix(colour, WHITE, 0.55))
    else:
        canvas.paint(canvas.edge(hole - 0.035), mix(colour, SHADE, 0.3))
    opening = canvas.edge(hole)
    canvas.paint(opening, mix(identity.skin, skin, 0.25))
    canvas.paint(glow(canvas.x, y - 0.58, neck + 0.15, 0.2, 0.7) * opening, skin)


def paint_neck(canvas: Canvas, identity: Identity, head_x: Tensor, head_y: Tensor) -> None:
    """Paint the neck, which leans with the head, and the chin's shadow on it.

    Args:
        canvas: part of the picture that contains the neck.
        identity: the character.
        head_x: [frames, 1, 1], horizontal position of the head.
        head_y: [frames, 1, 1], downward displacement of the head.
    """
    covered = identity.neckline is Neckline.TURTLENECK
    along = ((canvas.y - 0.30) / 0.42).clamp(0, 1)
    u = canvas.x - head_x * (1 - along)
    flare = 0.0 if covered else (along - 0.55).clamp(min=0).square() * 0.55
    column = canvas.edge(
        torch.maximum(u.abs() - (identity.neck + flare), canvas.y - (0.60 if covered else 0.72))
    )
    skin, shade = identity.skin, skin_shade(identity)
    canvas.paint(column, mix(skin, shade, 0.35))
    chin = 0.42 + 0.6 * head_y
    canvas.paint(glow(u, canvas.y - chin, 0.36, 0.32, 0.9) * column, mix(shade, SHADE, 0.25))
    if covered:
        middle = canvas.y - 0.625
        half = 0.095 + 0.02 * (1 - (u / identity.neck).square())
        sides = u.abs() - (identity.neck + 0.03 + 0.25 * middle)
        collar = canvas.edge(
            torch.maximum(sides, torch.maximum(middle - half, -middle - 0.085 + 0.25 * u * u))
        )
        colour = identity.clothes
        canvas.paint(collar, mix(colour, WHITE, 0.10))
        canvas.paint(
            collar * ((u / (identity.neck + 0.05)).square().clamp(max=1) * 0.5), mix(colour, SHADE, 0.6)
        )
        canvas.paint(collar * (1 - (middle + 0.02).abs() / 0.02).clamp(0, 1) * 0.35, mix(colour, SHADE, 0.6))
