"""From the fused QKV projection to a rotated q and a filled KV cache, in one launch.

Fused, for each token and head: ``y = x * rsqrt(mean(x^2) + eps) * weight`` and the rotation of y's pairs for
q and k; v unchanged; q stored to its own tensor, k and v to the slots of the KV cache that the slot table
names. The fp8 form divides by a scale per head, converts to e4m3 and writes v transposed, because the fp8
matrix instructions need the dimension they contract to be contiguous in memory.

Bytes that must move for N tokens, H query heads, G key heads of D elements of e bytes: N (H + 2 G) D e read
and as much written (a byte an element when quantised), plus 4 N D bytes of tables. The tables are read once,
because a program keeps its tokens' rows for all heads. About 10 FLOP an element: always memory-bound.
"""

import torch

from .._shared.compat import FP8, tl, triton
from .._shared.dispatch import Launch
from .arguments import QkvPrologueArgs


@triton.jit
def _load_halves(x_ptr, row, col, mask, HALF: tl.constexpr):
    # The projection is read once. Evicting it first keeps q, k and v in L2, which attention reads next.
    at = x_ptr + row[:, None] + col[None, :]
    first = tl.load(at, mask=mask[:, None], other=0.0, eviction_policy="evict_first")
    second = tl.load(at + HALF, mask=mask[:, None], other=0.0, eviction_policy="evict_first")
    return first, second


@triton.jit
def _to_fp8(x, scale):
    return tl.minimum(tl.maximum(x / scale, -448.0), 448.0).to(tl.float8e4nv)


@triton.jit
def _rotate_heads(
    out_ptr,
    x_ptr,
    weight_ptr,
    scale_ptr,
    out_row,
    x_row,
    mask,
    head,
    cos,
    sin,
    eps,
    out_stride_h,
    HEADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    ROWS: tl.constexpr = cos.shape[0]
    HALF: tl.constexpr = cos.shape[1]
    col = tl.arange(0, HALF)
    # Loaded in the shape of the tile, so that no exchange through shared memory is needed.
    weight_at = tl.broadcast_to(weight_ptr + col[None, :], (ROWS, HALF))
    weight_first = tl.load(weight_at).to(tl.float32)
    weight_second = tl.load(weight_at + HALF).to(tl.float32)
    x_row += head * (2 * HALF)
    first, second = _load_halves(x_ptr, x_row, col, mask & (head < HEADS), HALF)
    for start in tl.static_range(0, HEADS, BLOCK_H):
        present = mask & (start + head < HEADS)
        a, b = first.to(tl.float32), second.to(tl.float32)
        # Load the next heads before storing these: the compiler cannot move a load above a store.
        if start + BLOCK_H < HEADS:
            following = mask & (start + BLOCK_H + head < HEADS)
            first, second = _load_halves(x_ptr, x_row + (start + BLOCK_H) * (2 * HALF), col, following, HALF)
        factor = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)[:, None]
        a *= factor * weight_first
        b *= factor * weight_second
        y_first = a * cos - b * sin
        y_second = b * cos + a * sin
        if QUANTIZED:
            scale = tl.load(scale_ptr + start + head, mask=start + head < HEADS, other=1.0)[:, None]
            y_first = _to_fp8(y_first, scale)
            y_second = _to_fp8(y_second, scale)
        out_at = out_ptr + (out_row + (start + head) * out_stride_h)[:, None] + col[None, :]
        tl.store(out_at, y_first.to(out_ptr.dtype.element_ty), mask=present[:, None])
        tl.store(out_at + HALF, y_second.to(out_ptr.dtype.element_ty), mask=present[:, None])


