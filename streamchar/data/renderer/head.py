"""The head as a moving coordinate frame, and the face without its features."""

from dataclasses import dataclass

from torch import Tensor

from .identity import Identity
from .paint import Box, Canvas, ellipse, glow, mix
from .pose import Pose
from .torso import SHADE, WHITE, skin_shade

#: Heights on the canvas of the middle of the head at rest, and of the point that it rolls about.
HEAD_Y, PIVOT_Y = -0.05, 0.50
#: Shift by a full yaw or nod of a feature at depth 1.
YAW_REACH, NOD_REACH = 0.05, 0.035


@dataclass(frozen=True)
class HeadFrame:
    """Position of the head in each frame; all tensors are [frames, 1, 1].

    Attributes:
        x, y: middle of the head on the canvas.
        cos, sin: cosine and sine of the roll, divided by the scale of the head.
        yaw, nod: shift on the canvas of features at depth 1.
        opening: opening of the mouth, which lowers the chin.
    """

    x: Tensor
    y: Tensor
    cos: Tensor
    sin: Tensor
    yaw: Tensor
    nod: Tensor
    opening: Tensor

    @classmethod
    def of(cls, pose: Tensor) -> "HeadFrame":
        """Read the head's columns of a pose tensor [frames, len(Pose)]."""

        def column(which: Pose) -> Tensor:
            return pose[:, which, None, None]

        roll, scale = column(Pose.HEAD_ROLL), 1 + column(Pose.HEAD_SCALE)
        reach = (PIVOT_Y - HEAD_Y) * scale
        cos, sin = roll.cos(), roll.sin()
        return cls(
            x=column(Pose.HEAD_X) + reach * sin,
            y=PIVOT_Y - reach * cos + column(Pose.HEAD_Y),
            cos=cos / scale,
            sin=sin / scale,
            yaw=column(Pose.HEAD_YAW) * YAW_REACH,
            nod=column(Pose.HEAD_NOD) * NOD_REACH,
            opening=column(Pose.MOUTH_OPEN),
        )

    def coordinates(
        self, canvas: Canvas, depth: float = 0.0, at: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[Tensor, Tensor]:
        """Return the head coordinates u and v of a canvas' pixels, each [frames, height, width].

        Args:
            canvas: canvas to return the coordinates of.
            depth: depth of the feature to draw, the factor of its shift by yaw and nod.
            at: head coordinates of the origin.
        """
        x, y = canvas.x - self.x, canvas.y - self.y
        u = (self.cos * x - (depth * self.yaw + at[0])) + self.sin * y
        v = (-self.sin * x - (depth * self.nod + at[1])) + self.cos * y
        return u, v


def paint_ears(canvas: Canvas, identity: Identity, head: HeadFrame) -> None:
    """Paint both ears; the face is painted over their inner halves later."""
    shade = skin_shade(identity)
    for side in (-1, 1):
        middle = side * (identity.face_width * 0.985 + 0.25 * identity.ear)
        window = canvas.window(_ear_box(middle))
        u, v = head.coordinates(window, -0.35, (middle, 0.05))
        size = identity.ear
        window.paint(window.edge(ellipse(u, v, size, 1.35 * size)), mix(identity.skin, shade, 0.22))
        inner = glow(u + side * 0.1 * size, v, 0.72 * size, size, 0.75)
        window.paint(inner, shade)
        if identity.earrings:
            ring = window.edge(ellipse(u, v - 1.45 * size, 0.034, 0.034))
            window.paint(ring, (250, 214, 110))
            window.paint(glow(u + 0.01, v - 1.42 * size, 0.02, 0.02, 0.8), WHITE)


def _ear_box(middle: float) -> Box:
    return middle - 0.36, HEAD_Y - 0.30, middle + 0.36, HEAD_Y + 0.46


def paint_face(canvas: Canvas, identity: Identity, head: HeadFrame, u: Tensor, v: Tensor) -> None:
    """Paint the skin of the face with light and shadow, blush and beard; u, v are head coordinates."""
    skin, shade = identity.skin, skin_shade(identity)
    width, height = identity.face_width, identity.face_height
    low = v.clamp(min=0)
    # An open mouth lowers the chin; ``jaw`` sets how much the cheeks narrow towards it.
    q = (v - low).div_(height).add_(low / (height + 0.055 * head.opening))
    p = (u / width).mul_(q.clamp(min=0).square_().mul_(-0.30 * identity.jaw).add_(1.0).add_(q, alpha=0.06))
    norm = (p * p).add_(q * q).sqrt_()
    slope = (p / width).square_().add_((q / height).square_()).sqrt_().add_(1e-6)
    face = canvas.edge((norm - 1).mul_(norm).div_(slope))
    canvas.paint(face, skin)
    # Light comes from the upper left, so the rim is shaded, most strongly at the right and bottom.
    rim = (norm - 0.52).clamp_(0, 0.5).mul_(2.0).square_()
    rim.mul_((u * 0.75).add_(v, alpha=0.55).add_(0.62).clamp_(0, 1.15)).mul_(face).mul_(0.85)
    canvas.paint(rim, shade)
    canvas.paint(glow(u + 0.10, v + 0.26, 0.34, 0.26, 0.30), mix(skin, WHITE, 0.6))
    blush = mix(skin, (232, 84, 84), 0.5)
    for side in (-1, 1):
        cheek = glow(u - side * 0.27, v - 0.20, 0.17, 0.13, identity.blush)
        canvas.paint(cheek, blush)
    if identity.beard:
        edge = (v - 0.16).sub_((0.46 - u.abs()).clamp_(min=0).square_().mul_(1.35)).mul_(9).clamp_(0, 1)
        hole = ellipse(u, v - 0.335, 0.235, 0.125).mul_(14).clamp_(0, 1)
        beard = edge.mul_(hole).mul_(face).mul_(identity.beard)
        canvas.paint(beard, mix(identity.hair_colour, SHADE, 0.2))
