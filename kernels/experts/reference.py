"""The expert projections in plain PyTorch: the reference of the kernel, unrounded."""

import torch
from torch import Tensor
from torch.nn.functional import gelu

from .._shared.rows import rows_of_tokens
from .arguments import ExpertArgs


def expert_up_reference(args: ExpertArgs, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Compute :func:`.expert_up` or, given scales, :func:`.expert_up_fp8`.

    Args:
        args: of an up projection.
        dtype: float32 or float64; by default float64 for fp64 input and float32 for other input.
    """
    dtype = dtype or _wide(args.a_video)
    x = _values(args.a_video, args.a_scale_video, dtype)
    up_video = x[:, : args.num_video] @ _values(args.w_video, args.w_scale_video, dtype).t()
    up_audio = x[:, args.num_video :] @ _values(args.w_audio, args.w_scale_audio, dtype).t()
    return (
        gelu(up_video + args.b_video.to(dtype), approximate="tanh"),
        gelu(up_audio + args.b_audio.to(dtype), approximate="tanh"),
    )


def expert_down_reference(args: ExpertArgs, dtype: torch.dtype | None = None) -> Tensor:
    """Compute :func:`.expert_down` or, given scales, :func:`.expert_down_fp8`.

    Args:
        args: of a down projection.
        dtype: float32 or float64; by default float64 for fp64 input and float32 for other input.
    """
    assert args.a_audio is not None
    assert args.residual is not None
    assert args.gate is not None
    assert args.row_index is not None
    dtype = dtype or _wide(args.a_video)
    h_video = _values(args.a_video, args.a_scale_video, dtype)
    h_audio = _values(args.a_audio, args.a_scale_audio, dtype)
    video = h_video @ _values(args.w_video, args.w_scale_video, dtype).t() + args.b_video.to(dtype)
    audio = h_audio @ _values(args.w_audio, args.w_scale_audio, dtype).t() + args.b_audio.to(dtype)
    branch = torch.cat((video, audio), 1)
    return gated_residual(args.residual.to(dtype), args.gate.to(dtype), args.row_index, branch)


def gated_residual(residual: Tensor, gate: Tensor, row_index: Tensor, branch: Tensor) -> Tensor:
    """Compute ``residual + gate[row] * branch`` in residual.dtype."""
    return torch.addcmul(residual, rows_of_tokens(gate, row_index), branch).to(residual.dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _values(tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if scale is None else tensor.to(dtype) * scale.to(dtype)[..., None]
