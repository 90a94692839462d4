"""The QKV prologue in plain PyTorch: what the kernels are tested against, and what runs without Triton."""

import torch

from ._compat import FP8, FP8_MAX


def qkv_prologue_reference(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_scale: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    *,
    num_heads: int,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Do :func:`.qkv.qkv_prologue` or, given scales, :func:`.qkv.qkv_prologue_fp8` in plain PyTorch.

    Computes in fp32 or, for fp64 input, in fp64. Gradients reach ``qkv`` through q and the bf16 caches; the
    fp8 form has none.
    """
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.to(wide).reshape(*slots.shape, -1, head_dim)
    q, k, v = heads[:, :, :num_heads], heads[:, :, num_heads:-kv_heads], heads[:, :, -kv_heads:]
    cos, sin = cos.to(wide)[:, None], sin.to(wide)[:, None]

    def rotate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
        a, b = y.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    q, k = rotate(q, q_norm), rotate(k, k_norm)
    if q_scale is None or k_scale is None or v_scale is None:
        store_rows(k_cache, k.to(k_cache.dtype), slots)
        store_rows(v_cache, v.to(v_cache.dtype), slots)
        return q.to(qkv.dtype)

    def quantize(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x.detach() / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)

    # PyTorch gathers and selects bytes, not fp8 values.
    byte = torch.uint8
    store_rows(k_cache.view(byte), quantize(k, k_scale).view(byte), slots)
    store_rows(v_cache.view(byte).permute(0, 3, 1, 2), quantize(v, v_scale).view(byte), slots)
    return quantize(q, q_scale)


def store_rows(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Write rows [batch, tokens, ...] to their slots [batch, tokens] int32 of cache [batch, capacity, ...].

    A token whose slot lies outside the cache is not stored. Any dtype, the same in both.
    """
    capacity = cache.shape[1]
    if slots.device.type == "cpu" and not torch.compiler.is_compiling():
        # Slots in host memory can be read, which saves touching the rest of the memory.
        row, column = ((slots >= 0) & (slots < capacity)).nonzero(as_tuple=True)
        cache[row, slots[row, column].long()] = rows[row, column]
        return
    store_by_index(cache, rows, slots)


def store_by_index(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Store with no value of the slots read on the host: it may be captured, and moves the rows alone."""
    batch, tokens = slots.shape
    if tokens == 0:
        return
    valid = (slots >= 0) & (slots < cache.shape[1])
    # A token that is not stored repeats one that is; where none is, all write what is there already.
    some, stored = valid.max(1, keepdim=True)
    token = torch.where(valid, torch.arange(tokens, device=slots.device), stored)
    row = torch.arange(batch, device=slots.device)[:, None]
    slot = torch.where(some, slots.gather(1, token), 0).long()
    values = torch.where(some[..., None, None], rows[row, token], cache[row, slot])
    # Every repetition would hand the whole gradient on: one writer of a slot does.
    writer = torch.where(some, valid, torch.arange(tokens, device=slots.device) == 0)
    cache[row, slot] = torch.where(writer[..., None, None], values, values.detach())
