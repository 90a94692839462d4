"""The arguments of the QKV prologue, and what is required of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._shared.checks import require, require_dtype, require_last_contiguous, require_shape, require_tensor
from .._shared.compat import FP8

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class QkvPrologueArgs(NamedTuple):
    """Arguments of one call: fp8 if it has scales. ``k_cache``, ``v_cache`` and ``q`` are written."""

    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    k_cache: Tensor
    v_cache: Tensor
    num_heads: int
    eps: float = 1e-6
    q_scale: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    q: Tensor | None = None


def check(args: QkvPrologueArgs, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """Require arguments that fit, with ``qkv`` in one of ``dtypes``."""
    qkv, k_cache, num_heads = args.qkv, args.k_cache, args.num_heads
    quantized = args.q_scale is not None
    require_shape("qkv", qkv, (None, None, None), "[batch, tokens, (num_heads + 2 * kv_heads) * head_dim]")
    require(qkv.numel() > 0, "qkv", "non-empty", list(qkv.shape))
    require_dtype("qkv", qkv, dtypes)
    require_last_contiguous("qkv", qkv)
    batch, tokens, width = qkv.shape
    require_shape("k_cache", k_cache, (batch, None, None, None), "[batch, capacity, kv_heads, head_dim]")
    capacity, kv_heads, head_dim = k_cache.shape[1:]
    require(capacity > 0, "k_cache.shape[1]", "at least 1 slot", capacity)
    require(head_dim in (64, 128), "k_cache.shape[3]", "a head_dim of 64 or 128", head_dim)
    fits = num_heads > 0 and kv_heads > 0 and num_heads % kv_heads == 0
    require(fits, "num_heads", f"a positive multiple of k_cache's {kv_heads} heads", num_heads)
    expected = (num_heads + 2 * kv_heads) * head_dim
    require(width == expected, "qkv.shape[2]", f"(num_heads + 2 * kv_heads) * head_dim = {expected}", width)
    cache_dtype = FP8 if quantized else qkv.dtype
    k_shape = k_cache.shape, "[batch, capacity, kv_heads, head_dim]"
    v_shape = k_cache.shape, "the shape of k_cache"
    if quantized:
        v_shape = torch.Size((batch, kv_heads, head_dim, capacity)), "[batch, kv_heads, head_dim, capacity]"
    like = "qkv", qkv
    require_tensor("k_cache", k_cache, k_shape, (cache_dtype,), like, contiguous="last")
    require_tensor("v_cache", args.v_cache, v_shape, (cache_dtype,), like, contiguous="last")
    span = kv_heads * k_cache.stride(2)
    require(span < 2**31, "k_cache.stride(2) * kv_heads", "below 2**31", span, "keep a slot's heads together")
    table = (tokens, head_dim // 2), "[tokens, head_dim / 2]"
    require_tensor("q_norm", args.q_norm, ((head_dim,), "[head_dim]"), FLOATS, like)
    require_tensor("k_norm", args.k_norm, ((head_dim,), "[head_dim]"), FLOATS, like)
    require_tensor("cos", args.cos, table, (torch.float32,), like)
    require_tensor("sin", args.sin, table, (torch.float32,), like)
    require_tensor("slots", args.slots, ((batch, tokens), "[batch, tokens]"), (torch.int32,), like)
    if quantized:
        of_q, of_k = ((batch, num_heads), "[batch, num_heads]"), ((batch, kv_heads), "[batch, kv_heads]")
        require_tensor("q_scale", args.q_scale, of_q, (torch.float32,), like)
        require_tensor("k_scale", args.k_scale, of_k, (torch.float32,), like)
        require_tensor("v_scale", args.v_scale, of_k, (torch.float32,), like)