@triton.jit
def _qkv_prologue_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    qkv_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    slots_ptr,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    tokens,
    capacity,
    eps,
    qkv_stride_b,
    qkv_stride_n,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    v_stride_d,
    NUM_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    pid = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    rope_programs = tl.cdiv(tokens, BLOCK_T)
    q_ptr += b * tokens * (NUM_HEADS * HEAD_DIM)
    k_ptr += b * k_stride_b
    v_ptr += b * v_stride_b
    qkv_ptr += b * qkv_stride_b
    slots_ptr += b * tokens
    if QUANTIZED:
        q_scale_ptr += b * NUM_HEADS
        k_scale_ptr += b * KV_HEADS
        v_scale_ptr += b * KV_HEADS
    if pid < rope_programs:
        # A row of the tile is one head of one token; the heads of a token are neighbours in memory.
        row = tl.arange(0, BLOCK_T * BLOCK_H)
        head = row % BLOCK_H
        n = pid * BLOCK_T + row // BLOCK_H
        present = n < tokens
        slot = tl.load(slots_ptr + n, mask=present, other=-1)
        stored = (slot >= 0) & (slot < capacity)
        n = n.to(tl.int64)
        col = tl.arange(0, HEAD_DIM // 2)
        table_at = n[:, None] * (HEAD_DIM // 2) + col[None, :]
        cos = tl.load(cos_ptr + table_at, mask=present[:, None], other=0.0)
        sin = tl.load(sin_ptr + table_at, mask=present[:, None], other=0.0)
        x_row = n * qkv_stride_n
        q_row = n * (NUM_HEADS * HEAD_DIM)
        _rotate_heads(
            q_ptr, qkv_ptr, q_norm_ptr, q_scale_ptr, q_row, x_row, present, head, cos, sin, eps,
            HEAD_DIM, NUM_HEADS, BLOCK_H, QUANTIZED,
        )  # fmt: skip
        k_row = slot.to(tl.int64) * k_stride_s
        x_ptr = qkv_ptr + NUM_HEADS * HEAD_DIM
        _rotate_heads(
            k_ptr, x_ptr, k_norm_ptr, k_scale_ptr, k_row, x_row, stored, head, cos, sin, eps,
            k_stride_h, KV_HEADS, BLOCK_H, QUANTIZED,
        )  # fmt: skip
    else:
        # Neighbouring programs take the heads of the same tokens, so together they read whole rows.
        start = (pid - rope_programs) // KV_HEADS * BLOCK_V
        v_head = (pid - rope_programs) % KV_HEADS
        t, d = tl.arange(0, BLOCK_V), tl.arange(0, HEAD_DIM)
        slots_ptr += start
        v_slot = tl.load(slots_ptr + t, mask=start + t < tokens, other=-1)
        v_stored = (v_slot >= 0) & (v_slot < capacity)
        x_ptr = qkv_ptr + (NUM_HEADS + KV_HEADS + v_head) * HEAD_DIM
        x_at = x_ptr + ((start + t).to(tl.int64) * qkv_stride_n)[:, None] + d[None, :]
        v = tl.load(x_at, mask=v_stored[:, None], other=0.0, eviction_policy="evict_first")
        v_ptr += v_head.to(tl.int64) * v_stride_h
        if not QUANTIZED:
            v_at = v_ptr + (v_slot.to(tl.int64) * v_stride_s)[:, None] + d[None, :]
            tl.store(v_at, v, mask=v_stored[:, None])
        else:
            scale = tl.load(v_scale_ptr + v_head)
            v_row = v_ptr + (d.to(tl.int64) * v_stride_d)[:, None]
            base = tl.load(slots_ptr)
            aligned = (base >= 0) & (base % 16 == 0) & (base <= capacity - BLOCK_V)
            # Quantise within each branch: if done before, Triton 3.6 holds the tile twice, once per store.
            if aligned & (tl.max((v_slot != base + t).to(tl.int32), 0) == 0):
                # Slots are consecutive, as those of a chunk are: 16 tokens of a row make one store.
                v_at = v_row + (tl.multiple_of(base, 16) + t)[None, :]
                tl.store(v_at, _to_fp8(v.to(tl.float32), scale).T)
            else:
                # In one dimension, so that in every Triton neighbouring threads take the tokens of a row.
                shape: tl.constexpr = (HEAD_DIM * BLOCK_V,)
                byte_at = tl.reshape(v_row + v_slot[None, :], shape)
                mask = tl.reshape(tl.broadcast_to(v_stored[None, :], (HEAD_DIM, BLOCK_V)), shape)
                tl.store(byte_at, tl.reshape(_to_fp8(v.to(tl.float32), scale).T, shape), mask=mask)


def launch(args: QkvPrologueArgs) -> Launch:
    """Build the launch that writes ``args.q`` and the slots of both caches."""
    batch, tokens = args.slots.shape
    capacity, kv_heads, head_dim = args.k_cache.shape[1:]
    quantized = args.q_scale is not None
    # A tile gives each of 128 threads 8 elements of either half of a head: one 16-byte load of bf16 each.
    block_h = min(triton.next_power_of_2(args.num_heads), 8)
    block_t = 2048 // (head_dim * block_h)
    # For v four such loads are in flight; at head_dim 128 that makes 32 tokens, two 16-byte fp8 stores a row.
    block_v = 4096 // head_dim
    kernel_args = {
        "q_ptr": args.q,
        "k_ptr": args.k_cache,
        "v_ptr": args.v_cache,
        "qkv_ptr": args.qkv,
        "q_norm_ptr": args.q_norm,
        "k_norm_ptr": args.k_norm,
        "cos_ptr": args.cos,
        "sin_ptr": args.sin,
        "slots_ptr": args.slots,
        "q_scale_ptr": args.q_scale,
        "k_scale_ptr": args.k_scale,
        "v_scale_ptr": args.v_scale,
        "tokens": tokens,
        "capacity": capacity,
        "eps": args.eps,
        "NUM_HEADS": args.num_heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "QUANTIZED": quantized,
        "BLOCK_T": block_t,
        "BLOCK_H": block_h,
        "BLOCK_V": block_v,
    }
    v_axes = "bhds" if quantized else "bshd"
    for name, tensor, axes in (
        ("qkv", args.qkv, "bn"),
        ("k", args.k_cache, "bsh"),
        ("v", args.v_cache, v_axes),
    ):
        strides = zip(axes, tensor.stride())
        kernel_args |= {f"{name}_stride_{axis}": stride for axis, stride in strides}
    programs = triton.cdiv(tokens, block_t) + triton.cdiv(tokens, block_v) * kv_heads
    return Launch(_qkv_prologue_kernel, (programs, batch), kernel_args, num_warps=4, device=args.qkv.device)


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    wide = torch.float32
    qkv, norm, table = empty(1, 2080, 72 * 128), empty(128), empty(2080, 64, dtype=wide)
    slots, scale = empty(1, 2080, dtype=torch.int32), empty(1, 24, dtype=wide)
    q, cache = empty(1, 2080, 24, 128), empty(1, 6432, 24, 128)
    q8, k8 = empty(*q.shape, dtype=FP8), empty(*cache.shape, dtype=FP8)
    v8 = k8.view(1, 24, 128, 6432)
    args = QkvPrologueArgs(qkv, norm, norm, table, table, slots, cache, cache, num_heads=24, q=q)
    quantized = args._replace(k_cache=k8, v_cache=v8, q=q8)
    return {
        "qkv_prologue/rope bf16": launch(args),
        "qkv_prologue/rope fp8": launch(quantized._replace(q_scale=scale, k_scale=scale, v_scale=scale)),
    }
