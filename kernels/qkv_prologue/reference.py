"""The QKV prologue in plain PyTorch: the reference of the kernel, and the path used without Triton."""

import torch

from .._shared.compat import FP8, FP8_MAX
from .arguments import QkvPrologueArgs


def qkv_prologue_reference(args: QkvPrologueArgs) -> torch.Tensor:
    """Compute :func:`.qkv_prologue` or, given scales, :func:`.qkv_prologue_fp8` in plain PyTorch.

    Returns q and writes to ``args.k_cache`` and ``args.v_cache``. Computes in fp32 or, for fp64 input, in
    fp64. Gradients reach ``qkv`` through q and the 16-bit caches; the fp8 form has none.
    """
    qkv, slots, k_cache, v_cache, num_heads = args.qkv, args.slots, args.k_cache, args.v_cache, args.num_heads
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.to(wide).reshape(*slots.shape, -1, head_dim)
    q, k, v = heads[:, :, :num_heads], heads[:, :, num_heads:-kv_heads], heads[:, :, -kv_heads:]
    cos, sin = args.cos.to(wide)[:, None], args.sin.to(wide)[:, None]

    def rotate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + args.eps) * weight.to(wide)
        a, b = y.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    q, k = rotate(q, args.q_norm), rotate(k, args.k_norm)
    if args.q_scale is None or args.k_scale is None or args.v_scale is None:
        store_rows(k_cache, k.to(k_cache.dtype), slots)
        store_rows(v_cache, v.to(v_cache.dtype), slots)
        return q.to(qkv.dtype)

    def quantize(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x.detach() / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)

    # PyTorch can gather and select bytes, but not fp8 values.
    byte = torch.uint8
    store_rows(k_cache.view(byte), quantize(k, args.k_scale).view(byte), slots)
    store_rows(v_cache.view(byte).permute(0, 3, 1, 2), quantize(v, args.v_scale).view(byte), slots)
    return quantize(q, args.q_scale)


def store_rows(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Write rows [batch, tokens, ...] to their slots [batch, tokens] int32 of cache [batch, capacity, ...].

    A token whose slot is outside the cache is not stored. Both have the same dtype, which may be any.
    """
    capacity = cache.shape[1]
    if slots.device.type == "cpu" and not torch.compiler.is_compiling():
        # Slots in host memory can be read, so that only the rows in use are touched.
        row, column = ((slots >= 0) & (slots < capacity)).nonzero(as_tuple=True)
        cache[row, slots[row, column].long()] = rows[row, column]
        return
    store_by_index(cache, rows, slots)


def store_by_index(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Store without reading slots on the host, so that the call can be captured; only rows are moved."""
    batch, tokens = slots.shape
    if tokens == 0:
        return
    valid = (slots >= 0) & (slots < cache.shape[1])
    # A token that is not stored repeats one that is. If no token is stored, all write what is there already.
    some, stored = valid.max(1, keepdim=True)
    token = torch.where(valid, torch.arange(tokens, device=slots.device), stored)
    row = torch.arange(batch, device=slots.device)[:, None]
    slot = torch.where(some, slots.gather(1, token), 0).long()
    values = torch.where(some[..., None, None], rows[row, token], cache[row, slot])
    # Each repetition would pass on the whole gradient, so only one writer of a slot keeps its graph.
    writer = torch.where(some, valid, torch.arange(tokens, device=slots.device) == 0)
    cache[row, slot] = torch.where(writer[..., None, None], values, values.detach())
