"""Norm, adaptive modulation and gated residual in one pass over the tokens.

Fused: ``x' = x + gate * branch``; ``y = norm(x') * (1 + scale) + shift``; and, for a following fp8 GEMM, the
per-token quantisation of y. Each token reads its gate, scale and shift from the modulation row that its
segment selects (adaLN-single; conditioning segments stand at t = 0 and so use another row than the chunk).

Bytes that must move for N tokens of width d and elements of e bytes: norm_modulate 2 N d e; with the gated
residual 4 N d e (x, branch in; x', y out); the rows are few and stay in cache. About 10 FLOP an element:
memory-bound everywhere.
"""

from typing import Literal

import torch

from ._checks import (
    require,
    require_device,
    require_dtype,
    require_last_contiguous,
    require_shape,
)
from ._compat import FP8, FP8_MAX, tl, triton
from ._dispatch import Backend, Launch, use_triton
from ._rows import rows_of_tokens

Norm = Literal["rms", "layer", "none"]
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
#: A row of this many elements is the widest that one program holds in registers.
MAX_DIM = 16384


@triton.jit
def _modulation_kernel(
    out_ptr,
    residual_ptr,
    token_scale_ptr,
    x_ptr,
    branch_ptr,
    gate_ptr,
    scale_ptr,
    shift_ptr,
    row_index_ptr,
    num_rows,
    eps,
    x_stride_b,
    x_stride_n,
    branch_stride_b,
    branch_stride_n,
    gate_stride_b,
    gate_stride_r,
    scale_stride_b,
    scale_stride_r,
    shift_stride_b,
    shift_stride_r,
    DIM: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    MODULATED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    token = b * tl.num_programs(0) + n
    cols = tl.arange(0, BLOCK_D)
    mask = cols < DIM
    if GATED or MODULATED:
        row = tl.load(row_index_ptr + token)
        row = tl.minimum(tl.maximum(row, 0), num_rows - 1).to(tl.int64)
    # The streams are read once; evicting them first leaves L1 to the modulation rows, which all tokens read.
    x = tl.load(
        x_ptr + b * x_stride_b + n * x_stride_n + cols, mask=mask, other=0.0, eviction_policy="evict_first"
    ).to(tl.float32)
    if GATED:
        branch = tl.load(
            branch_ptr + b * branch_stride_b + n * branch_stride_n + cols,
            mask=mask,
            other=0.0,
            eviction_policy="evict_first",
        ).to(tl.float32)
        gate = tl.load(gate_ptr + b * gate_stride_b + row * gate_stride_r + cols, mask=mask, other=0.0)
        x += gate.to(tl.float32) * branch
        tl.store(residual_ptr + token * DIM + cols, x.to(residual_ptr.dtype.element_ty), mask=mask)

    if NORM == "layer":
        x = tl.where(mask, x - tl.sum(x, 0) / DIM, 0.0)
    if NORM != "none":
        x *= tl.rsqrt(tl.sum(x * x, 0) / DIM + eps)
    if MODULATED:
        scale = tl.load(scale_ptr + b * scale_stride_b + row * scale_stride_r + cols, mask=mask, other=0.0)
        shift = tl.load(shift_ptr + b * shift_stride_b + row * shift_stride_r + cols, mask=mask, other=0.0)
        x = x * (1.0 + scale.to(tl.float32)) + shift.to(tl.float32)

    if QUANTIZED:
        token_scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / 448.0
        tl.store(token_scale_ptr + token, token_scale)
        x = tl.minimum(tl.maximum(x / token_scale, -448.0), 448.0)
    tl.store(out_ptr + token * DIM + cols, x.to(out_ptr.dtype.element_ty), mask=mask)


def norm_modulate(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    row_index: torch.Tensor,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> torch.Tensor:
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
        KernelArgumentError: a shape, dtype, stride or device does not fit.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: adaLN-single, arXiv 2310.00426 section 2.3; RMSNorm, arXiv 1910.07467 equation 4.
    """
    _check(x, None, None, scale, shift, row_index, norm)
    if not use_triton(backend, x, scale, shift):
        return modulation_reference(x, scale=scale, shift=shift, row_index=row_index, norm=norm, eps=eps)[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _modulation_op(out, None, None, x, None, None, scale, shift, row_index, norm, eps)
    return out


def norm_modulate_fp8(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    row_index: torch.Tensor,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do :func:`norm_modulate` and quantise each token to fp8 e4m3 for the GEMM behind it.

    Returns:
        values [batch, tokens, dim] float8_e4m3fn and their scale [batch, tokens] fp32:
        ``y = values * token_scale``, with ``token_scale = max|y| / 448``.

    Arguments and errors are those of :func:`norm_modulate`.
    """
    _check(x, None, None, scale, shift, row_index, norm)
    if not use_triton(backend, x, scale, shift):
        y = modulation_reference(
            x, scale=scale, shift=shift, row_index=row_index, norm=norm, eps=eps, wide=True
        )
        return quantize_fp8_reference(y[1])
    out, token_scale = _fp8_like(x)
    _modulation_op(out, None, token_scale, x, None, None, scale, shift, row_index, norm, eps)
    return out, token_scale


def gated_norm_modulate(
    x: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    row_index: torch.Tensor,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Close one branch and open the next: ``x' = x + gate[row] * branch``, then ``norm_modulate(x')``.

    Args:
        x: [batch, tokens, dim], the residual stream.
        branch: [batch, tokens, dim] in x.dtype, the output of attention or FFN.
        gate: [batch, rows, dim], modulation rows.
        scale: see :func:`norm_modulate`, as for all that follows.
        shift: see :func:`norm_modulate`.
        row_index: see :func:`norm_modulate`.
        norm: see :func:`norm_modulate`.
        eps: see :func:`norm_modulate`.
        backend: see :func:`norm_modulate`.

    Returns:
        x' and y, both [batch, tokens, dim] in x.dtype. y is computed from the unrounded fp32 x'.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    _check(x, branch, gate, scale, shift, row_index, norm)
    if not use_triton(backend, x, branch, gate, scale, shift):
        return modulation_reference(x, branch, gate, scale, shift, row_index, norm=norm, eps=eps)
    residual, out = torch.empty((2, *x.shape), dtype=x.dtype, device=x.device).unbind()
    _modulation_op(out, residual, None, x, branch, gate, scale, shift, row_index, norm, eps)
    return residual, out


def gated_norm_modulate_fp8(
    x: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    row_index: torch.Tensor,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do :func:`gated_norm_modulate` with y quantised per token to fp8 e4m3.

    Returns:
        x' [batch, tokens, dim] in x.dtype; the values of y [batch, tokens, dim] float8_e4m3fn; their scale
        [batch, tokens] fp32.

    Arguments and errors are those of :func:`gated_norm_modulate`.
    """
    _check(x, branch, gate, scale, shift, row_index, norm)
    if not use_triton(backend, x, branch, gate, scale, shift):
        residual, y = modulation_reference(
            x, branch, gate, scale, shift, row_index, norm=norm, eps=eps, wide=True
        )
        return residual.to(x.dtype), *quantize_fp8_reference(y)
    residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out, token_scale = _fp8_like(x)
    _modulation_op(out, residual, token_scale, x, branch, gate, scale, shift, row_index, norm, eps)
    return residual, out, token_scale


def quantize_fp8(x: torch.Tensor, *, backend: Backend = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each token to fp8 e4m3 with its own scale.

    Args:
        x: [batch, tokens, dim], bf16, fp16 or fp32; dim at most 16384.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        values [batch, tokens, dim] float8_e4m3fn and token_scale [batch, tokens] fp32; x is close to
        ``values * token_scale``, with ``token_scale = max|x| / 448``.

    Raises:
        KernelArgumentError: a shape, dtype or stride does not fit.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    _check_stream("x", x)
    if not use_triton(backend, x):
        return quantize_fp8_reference(x)
    out, token_scale = _fp8_like(x)
    _modulation_op(out, None, token_scale, x, None, None, None, None, None, "none", 0.0)
    return out, token_scale


def modulation_reference(
    x: torch.Tensor,
    branch: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    row_index: torch.Tensor | None = None,
    *,
    norm: Norm = "rms",
    eps: float = 1e-6,
    wide: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute (x', y) in plain PyTorch, in fp32 or, for fp64 input, in fp64.

    ``wide=True`` returns the results unrounded. Shapes as in :func:`gated_norm_modulate`.
    """
    wide_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def of_token(rows: torch.Tensor) -> torch.Tensor:
        assert row_index is not None
        return rows_of_tokens(rows.to(wide_dtype), row_index)

    residual = x.to(wide_dtype)
    if branch is not None and gate is not None:
        residual = residual + of_token(gate) * branch.to(wide_dtype)
    y = residual
    if norm == "layer":
        y = y - y.mean(-1, keepdim=True)
    if norm != "none":
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    if scale is not None and shift is not None:
        y = y * (1 + of_token(scale)) + of_token(shift)
    return (residual, y) if wide else (residual.to(x.dtype), y.to(x.dtype))


def quantize_fp8_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise per token in plain PyTorch; shapes as in :func:`quantize_fp8`."""
    x = x if x.dtype == torch.float64 else x.float()
    token_scale = x.abs().amax(-1).clamp_min(1e-12) / FP8_MAX
    values = (x / token_scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return values, token_scale.float()


def _fp8_like(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    return values, torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)


def _launch(
    out: torch.Tensor,
    residual: torch.Tensor | None,
    token_scale: torch.Tensor | None,
    x: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    row_index: torch.Tensor | None,
    norm: str,
    eps: float,
) -> Launch:
    batch, tokens, dim = x.shape
    block = triton.next_power_of_2(dim)
    rows = scale.shape[1] if scale is not None else 1

    def strides(tensor: torch.Tensor | None) -> tuple[int, int]:
        return (tensor.stride(0), tensor.stride(1)) if tensor is not None else (0, 0)

    args = {
        "out_ptr": out,
        "residual_ptr": residual,
        "token_scale_ptr": token_scale,
        "x_ptr": x,
        "branch_ptr": branch,
        "gate_ptr": gate,
        "scale_ptr": scale,
        "shift_ptr": shift,
        "row_index_ptr": row_index,
        "num_rows": rows,
        "eps": eps,
        "DIM": dim,
        "NORM": norm,
        "GATED": branch is not None,
        "MODULATED": scale is not None,
        "QUANTIZED": token_scale is not None,
        "BLOCK_D": block,
    }
    for name, tensor in {"x": x, "branch": branch, "gate": gate, "scale": scale, "shift": shift}.items():
        second = "n" if name in ("x", "branch") else "r"
        args[f"{name}_stride_b"], args[f"{name}_stride_{second}"] = strides(tensor)
    # 16 elements a thread: two 16-byte loads of bf16 in flight from each stream.
    num_warps = min(max(block // 512, 1), 16)
    return Launch(_modulation_kernel, (tokens, batch), args, num_warps, device=x.device)


@torch.library.custom_op("streamchar::modulation", mutates_args=("out", "residual", "token_scale"))
def _modulation_op(
    out: torch.Tensor,
    residual: torch.Tensor | None,
    token_scale: torch.Tensor | None,
    x: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    row_index: torch.Tensor | None,
    norm: str,
    eps: float,
) -> None:
    _launch(out, residual, token_scale, x, branch, gate, scale, shift, row_index, norm, eps).run()


@_modulation_op.register_fake
def _(*args: object) -> None:
    return None


def _check_stream(name: str, x: torch.Tensor) -> None:
    require_shape(name, x, (None, None, None), "[batch, tokens, dim]")
    require(x.numel() > 0, name, "non-empty", list(x.shape))
    require_dtype(name, x, _FLOATS)
    require_last_contiguous(name, x)
    require(x.shape[2] <= MAX_DIM, f"{name}.shape[2]", f"at most {MAX_DIM}", x.shape[2])


def _check(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    row_index: torch.Tensor,
    norm: str,
) -> None:
    _check_stream("x", x)
    batch, tokens, dim = x.shape
    require(norm in ("rms", "layer", "none"), "norm", "'rms', 'layer' or 'none'", repr(norm))
    if branch is not None:
        require_shape("branch", branch, x.shape, "the shape of x")
        require_dtype("branch", branch, (x.dtype,))
        require_last_contiguous("branch", branch)
        require_device("branch", branch, x.device, "x")
    rows = scale.shape[1] if scale.dim() == 3 else None
    for name, tensor in {"scale": scale, "shift": shift, "gate": gate}.items():
        if tensor is None:
            continue
        require_shape(name, tensor, (batch, rows, dim), "[batch, rows, dim]")
        require_dtype(name, tensor, _FLOATS)
        require_last_contiguous(name, tensor)
        require_device(name, tensor, x.device, "x")
    require(scale.shape[1] > 0, "scale.shape[1]", "at least 1 modulation row", scale.shape[1])
    require_shape("row_index", row_index, (batch, tokens), "[batch, tokens]")
    require_dtype("row_index", row_index, (torch.int32,))
    require(row_index.is_contiguous(), "row_index", "contiguous", f"strides {tuple(row_index.stride())}")
    require_device("row_index", row_index, x.device, "x")


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""
    x = torch.empty((1, 2080, 3072), dtype=torch.bfloat16, device="meta")
    wide = torch.empty((1, 2080, 14336), dtype=torch.bfloat16, device="meta")
    rows = torch.empty((1, 3, 6, 3072), dtype=torch.float32, device="meta")
    gate, scale, shift = rows[:, :, 0], rows[:, :, 1], rows[:, :, 2]
    index = torch.empty((1, 2080), dtype=torch.int32, device="meta")
    x8, s8 = _fp8_like(x)
    w8, ws8 = _fp8_like(wide)
    return {
        "modulation/rms bf16": _launch(x, None, None, x, None, None, scale, shift, index, "rms", 1e-6),
        "modulation/layer bf16": _launch(x, None, None, x, None, None, scale, shift, index, "layer", 1e-6),
        "modulation/gated rms bf16": _launch(x, x, None, x, x, gate, scale, shift, index, "rms", 1e-6),
        "modulation/gated rms fp8": _launch(x8, x, s8, x, x, gate, scale, shift, index, "rms", 1e-6),
        "modulation/quantize fp8": _launch(w8, None, ws8, wide, None, None, None, None, None, "none", 0.0),
    }
