"""Norm and modulation in 16 bits or wider, and the operator that the fp8 forms share."""

from typing import Literal

import torch
from torch import Tensor

from .._shared.dispatch import Backend, use_triton
from .._shared.operator import Operator
from .arguments import ModulationArgs, check
from .forward import launch
from .reference import modulation_reference

Norm = Literal["rms", "layer", "none"]

operator = Operator("modulation", ModulationArgs, launch, mutates=("residual", "out", "token_scale"))


def norm_modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    row_index: Tensor,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> Tensor:
    """Normalise each token and modulate it: ``norm(x) * (1 + scale[row]) + shift[row]``.

    Args:
        x: [batch, tokens, dim], bf16, fp16 or fp32 (fp64 on the PyTorch path); dim at most 16384.
        scale: [batch, rows, dim], modulation rows, any float dtype, last dimension contiguous.
        shift: [batch, rows, dim], as ``scale``.
        row_index: [batch, tokens] int32, the modulation row of each token; clamped to [0, rows).
        norm: ``"rms"``, ``"layer"`` or ``"none"``, without learned weights; statistics in fp32.
        eps: added to the mean square or variance.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        [batch, tokens, dim] in x.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not match.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: adaLN-single, arXiv 2310.00426 section 2.3; RMSNorm, arXiv 1910.07467 equation 4.
    """
    args = ModulationArgs(x, None, None, scale, shift, row_index, norm, eps)
    if not runs_triton(args, backend):
        return modulation_reference(args)[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    operator(args._replace(out=out))
    return out


def gated_norm_modulate(
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
) -> tuple[Tensor, Tensor]:
    """Add a gated branch, then normalise and modulate.

    ``x' = x + gate[row] * branch``; ``y = norm_modulate(x')``.

    Args:
        x: [batch, tokens, dim], the residual stream.
        branch: [batch, tokens, dim] in x.dtype, the output of attention or FFN.
        gate: [batch, rows, dim], modulation rows, any float dtype, last dimension contiguous.
        scale: [batch, rows, dim], as ``gate``.
        shift: [batch, rows, dim], as ``gate``.
        row_index: [batch, tokens] int32, the modulation row of each token; clamped to [0, rows).
        norm: ``"rms"``, ``"layer"`` or ``"none"``, see :func:`norm_modulate`.
        eps: added to the mean square or variance.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        x' and y, both [batch, tokens, dim] in x.dtype. y is computed from the unrounded fp32 x'.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not match.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    args = ModulationArgs(x, branch, gate, scale, shift, row_index, norm, eps)
    if not runs_triton(args, backend):
        return modulation_reference(args)
    residual, out = torch.empty((2, *x.shape), dtype=x.dtype, device=x.device).unbind()
    operator(args._replace(residual=residual, out=out))
    return residual, out


def runs_triton(args: ModulationArgs, backend: Backend) -> bool:
    """Check the arguments and return whether the Triton kernel serves the call."""
    check(args)
    return use_triton(backend, args.x, args.branch, args.gate, args.scale, args.shift)
