"""The arguments of joint attention, and what is required of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._shared.checks import require, require_contiguous, require_dtype, require_shape, require_tensor
from .._shared.compat import FP8

HEAD_DIMS = (64, 128)
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
#: The kernel unrolls its loop over segments; the model has five.
MAX_SEGMENTS = 8
#: A tensor copy starts on a 16-byte boundary, and one row of fp8 values holds a byte for each slot.
FP8_ALIGNMENT = 16


class AttentionArgs(NamedTuple):
    """Arguments of one call: fp8 if ``q`` is, with three scales. ``out`` and ``lse`` are written."""

    q: Tensor
    k: Tensor
    v: Tensor
    segments: Tensor
    softmax_scale: float | None = None
    q_scale: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    out: Tensor | None = None
    lse: Tensor | None = None

    @property
    def scale(self) -> float:
        """The factor on q k^T: ``softmax_scale`` or its default."""
        return self.q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale


def check(args: AttentionArgs) -> None:
    """Require arguments that fit, in 16 bits or wider."""
    _check(args, FLOATS, (args.k.shape, "the shape of k"))


def check_fp8(args: AttentionArgs, out_dtype: torch.dtype) -> None:
    """Require arguments that fit, in fp8 with a scale per head."""
    q, k = args.q, args.k
    shape = (k.shape[0], *k.shape[2:], k.shape[1]) if k.dim() == 4 else (None, None, None, None)
    _check(args, (FP8,), (shape, "[batch, kv_heads, head_dim, capacity]"))
    limit = f"a multiple of {FP8_ALIGNMENT} slots in fp8"
    require(k.shape[1] % FP8_ALIGNMENT == 0, "capacity", limit, k.shape[1], "pad the cache")
    require(out_dtype in FLOATS[:3], "out_dtype", "bfloat16, float16 or float32", out_dtype)
    heads_of_q = (q.shape[0], q.shape[2]), "[batch, heads]"
    heads_of_k = (k.shape[0], k.shape[2]), "[batch, heads]"
    require_tensor("q_scale", args.q_scale, heads_of_q, (torch.float32,), ("q", q))
    require_tensor("k_scale", args.k_scale, heads_of_k, (torch.float32,), ("q", q))
    require_tensor("v_scale", args.v_scale, heads_of_k, (torch.float32,), ("q", q))


def _check(
    args: AttentionArgs, dtypes: tuple[torch.dtype, ...], v_shape: tuple[tuple[int | None, ...], str]
) -> None:
    q, k, segments = args.q, args.k, args.segments
    require_shape("q", q, (None, None, None, None), "[batch, q_len, heads, head_dim]")
    require_dtype("q", q, dtypes)
    batch, _, num_heads, head_dim = q.shape
    require(q.numel() > 0, "q", "non-empty", list(q.shape))
    require_contiguous("q", q)
    require(head_dim in HEAD_DIMS, "head_dim", "64 or 128", head_dim)
    k_shape = (batch, None, None, head_dim), "[batch, capacity, kv_heads, head_dim]"
    require_tensor("k", k, k_shape, (q.dtype,), ("q", q))
    num_kv_heads = k.shape[2]
    require(k.numel() > 0, "k", "non-empty", list(k.shape))
    require(num_heads % num_kv_heads == 0, "kv_heads", f"a divisor of {num_heads} (heads of q)", num_kv_heads)
    require_tensor("v", args.v, v_shape, (q.dtype,), ("q", q))
    segments_shape = (batch, None, 2), "[batch, num_segments, 2]"
    require_tensor("segments", segments, segments_shape, (torch.int32,), ("q", q))
    num_segments = segments.shape[1]
    require(1 <= num_segments <= MAX_SEGMENTS, "num_segments", f"between 1 and {MAX_SEGMENTS}", num_segments)
    require(args.scale > 0, "softmax_scale", "positive", args.scale)
