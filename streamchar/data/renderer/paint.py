"""Antialiased painting on a batch of frames.

A shape is a tensor of signed distances (negative inside) or a band between two curves. Its coverage is the
share of each pixel that it covers, a ramp one pixel wide at its edge. Colours are composited by coverage.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Colour: TypeAlias = tuple[float, float, float]  # red, green, blue in 0..255
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Canvas:
    """A batch of frames to paint on. Coordinates are in halves of the picture's height, from its centre.

    Attributes:
        planes: [3, frames, height, width], fp32 in 0..255.
        x: [width], x coordinates of the pixel centres, to the right.
        y: [height, 1], y coordinates of the pixel centres, downwards.
        pixel: size of a pixel.
        left, top: x and y of the first pixel as Python floats, which need no device synchronisation.
    """

    planes: Tensor
    x: Tensor
    y: Tensor
    pixel: float
    left: float
    top: float

    @classmethod
    def blank(cls, frames: int, height: int, width: int, device: torch.device) -> "Canvas":
        """Return a canvas of whole pictures with uninitialised planes."""
        pixel = 2.0 / height
        left, top = 0.5 - width / 2, 0.5 - height / 2
        x = (torch.arange(width, device=device) + left) * pixel
        y = (torch.arange(height, device=device) + top) * pixel
        planes = torch.empty(3, frames, height, width, device=device)
        return cls(planes, x, y[:, None], pixel, left * pixel, top * pixel)

    def _slices(self, box: Box) -> tuple[slice, slice]:
        columns = [round((edge - self.left) / self.pixel) for edge in (box[0], box[2])]
        rows = [round((edge - self.top) / self.pixel) for edge in (box[1], box[3])]
        return (
            slice(max(rows[0], 0), min(max(rows[1] + 1, 1), len(self.y))),
            slice(max(columns[0], 0), min(max(columns[1] + 1, 1), len(self.x))),
        )

    def window(self, box: Box) -> "Canvas":
        """Return a view of the part of the canvas within ``box``."""
        rows, columns = self._slices(box)
        left, top = self.left + columns.start * self.pixel, self.top + rows.start * self.pixel
        planes = self.planes[:, :, rows, columns]
        return Canvas(planes, self.x[columns], self.y[rows], self.pixel, left, top)

    def paint(self, coverage: Tensor, colour: Colour) -> None:
        """Composite a colour by ``coverage``, [frames, height, width] or broadcastable to it."""
        rest = 1 - coverage
        for plane, level in zip(self.planes, colour):
            plane.mul_(rest).add_(coverage, alpha=level)

    def edge(self, distance: Tensor) -> Tensor:
        """Convert signed distances to coverage, in place."""
        return distance.mul_(-1 / self.pixel).add_(0.5).clamp_(0, 1)

    def band(self, y: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
        """Return the coverage of the band top < y < bottom, exact along y; it is 0 where the curves cross."""
        half = self.pixel / 2
        return (
            torch.minimum(y + half, bottom).sub_(torch.maximum(y - half, top)).clamp_(min=0).div_(self.pixel)
        )


def ellipse(u: Tensor, v: Tensor, radius_u: Tensor | float, radius_v: Tensor | float) -> Tensor:
    """Return the signed distance to an ellipse around the origin, exact to first order at its edge."""
    p, q = u / radius_u, v / radius_v
    norm = (p * p + q * q).sqrt_()
    slope = ((p / radius_u).square_() + (q / radius_v).square_()).sqrt_().add_(1e-6)
    return (norm - 1).mul_(norm).div_(slope)


def glow(u: Tensor, v: Tensor, radius_u: float, radius_v: float, strength: float) -> Tensor:
    """Return the coverage of a soft spot: ``strength`` at its centre, 0 outside the ellipse."""
    p, q = u / radius_u, v / radius_v
    return (p * p + q * q).neg_().add_(1).clamp_(min=0).square_().mul_(strength)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return the colour ``share`` of the way from ``a`` to ``b``."""
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b))
    return red, green, blue
