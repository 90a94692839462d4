"""Norm, modulation and plain quantisation with fp8 e4m3 results, through the same kernel."""

import torch
from torch import Tensor

from .._shared.compat import FP8
from .._shared.dispatch import Backend, use_triton
from .arguments import ModulationArgs, check_stream
from .interface import Norm, operator, runs_triton
from .reference import modulation_reference, quantize_fp8_reference


def norm_modulate_fp8(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    row_index: Tensor,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Do :func:`norm_modulate` and quantise each token to fp8 e4m3 for the following GEMM.

    Returns:
        values [batch, tokens, dim] float8_e4m3fn and their scale [batch, tokens] fp32:
        ``y = values * token_scale``, with ``token_scale = max|y| / 448``.

    Arguments and errors are those of :func:`norm_modulate`.
    """
    args = ModulationArgs(x, None, None, scale, shift, row_index, norm, eps)
    if not runs_triton(args, backend):
        return quantize_fp8_reference(modulation_reference(args, wide=True)[1])
    return _quantized(args)


def gated_norm_modulate_fp8(
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    row_index: Tensor,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Do :func:`gated_norm_modulate` with y quantised per token to fp8 e4m3.

    Returns:
        x' [batch, tokens, dim] in x.dtype; the values of y [batch, tokens, dim] float8_e4m3fn; their scale
        [batch, tokens] fp32.

    Arguments and errors are those of :func:`gated_norm_modulate`.
    """
    args = ModulationArgs(x, branch, gate, scale, shift, row_index, norm, eps)
    if not runs_triton(args, backend):
        residual, y = modulation_reference(args, wide=True)
        return residual.to(x.dtype), *quantize_fp8_reference(y)
    residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return residual, *_quantized(args._replace(residual=residual))


def quantize_fp8(x: Tensor, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Quantise each token to fp8 e4m3 with its own scale.

    Args:
        x: [batch, tokens, dim], bf16, fp16 or fp32; dim at most 16384.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        values [batch, tokens, dim] float8_e4m3fn and token_scale [batch, tokens] fp32; x is close to
        ``values * token_scale``, with ``token_scale = max|x| / 448``.

    Raises:
        KernelArgumentError: a shape, dtype or stride does not match.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    check_stream(x)
    if not use_triton(backend, x):
        return quantize_fp8_reference(x)
    return _quantized(ModulationArgs(x, norm="none", eps=0.0))


def _quantized(args: ModulationArgs) -> tuple[Tensor, Tensor]:
    out = torch.empty(args.x.shape, dtype=FP8, device=args.x.device)
    token_scale = torch.empty(args.x.shape[:2], dtype=torch.float32, device=args.x.device)
    operator(args._replace(out=out, token_scale=token_scale))
    return out, token_scale
