"""From the fused QKV projection to a rotated q and a filled KV memory, in one launch.

Fused, for each token and head: ``y = x * rsqrt(mean(x^2) + eps) * weight`` and the rotation of y's pairs for
q and k; v as it is; q to its own tensor, k and v to the slots of the KV memory that the slot table names.
The fp8 form divides by a scale of the head, converts to e4m3 and writes v transposed, since the fp8 matrix
instructions want the dimension they contract adjacent in memory.

Bytes that must move for N tokens, H query heads, G key heads of D elements of e bytes: N (H + 2 G) D e read
and as much written (a byte an element when quantised), plus 4 N D bytes of tables, read once since a program
keeps its tokens' rows for all heads. About 10 FLOP an element: memory-bound everywhere.
"""

import torch

from ._checks import (
    require,
    require_contiguous,
    require_device,
    require_dtype,
    require_last_contiguous,
    require_shape,
)
from ._compat import FP8, tl, triton
from ._dispatch import Backend, Launch, use_triton
from .qkv_torch import qkv_prologue_reference

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@triton.jit
def _load_halves(x_ptr, row, col, mask, HALF: tl.constexpr):
    # The projection is read once; evicting it first leaves L2 to q, k and v, which attention reads next.
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
    # Loaded at the shape of the tile, so that no exchange through shared memory is needed to spread them.
    weight_at = tl.broadcast_to(weight_ptr + col[None, :], (ROWS, HALF))
    weight_first = tl.load(weight_at).to(tl.float32)
    weight_second = tl.load(weight_at + HALF).to(tl.float32)
    x_row += head * (2 * HALF)
    first, second = _load_halves(x_ptr, x_row, col, mask & (head < HEADS), HALF)
    for start in tl.static_range(0, HEADS, BLOCK_H):
        present = mask & (start + head < HEADS)
        a, b = first.to(tl.float32), second.to(tl.float32)
        # The next heads are asked for before these are stored: a load cannot be moved above a store.
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
def _qkv_kernel(
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
            # Quantised within each branch: before it, Triton 3.6 would hold the tile once for either store.
            if aligned & (tl.max((v_slot != base + t).to(tl.int32), 0) == 0):
                # Slots follow one another, as those of a chunk do: 16 tokens of a row make one store.
                v_at = v_row + (tl.multiple_of(base, 16) + t)[None, :]
                tl.store(v_at, _to_fp8(v.to(tl.float32), scale).T)
            else:
                # In one dimension, so that every Triton lays neighbouring threads along the tokens of a row.
                shape: tl.constexpr = (HEAD_DIM * BLOCK_V,)
                byte_at = tl.reshape(v_row + v_slot[None, :], shape)
                mask = tl.reshape(tl.broadcast_to(v_stored[None, :], (HEAD_DIM, BLOCK_V)), shape)
                tl.store(byte_at, tl.reshape(_to_fp8(v.to(tl.float32), scale).T, shape), mask=mask)


def qkv_prologue(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Normalise and rotate q and k, return q, and write k and v to their slots of the KV memory.

    Args:
        qkv: [batch, tokens, (num_heads + 2 * kv_heads) * head_dim], the projection's q, k and v heads;
            bf16, fp16 or fp32 (fp64 on the PyTorch path).
        q_norm: [head_dim], RMSNorm weight of q, any float dtype.
        k_norm: [head_dim], RMSNorm weight of k, any float dtype.
        cos: [tokens, head_dim / 2] fp32, see :func:`rope_tables`; the pairs are (i, i + head_dim / 2).
        sin: as ``cos``.
        slots: [batch, tokens] int32, the slot each token's k and v go to; a token whose slot lies outside
            [0, capacity) is not stored. Of tokens that share a slot any may win, in k and v apart.
        k_cache: [batch, capacity, kv_heads, head_dim] in qkv.dtype, written in place; other slots stay.
        v_cache: as ``k_cache``.
        num_heads: query heads; a multiple of kv_heads.
        eps: added to the mean square.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        q: [batch, tokens, num_heads, head_dim] in qkv.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: RMSNorm, arXiv 1910.07467 equation 4; rotary embedding, arXiv 2104.09864 section 3.4.2.
    """
    head_dim = _check(qkv, q_norm, k_norm, cos, sin, slots, k_cache, v_cache, None, num_heads, backend)
    if not use_triton(backend, qkv, q_norm, k_norm, cos, sin, k_cache, v_cache):
        return qkv_prologue_reference(
            qkv, q_norm, k_norm, cos, sin, slots, k_cache, v_cache, num_heads=num_heads, eps=eps
        )
    q = torch.empty((*qkv.shape[:2], num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    _qkv_op(q, k_cache, v_cache, qkv, q_norm, k_norm, cos, sin, slots, None, None, None, eps)
    return q


def qkv_prologue_fp8(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_scale: torch.Tensor,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Do :func:`qkv_prologue` with q, k and v in fp8 e4m3: ``clamp(x / scale, -448, 448)``.

    The scales are given, not measured: rows written at different times share one scale, and normalised
    heads have a range that is known beforehand. Of the arguments only these differ:

    Args:
        k_cache: [batch, capacity, kv_heads, head_dim] float8_e4m3fn, written in place.
        v_cache: [batch, kv_heads, head_dim, capacity] float8_e4m3fn, transposed, written in place; in 16-byte
            stores where capacity and the start of a run of slots are multiples of 16, else byte by byte.
        q_scale: [batch, num_heads] fp32, above 0.
        k_scale: [batch, kv_heads] fp32, above 0.
        v_scale: as ``k_scale``.

    Returns:
        q: [batch, tokens, num_heads, head_dim] float8_e4m3fn.

    Errors are those of :func:`qkv_prologue`.
    """
    scales = (q_scale, k_scale, v_scale)
    head_dim = _check(qkv, q_norm, k_norm, cos, sin, slots, k_cache, v_cache, scales, num_heads, backend)
    if not use_triton(backend, qkv, q_norm, k_norm, cos, sin, k_cache, v_cache):
        return qkv_prologue_reference(
            qkv, q_norm, k_norm, cos, sin, slots, k_cache, v_cache, *scales, num_heads=num_heads, eps=eps
        )
    q = torch.empty((*qkv.shape[:2], num_heads, head_dim), dtype=FP8, device=qkv.device)
    _qkv_op(q, k_cache, v_cache, qkv, q_norm, k_norm, cos, sin, slots, *scales, eps)
    return q


def _launch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    q_scale: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    eps: float,
) -> Launch:
    batch, tokens, num_heads, head_dim = q.shape
    capacity, kv_heads = k_cache.shape[1:3]
    quantized = q_scale is not None
    # A tile gives each of 128 threads 8 elements of either half of a head: one 16-byte load of bf16 each.
    block_h = min(triton.next_power_of_2(num_heads), 8)
    block_t = 2048 // (head_dim * block_h)
    # For v four such loads are in flight; at head_dim 128 that makes 32 tokens, two 16-byte fp8 stores a row.
    block_v = 4096 // head_dim
    args = {
        "q_ptr": q,
        "k_ptr": k_cache,
        "v_ptr": v_cache,
        "qkv_ptr": qkv,
        "q_norm_ptr": q_norm,
        "k_norm_ptr": k_norm,
        "cos_ptr": cos,
        "sin_ptr": sin,
        "slots_ptr": slots,
        "q_scale_ptr": q_scale,
        "k_scale_ptr": k_scale,
        "v_scale_ptr": v_scale,
        "tokens": tokens,
        "capacity": capacity,
        "eps": eps,
        "NUM_HEADS": num_heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "QUANTIZED": quantized,
        "BLOCK_T": block_t,
        "BLOCK_H": block_h,
        "BLOCK_V": block_v,
    }
    axes = (("qkv", qkv, "bn"), ("k", k_cache, "bsh"), ("v", v_cache, "bhds" if quantized else "bshd"))
    for name, tensor, letters in axes:
        args |= {f"{name}_stride_{axis}": stride for axis, stride in zip(letters, tensor.stride())}
    programs = triton.cdiv(tokens, block_t) + triton.cdiv(tokens, block_v) * kv_heads
    return Launch(_qkv_kernel, (programs, batch), args, num_warps=4, device=qkv.device)


@torch.library.custom_op("streamchar::qkv", mutates_args=("q", "k_cache", "v_cache"))
def _qkv_op(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    q_scale: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    eps: float,
) -> None:
    _launch(q, k_cache, v_cache, qkv, q_norm, k_norm, cos, sin, slots, q_scale, k_scale, v_scale, eps).run()


@_qkv_op.register_fake
def _(*args: object) -> None:
    return None


def _check(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    num_heads: int,
    backend: Backend,
) -> int:
    """Check the arguments of either form (``scales`` makes it fp8) and return head_dim."""
    require_shape("qkv", qkv, (None, None, None), "[batch, tokens, (num_heads + 2 * kv_heads) * head_dim]")
    require(qkv.numel() > 0, "qkv", "non-empty", list(qkv.shape))
    require_dtype("qkv", qkv, _FLOATS[:3] if backend == "triton" else _FLOATS)
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
    v_shape = k_cache.shape if scales is None else (batch, kv_heads, head_dim, capacity)
    v_spelled = "the shape of k_cache" if scales is None else "[batch, kv_heads, head_dim, capacity]"
    require_shape("v_cache", v_cache, v_shape, v_spelled)
    for name, cache in {"k_cache": k_cache, "v_cache": v_cache}.items():
        require_dtype(name, cache, (qkv.dtype if scales is None else FP8,))
        require_last_contiguous(name, cache)
        require_device(name, cache, qkv.device, "qkv")
    span = kv_heads * k_cache.stride(2)
    require(span < 2**31, "k_cache.stride(2) * kv_heads", "below 2**31", span, "keep a slot's heads together")

    def require_fit(name: str, x: torch.Tensor, shape: list[int], spelled: str, *dtypes: torch.dtype) -> None:
        require_shape(name, x, shape, spelled)
        require_dtype(name, x, dtypes)
        require_contiguous(name, x)
        require_device(name, x, qkv.device, "qkv")

    require_fit("q_norm", q_norm, [head_dim], "[head_dim]", *_FLOATS)
    require_fit("k_norm", k_norm, [head_dim], "[head_dim]", *_FLOATS)
    require_fit("cos", cos, [tokens, head_dim // 2], "[tokens, head_dim / 2]", torch.float32)
    require_fit("sin", sin, [tokens, head_dim // 2], "[tokens, head_dim / 2]", torch.float32)
    require_fit("slots", slots, [batch, tokens], "[batch, tokens]", torch.int32)
    if scales is not None:
        require_fit("q_scale", scales[0], [batch, num_heads], "[batch, num_heads]", torch.float32)
        require_fit("k_scale", scales[1], [batch, kv_heads], "[batch, kv_heads]", torch.float32)
        require_fit("v_scale", scales[2], [batch, kv_heads], "[batch, kv_heads]", torch.float32)
    return head_dim


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
    shared = (qkv, norm, norm, table, table, slots)
    return {
        "qkv/rope bf16": _launch(q, cache, cache, *shared, None, None, None, 1e-6),
        "qkv/rope fp8": _launch(q8, k8, v8, *shared, scale, scale, scale, 1e-6),
    }
