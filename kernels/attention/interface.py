"""Joint attention: checks, choice of the backend, and the registered operator."""

from typing import Literal, overload

import torch
from torch import Tensor

from .._shared.dispatch import Backend, use_triton
from .._shared.operator import Operator
from .arguments import AttentionArgs, check
from .forward import launch
from .reference import attend, joint_attention_reference

operator = Operator("joint_attention", AttentionArgs, launch, mutates=("out", "lse"))


@overload
def joint_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor,
    *,
    softmax_scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: Backend = ...,
) -> Tensor: ...
@overload
def joint_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor,
    *,
    softmax_scale: float | None = ...,
    return_lse: Literal[True],
    backend: Backend = ...,
) -> tuple[Tensor, Tensor]: ...
def joint_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor,
    *,
    softmax_scale: float | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from a chunk's tokens to the valid segments of the KV cache.

    Args:
        q: [batch, q_len, heads, head_dim], contiguous; bf16, fp16 or fp32 (fp64 on the PyTorch path);
            head_dim 64 or 128.
        k: [batch, capacity, kv_heads, head_dim], contiguous, q.dtype; kv_heads divides heads. Slots outside
            the segments may hold any value, including NaN.
        v: as ``k``.
        segments: [batch, num_segments, 2] int32, (start, length) in slots, from :func:`segment_table`;
            at most 8 segments. Values that change on the device are clamped into the buffer. On the Triton
            path, slots in two overlapping segments count twice.
        softmax_scale: positive factor on q k^T; ``head_dim ** -0.5`` by default.
        return_lse: also return the log-sum-exp.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``. Only the PyTorch path computes gradients.

    Returns:
        [batch, q_len, heads, head_dim] in q.dtype; with ``return_lse`` also [batch, heads, q_len] fp32, the
        natural logarithm of the softmax denominator of the scaled scores. A row whose segments are all empty
        gives 0 and -inf.

    Raises:
        KernelArgumentError: a shape, dtype, layout or device does not match, or the scale is not positive.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    args = AttentionArgs(q, k, v, segments, softmax_scale)
    check(args)
    if not use_triton(backend, q, k, v):
        if return_lse:
            return joint_attention_reference(q, k, v, segments, args.scale)
        return attend(q, k, v, segments, args.scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not return_lse:
        operator(args._replace(out=out))
        return out
    lse = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32, device=q.device)
    operator(args._replace(out=out, lse=lse))
    return out, lse
