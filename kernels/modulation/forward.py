"""Norm, adaptive modulation and gated residual in one pass over the tokens.

Fused: ``x' = x + gate * branch``; ``y = norm(x') * (1 + scale) + shift``; and, if an fp8 GEMM follows, the
per-token quantisation of y. Each token reads its gate, scale and shift from the modulation row that its
segment selects (adaLN-single; conditioning segments have t = 0 and so use another row than the chunk).

Bytes that must move for N tokens of width d and elements of e bytes: norm_modulate 2 N d e; with the gated
residual 4 N d e (x, branch in; x', y out); the rows are few and stay in cache. About 10 FLOP an element:
always memory-bound.
"""

import torch

from .._shared.compat import FP8, tl, triton
from .._shared.dispatch import Launch
from .arguments import ModulationArgs


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
    # The streams are read once. Evicting them first keeps the modulation rows, which all tokens read, in L1.
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


def launch(args: ModulationArgs) -> Launch:
    """Build the launch that writes those of ``args.residual``, ``out`` and ``token_scale`` that are given."""
    batch, tokens, dim = args.x.shape
    block = triton.next_power_of_2(dim)
    kernel_args = {
        "out_ptr": args.out,
        "residual_ptr": args.residual,
        "token_scale_ptr": args.token_scale,
        "x_ptr": args.x,
        "branch_ptr": args.branch,
        "gate_ptr": args.gate,
        "scale_ptr": args.scale,
        "shift_ptr": args.shift,
        "row_index_ptr": args.row_index,
        "num_rows": args.scale.shape[1] if args.scale is not None else 1,
        "eps": args.eps,
        "DIM": dim,
        "NORM": args.norm,
        "GATED": args.branch is not None,
        "MODULATED": args.scale is not None,
        "QUANTIZED": args.token_scale is not None,
        "BLOCK_D": block,
    }
    for name, axis in {"x": "n", "branch": "n", "gate": "r", "scale": "r", "shift": "r"}.items():
        tensor: torch.Tensor | None = getattr(args, name)
        strides = (tensor.stride(0), tensor.stride(1)) if tensor is not None else (0, 0)
        kernel_args[f"{name}_stride_b"], kernel_args[f"{name}_stride_{axis}"] = strides
    # 16 elements a thread: two 16-byte loads of bf16 in flight from each stream.
    num_warps = min(max(block // 512, 1), 16)
    return Launch(_modulation_kernel, (tokens, batch), kernel_args, num_warps, device=args.x.device)


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""
    x = torch.empty((1, 2080, 3072), dtype=torch.bfloat16, device="meta")
    wide = torch.empty((1, 2080, 14336), dtype=torch.bfloat16, device="meta")
    rows = torch.empty((1, 3, 6, 3072), dtype=torch.float32, device="meta")
    gate, scale, shift = rows[:, :, 0], rows[:, :, 1], rows[:, :, 2]
    index = torch.empty((1, 2080), dtype=torch.int32, device="meta")
    token_scale = torch.empty((1, 2080), dtype=torch.float32, device="meta")
    x8, wide8 = (torch.empty(each.shape, dtype=FP8, device="meta") for each in (x, wide))
    plain = ModulationArgs(x, scale=scale, shift=shift, row_index=index, out=x)
    gated = plain._replace(branch=x, gate=gate, residual=x)
    return {
        "modulation/rms bf16": launch(plain),
        "modulation/layer bf16": launch(plain._replace(norm="layer")),
        "modulation/gated rms bf16": launch(gated),
        "modulation/gated rms fp8": launch(gated._replace(out=x8, token_scale=token_scale)),
        "modulation/quantize fp8": launch(
            ModulationArgs(wide, norm="none", eps=0.0, out=wide8, token_scale=token_scale)
        ),
    }
