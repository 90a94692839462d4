"""Joint attention on fp8 e4m3 operands, through the same kernel."""

import torch
from torch import Tensor

from .._shared.dispatch import Backend, use_triton
from .arguments import FP8_ALIGNMENT, AttentionArgs, check_fp8
from .interface import operator
from .reference import aligned_segments, attend


def joint_attention_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    *,
    softmax_scale: float | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: Backend = "auto",
) -> Tensor:
    """Attend in 8 bits: e4m3 queries, keys and values with one scale per head, fp32 accumulation.

    Args:
        q: [batch, q_len, heads, head_dim] float8_e4m3fn, contiguous; represents ``q * q_scale``.
        k: [batch, capacity, kv_heads, head_dim] float8_e4m3fn, contiguous.
        v: [batch, kv_heads, head_dim, capacity] float8_e4m3fn, contiguous; transposed, because Hopper's 8-bit
            matrix instructions read both operands along the contracted dimension. capacity is a multiple
            of 16.
        segments: as in :func:`.joint_attention`, with starts that are multiples of 16
            (``segment_table(..., alignment=16)``); other starts are rounded down.
        q_scale: [batch, heads] fp32, positive.
        k_scale: [batch, kv_heads] fp32, positive.
        v_scale: [batch, kv_heads] fp32.
        softmax_scale: positive factor on q k^T; ``head_dim ** -0.5`` by default.
        out_dtype: bf16, fp16 or fp32.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        [batch, q_len, heads, head_dim] in ``out_dtype``.

    Raises:
        KernelArgumentError: a shape, dtype, layout or device does not match, or the scale is not positive.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: 8-bit attention as in arXiv 2407.08608 section 3.3, here with one scale per head and with
    probabilities scaled by a fixed power of two.
    """
    args = AttentionArgs(q, k, v, segments, softmax_scale, q_scale, k_scale, v_scale)
    check_fp8(args, out_dtype)
    if not use_triton(backend, q, k, v):
        queries = q.float() * q_scale[:, None, :, None]
        keys = k.float() * k_scale[:, None, :, None]
        values = (v.float() * v_scale[:, :, None, None]).permute(0, 3, 1, 2)
        table = aligned_segments(segments, FP8_ALIGNMENT)
        return attend(queries, keys, values, table, args.scale).to(out_dtype)
    out = torch.empty(q.shape, dtype=out_dtype, device=q.device)
    operator(args._replace(out=out))
    return out
