"""Frame packing: checks, choice of the backend, and the registered operator."""

import torch
from torch import Tensor

from .._shared.dispatch import Backend, use_triton
from .._shared.operator import Operator
from .arguments import FramesArgs, check
from .forward import launch, packed_shapes
from .reference import pack_frames_reference

operator = Operator("pack_frames", FramesArgs, launch, mutates=("rgb", "yuv"))


def pack_frames(
    frames: Tensor, *, rgb: bool = True, yuv: bool = False, backend: Backend = "auto"
) -> tuple[Tensor | None, Tensor | None]:
    """Convert decoded frames to bytes: interleaved RGB, planar YUV 4:2:0, or both in one launch.

    With ``c = clamp((x + 1) * 127.5, 0, 255)`` in fp32 and NaN taken as 0: RGB is c rounded half to even. YUV
    is the BT.709 matrix in limited range (luma 16 to 235, chroma 16 to 240 about 128) of the unrounded c,
    chroma from the mean of each 2 x 2 square, then rounded half to even.

    Args:
        frames: [frames, 3, height, width], bf16, fp16 or fp32 in [-1, 1], last dimension contiguous and any
            other strides, such as a permuted [3, frames, height, width] decoder output.
        rgb: whether to return RGB.
        yuv: whether to return YUV; height and width must then be even.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        RGB [frames, height, width, 3] uint8 and I420 [frames, height * 3 / 2, width] uint8 (Y plane of a
        frame, then U, then V, without padding); None for an output that was not requested.

    Raises:
        KernelArgumentError: a shape, dtype or stride does not match, or no output is requested.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: Recommendation ITU-R BT.709-6, sections 3 and 4.
    """
    check(frames, rgb, yuv)
    if not use_triton(backend, frames):
        return pack_frames_reference(frames, rgb=rgb, yuv=yuv)
    rgb_shape, yuv_shape = packed_shapes(frames)
    rgb_out = torch.empty(rgb_shape, dtype=torch.uint8, device=frames.device) if rgb else None
    yuv_out = torch.empty(yuv_shape, dtype=torch.uint8, device=frames.device) if yuv else None
    operator(FramesArgs(frames, rgb_out, yuv_out))
    return rgb_out, yuv_out
