"""A cartoon character, head and shoulders, drawn with torch in any number of poses at once.

``python -m streamchar.data.renderer.character --sheet out.png`` writes a contact sheet.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...errors import ArgumentError
from .features import paint_brows, paint_eyes, paint_glasses, paint_nose
from .hair import CUTS, paint_back_hair, paint_hair
from .head import HEAD_Y, HeadFrame, paint_ears, paint_face
from .identity import Hair, Identity
from .motion import animate
from .mouth import MOUTH_DARK, paint_mouth
from .paint import Box, Canvas
from .pose import LIMITS, MOUTH_COLUMNS, Pose, neutral
from .torso import paint_background, paint_clothes, paint_neck
from .visemes import VISEMES, Phone, Viseme, mouth_openness

__all__ = [
    "FACE_BOX",
    "MOUTH_BOX",
    "MOUTH_DARK",
    "Identity",
    "Phone",
    "Pose",
    "animate",
    "contact_sheet",
    "mouth_openness",
    "neutral",
    "render",
]

#: Bounding boxes of the mouth, when wide open, and of the face, with the head at rest: left, top, right and
#: bottom as shares of a square picture, or of the central square of a wide one.
MOUTH_BOX: Box = (0.27, 0.57, 0.73, 0.83)
FACE_BOX: Box = (0.22, 0.14, 0.78, 0.84)

#: Frames painted at a time; on a CPU so few that planes and distances stay in its cache.
_CPU_BATCH = 16
_CUDA_BATCH = 512


def render(
    identity: Identity, pose: Tensor, height: int, width: int, device: torch.device | str | None = None
) -> Tensor:
    """Draw a character in each of the poses.

    Args:
        identity: the character.
        pose: [frames, len(Pose)], floating point; columns are clamped to
            :data:`~streamchar.data.renderer.pose.LIMITS`.
        height: height of the pictures in pixels, at least 16; the character scales with it.
        width: width of the pictures in pixels, at least 16.
        device: device to draw on; that of the pose by default.

    Returns:
        [frames, 3, height, width], uint8 RGB, on that device.

    Raises:
        ArgumentError: the pose has another shape, or the picture is too small.
    """
    require = ArgumentError.require
    ok = pose.ndim == 2 and pose.shape[1] == len(Pose)
    remedy = "start from neutral() or animate()"
    require(ok, "pose", f"[frames, {len(Pose)}]", list(pose.shape), remedy)
    require(min(height, width) >= 16, "height and width", "at least 16 pixels", f"{height} and {width}")
    on = torch.device(device) if device is not None else pose.device
    pose = pose.to(on, torch.float32)
    low, high = torch.tensor([LIMITS[column] for column in Pose], device=on).T
    pose = torch.minimum(torch.maximum(pose, low), high)
    frames = torch.empty(len(pose), 3, height, width, dtype=torch.uint8, device=on)
    backdrop = Canvas.blank(1, height, width, on)
    paint_background(backdrop, identity)
    clothed = Canvas.blank(1, height, width, on)
    clothed.planes.zero_()
    body = paint_clothes(clothed, identity)
    step = _CPU_BATCH if on.type == "cpu" else _CUDA_BATCH
    for start in range(0, len(pose), step):
        part = pose[start : start + step]
        canvas = Canvas.blank(len(part), height, width, on)
        canvas.planes.copy_(backdrop.planes)
        _paint(canvas, identity, part, clothed.planes, body)
        frames[start : start + step] = canvas.planes.add_(0.5).clamp_(0, 255).to(torch.uint8).transpose(0, 1)
    return frames


def _paint(canvas: Canvas, identity: Identity, pose: Tensor, clothes: Tensor, body: Tensor) -> None:
    """Paint from back to front; ``clothes`` are planes premultiplied by their coverage, ``body``."""
    head = HeadFrame.of(pose)
    u, v = head.coordinates(canvas)
    if identity.hair is Hair.BUN or (identity.hair in CUTS and CUTS[identity.hair].back):
        paint_back_hair(canvas, identity, u, v)
    below = canvas.window((-9.0, 0.5, 9.0, 9.0))
    rows = canvas.planes.shape[2] - below.planes.shape[2]
    below.planes.mul_(1 - body[:, rows:]).add_(clothes[:, :, rows:])
    neck = canvas.window((-0.5, 0.2, 0.5, 0.86))
    paint_neck(neck, identity, head.x, head.y - HEAD_Y)
    if identity.hair not in CUTS or CUTS[identity.hair].ears:
        paint_ears(canvas, identity, head)
    window = canvas.window((-0.75, -1.0, 0.75, 0.85))
    u, v = head.coordinates(window)
    paint_face(window, identity, head, u, v)
    paint_nose(canvas, identity, head)
    paint_mouth(canvas, identity, head, pose)
    paint_eyes(canvas, identity, head, pose)
    u, v = head.coordinates(window, 0.15)
    paint_hair(window, identity, u, v)
    paint_brows(canvas, identity, head, pose)
    if identity.glasses:
        paint_glasses(canvas, identity, head)


def _pose(viseme: Viseme | None = None, **columns: float) -> Tensor:
    pose = neutral()
    if viseme is not None:
        pose[0, : len(MOUTH_COLUMNS)] = torch.tensor(viseme.columns())
    for name, value in columns.items():
        pose[0, Pose[name]] = value
    return pose


def contact_sheet(identities: int = 12, size: int = 96, first: int = 0) -> Image.Image:
    """Draw a table of pictures: one identity per row, one viseme or expression per column."""
    poses = torch.cat(
        [
            neutral(),
            *(_pose(VISEMES[symbol][0]) for symbol in "pfɑɛiuɔsʃθl"),
            _pose(SMILE=1.0, BROW_RAISE=1.0),
            _pose(BLINK_LEFT=1.0, BLINK_RIGHT=1.0),
            _pose(HEAD_X=0.06, HEAD_ROLL=0.08, HEAD_YAW=1.0, GAZE_X=0.8),
            _pose(HEAD_X=-0.06, HEAD_ROLL=-0.08, HEAD_YAW=-1.0, HEAD_NOD=0.8, GAZE_X=-0.8),
        ]
    )
    rows = [
        render(Identity.sample(seed), poses, size, size).permute(2, 0, 3, 1).reshape(size, -1, 3)
        for seed in range(first, first + identities)
    ]
    return Image.fromarray(torch.cat(rows).numpy())


def main() -> None:
    """Write a contact sheet to a file."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet of characters.")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--identities", type=int, default=12, help="number of rows")
    parser.add_argument("--size", type=int, default=96, help="height and width of a picture in pixels")
    parser.add_argument("--first", type=int, default=0, help="seed of the first row")
    args = parser.parse_args()
    contact_sheet(args.identities, args.size, args.first).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
