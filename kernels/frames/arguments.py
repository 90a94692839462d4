"""The arguments of frame packing, and what is required of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._shared.checks import require, require_dtype, require_last_contiguous, require_shape

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class FramesArgs(NamedTuple):
    """Arguments of one call. ``rgb`` and ``yuv`` are written; at least one is given."""

    frames: Tensor
    rgb: Tensor | None = None
    yuv: Tensor | None = None


def check(frames: Tensor, rgb: bool, yuv: bool) -> None:
    """Require frames that can be packed into the outputs asked for."""
    require(rgb or yuv, "rgb", "True where yuv is False", rgb, "ask for at least one output")
    require_shape("frames", frames, (None, 3, None, None), "[frames, 3, height, width]")
    require(frames.numel() > 0, "frames", "non-empty", list(frames.shape))
    require_dtype("frames", frames, FLOATS)
    require_last_contiguous("frames", frames)
    count, _, height, width = frames.shape
    require(count <= 65535, "frames.shape[0]", "at most 65535 frames a call", count, "call once per part")
    pixels = height * width
    require(pixels < 2**29, "frames.shape[2:]", f"below {2**29} pixels a frame", pixels)
    if yuv:
        for name, size in (("frames.shape[2]", height), ("frames.shape[3]", width)):
            remedy = "crop or pad by one, or pass yuv=False"
            require(size % 2 == 0, name, "even for 4:2:0 chroma", size, remedy)
