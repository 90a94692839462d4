"""Norm and modulation in plain PyTorch: the reference of the kernel, and the path used without Triton."""

import torch
from torch import Tensor

from .._shared.compat import FP8, FP8_MAX
from .._shared.rows import rows_of_tokens
from .arguments import ModulationArgs


def modulation_reference(args: ModulationArgs, *, wide: bool = False) -> tuple[Tensor, Tensor]:
    """Compute (x', y) of :func:`.gated_norm_modulate`, in fp32 or, for fp64 input, in fp64.

    ``wide=True`` returns the results unrounded.
    """
    x = args.x
    wide_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def of_token(rows: Tensor) -> Tensor:
        assert args.row_index is not None
        return rows_of_tokens(rows.to(wide_dtype), args.row_index)

    residual = x.to(wide_dtype)
    if args.branch is not None and args.gate is not None:
        residual = residual + of_token(args.gate) * args.branch.to(wide_dtype)
    y = residual
    if args.norm == "layer":
        y = y - y.mean(-1, keepdim=True)
    if args.norm != "none":
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + args.eps)
    if args.scale is not None and args.shift is not None:
        y = y * (1 + of_token(args.scale)) + of_token(args.shift)
    return (residual, y) if wide else (residual.to(x.dtype), y.to(x.dtype))


def quantize_fp8_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise per token; shapes as in :func:`.quantize_fp8`."""
    x = x if x.dtype == torch.float64 else x.float()
    token_scale = x.abs().amax(-1).clamp_min(1e-12) / FP8_MAX
    values = (x / token_scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return values, token_scale.float()
