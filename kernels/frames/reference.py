"""Frame packing in plain PyTorch: the reference of the kernel, and the path used without Triton."""

import torch
from torch import Tensor


def pack_frames_reference(
    frames: Tensor, *, rgb: bool = True, yuv: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Compute :func:`.pack_frames` in fp32 or, for fp64 input, in fp64."""
    x = frames.to(torch.float64 if frames.dtype == torch.float64 else torch.float32)
    x = ((x + 1) * 127.5).nan_to_num(0.0, float("inf"), float("-inf")).clamp(0, 255)
    rgb_out = x.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous() if rgb else None
    if not yuv:
        return rgb_out, None

    def luma(pixels: Tensor) -> Tensor:
        r, g, b = pixels.unbind(1)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    square = torch.nn.functional.avg_pool2d(x, 2)
    y = 16 + 219 / 255 * luma(x)
    u = 128 + 224 / 255 / 1.8556 * (square[:, 2] - luma(square))
    v = 128 + 224 / 255 / 1.5748 * (square[:, 0] - luma(square))
    planes = torch.cat([plane.flatten(1) for plane in (y, u, v)], 1).round().to(torch.uint8)
    return rgb_out, planes.view(x.shape[0], x.shape[2] * 3 // 2, x.shape[3])
