"""Joint attention of a chunk's tokens over the segments of a fixed-address KV memory.

Queries are the chunk's video and audio tokens; keys and values lie in one buffer per layer, in segments
``[reference | sink | motion | video | audio]`` whose starts and lengths are read from a small int32 tensor on
the device, one row per batch row. A captured graph therefore serves the first chunk, which has no sink and
no motion, and every later one. Within and across segments attention is not causal.

The kernel walks the full BLOCK_N tiles of all segments in one pipelined loop without masks, then what is
left at the end of each segment in short masked tiles. Softmax is online (arXiv 2205.14135, algorithm 1), in
base 2.

FLOP: 4 q_len kv_len head_dim per head; bytes: q, k, v and out once each. At 2080 x 6432 tokens, 24 heads of
128 that is 1.6e11 FLOP for 0.1 GB: compute-bound. 8-bit keys and values are quantised once, where they are
written (:mod:`.qkv`), not here.
"""

from typing import Literal, overload

import torch

from ._checks import (
    require,
    require_aligned,
    require_contiguous,
    require_device,
    require_dtype,
    require_shape,
)
from ._compat import FP8, INTERPRETED, TensorDescriptor, tl, triton
from ._dispatch import Backend, Launch, use_triton
from ._math import LN_2, LOG2_E
from .attention_torch import aligned_segments, attend, joint_attention_reference
from .configs import AttentionConfig, attention_config

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
HEAD_DIMS = (64, 128)
#: The kernel unrolls over segments; eight leaves room beyond the five of the model.
MAX_SEGMENTS = 8
#: exp2 offset of fp8 probabilities: the largest becomes 2**8 of e4m3's 448, the smallest kept 2**-17 of it.
_FP8_SHIFT = 8.0
#: A tensor copy starts on a 16-byte boundary, and fp8 values lie slot by slot along the copied rows.
FP8_ALIGNMENT = 16


@triton.jit
def _segment(segments_ptr, s, capacity, ALIGNMENT: tl.constexpr):
    """Read segment s as (start, length), clamped into the buffer whatever the table says."""
    start = tl.load(segments_ptr + 2 * s)
    length = tl.load(segments_ptr + 2 * s + 1)
    start = tl.minimum(tl.maximum(start, 0), capacity) // ALIGNMENT * ALIGNMENT
    length = tl.minimum(tl.maximum(length, 0), capacity - start)
    return start, length


@triton.jit
def _row_of_tile(tile, first_tiles, shifts, STEP: tl.constexpr, NUM_SEGMENTS: tl.constexpr):
    """Map a tile's number over all segments to its first row: within a segment, tile * STEP + shift."""
    row = tile * STEP + shifts[0]
    for s in tl.static_range(1, NUM_SEGMENTS):
        row = tl.where(tile >= first_tiles[s], tile * STEP + shifts[s], row)
    return row


@triton.jit
def _load_v(desc, batch, head, row, capacity, num_kv_heads, HEAD_DIM: tl.constexpr, TRANSPOSED: tl.constexpr):
    if TRANSPOSED:
        return desc.load([(batch * num_kv_heads + head) * HEAD_DIM, row]).T
    else:
        return desc.load([batch * capacity + row, head * HEAD_DIM])


@triton.jit
def _scores(q, k, UPCAST: tl.constexpr):
    if UPCAST:
        return tl.dot(q.to(tl.float32), k.to(tl.float32).T, input_precision="ieee")
    else:
        return tl.dot(q, k.T, input_precision="ieee")


@triton.jit
def _softmax_step(acc, m_i, l_i, scores, v, scale, SHIFT: tl.constexpr, UPCAST: tl.constexpr):
    """Fold one tile of raw scores and its values into the running (acc, max, sum)."""
    m_new = tl.maximum(m_i, tl.max(scores, 1) * scale)
    p = tl.exp2(scores * scale - (m_new - SHIFT)[:, None])
    alpha = tl.exp2(m_i - m_new)
    l_i = l_i * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    p = p.to(v.dtype)
    if UPCAST:
        acc += tl.dot(p.to(tl.float32), v.to(tl.float32), input_precision="ieee")
    else:
        acc = tl.dot(p, v, acc, input_precision="ieee")
    return acc, m_new, l_i


@triton.jit
def _joint_attention_kernel(
    out_ptr,
    lse_ptr,
    q_desc,
    k_desc,
    v_desc,
    k_tail_desc,
    v_tail_desc,
    segments_ptr,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    softmax_scale,
    q_len,
    capacity,
    num_heads,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    STORE_LSE: tl.constexpr,
    QUANTIZED: tl.constexpr,
    SHIFT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
):
    # Full query tiles first, head by head, so that the programs in flight share the keys of few heads in L2;
    # the short last tile of every head comes at the end, to fill the SMs that the last wave leaves idle.
    pid = tl.program_id(0)
    batch = tl.program_id(1)
    full_q_tiles = q_len // BLOCK_M
    if pid < full_q_tiles * num_heads:
        head = pid // full_q_tiles
        q_start = (pid % full_q_tiles) * BLOCK_M
    else:
        head = pid - full_q_tiles * num_heads
        q_start = full_q_tiles * BLOCK_M
    kv_head = head // (num_heads // num_kv_heads)
    kv_row = batch * capacity
    kv_col = kv_head * HEAD_DIM
    segments_ptr += batch * NUM_SEGMENTS * 2

    scale = softmax_scale * LOG2_E
    if QUANTIZED:
        scale *= tl.load(q_scale_ptr + batch * num_heads + head)
        scale *= tl.load(k_scale_ptr + batch * num_kv_heads + kv_head)

    num_tiles = 0
    num_tails = 0
    first_tiles = ()
    first_tails = ()
    shifts = ()
    tail_shifts = ()
    ends = ()
    for s in tl.static_range(NUM_SEGMENTS):
        start, length = _segment(segments_ptr, s, capacity, ALIGNMENT)
        first_tiles = first_tiles + (num_tiles,)
        shifts = shifts + (start - num_tiles * BLOCK_N,)
        num_tiles += length // BLOCK_N
        rest = length % BLOCK_N
        first_tails = first_tails + (num_tails,)
        tail_shifts = tail_shifts + (start + length - rest - num_tails * TAIL_N,)
        ends = ends + (start + length,)
        num_tails += tl.cdiv(rest, TAIL_N)

    q = q_desc.load([batch * q_len + q_start, head * HEAD_DIM])
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)

    for tile in range(num_tiles):
        row = _row_of_tile(tile, first_tiles, shifts, BLOCK_N, NUM_SEGMENTS)
        k = k_desc.load([kv_row + row, kv_col])
        scores = _scores(q, k, UPCAST)
        v = _load_v(v_desc, batch, kv_head, row, capacity, num_kv_heads, HEAD_DIM, QUANTIZED)
        acc, m_i, l_i = _softmax_step(acc, m_i, l_i, scores, v, scale, SHIFT, UPCAST)

    # One flat loop again, not a loop per segment: with a nested loop here, ptxas serialises every matrix
    # instruction of the kernel (its note C7515). Short tiles, because a wide masked one takes a quarter more
    # registers.
    for tile in range(num_tails):
        row = _row_of_tile(tile, first_tails, tail_shifts, TAIL_N, NUM_SEGMENTS)
        end = _row_of_tile(tile, first_tails, ends, 0, NUM_SEGMENTS)
        in_segment = row + tl.arange(0, TAIL_N) < end
        k = k_tail_desc.load([kv_row + row, kv_col])
        scores = tl.where(in_segment[None, :], _scores(q, k, UPCAST), float("-inf"))
        v = _load_v(v_tail_desc, batch, kv_head, row, capacity, num_kv_heads, HEAD_DIM, QUANTIZED)
        # A zero probability does not silence a NaN in a slot that nobody has written: 0 * NaN is NaN.
        v = tl.where(in_segment[:, None], v, 0.0).to(v.dtype)
        acc, m_i, l_i = _softmax_step(acc, m_i, l_i, scores, v, scale, SHIFT, UPCAST)

    rows = q_start + tl.arange(0, BLOCK_M)
    valid = rows < q_len
    # Without a single key the sum is 0: the output is 0 and the log-sum-exp -inf.
    inverse = 1.0 / tl.where(l_i > 0, l_i, 1.0)
    if QUANTIZED:
        inverse *= tl.load(v_scale_ptr + batch * num_kv_heads + kv_head)
    acc *= inverse[:, None]
    token = (batch * q_len + rows).to(tl.int64)
    out_ptrs = out_ptr + (token[:, None] * num_heads + head) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None])
    if STORE_LSE:
        lse = (m_i + tl.log2(l_i) - SHIFT) * LN_2
        tl.store(lse_ptr + (batch * num_heads + head).to(tl.int64) * q_len + rows, lse, mask=valid)


@overload
def joint_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor,
    *,
    softmax_scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: Backend = ...,
) -> torch.Tensor: ...
@overload
def joint_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor,
    *,
    softmax_scale: float | None = ...,
    return_lse: Literal[True],
    backend: Backend = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def joint_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend from a chunk's tokens to the valid segments of the KV memory.

    Args:
        q: [batch, q_len, heads, head_dim], contiguous; bf16, fp16 or fp32 (fp64 on the PyTorch path);
            head_dim 64 or 128.
        k: [batch, capacity, kv_heads, head_dim], contiguous, q.dtype; kv_heads divides heads. Slots outside
            the segments may hold anything, NaN included.
        v: as ``k``.
        segments: [batch, num_segments, 2] int32, (start, length) in slots, from :func:`segment_table`;
            at most 8 segments. Values changed on the device later are clamped into the buffer; segments that
            overlap count their common slots twice on the Triton path.
        softmax_scale: positive factor on q k^T; ``head_dim ** -0.5`` by default.
        return_lse: also return the log-sum-exp.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``. Gradients flow through the PyTorch path.

    Returns:
        [batch, q_len, heads, head_dim] in q.dtype; with ``return_lse`` also [batch, heads, q_len] fp32, the
        natural logarithm of the softmax denominator of the scaled scores. A row whose segments are all empty
        gives 0 and -inf.

    Raises:
        KernelArgumentError: a shape, dtype, layout, device or the scale does not fit.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    scale = _check(q, k, v, segments, softmax_scale, _FLOATS)
    if not use_triton(backend, q, k, v):
        if return_lse:
            return joint_attention_reference(q, k, v, segments, scale)
        return attend(q, k, v, segments, scale)
    out, lse = _outputs(q, q.dtype, return_lse)
    _joint_attention_op(out, lse, q, k, v, segments, None, None, None, scale)
    return (out, lse) if lse is not None else out


def joint_attention_fp8(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor,
    q_scale: torch.Tensor,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Attend in 8 bits: e4m3 queries, keys and values with one scale per head, fp32 accumulation.

    Args:
        q: [batch, q_len, heads, head_dim] float8_e4m3fn, contiguous; stands for ``q * q_scale``.
        k: [batch, capacity, kv_heads, head_dim] float8_e4m3fn, contiguous.
        v: [batch, kv_heads, head_dim, capacity] float8_e4m3fn, contiguous; transposed, because Hopper's 8-bit
            matrix instructions read both operands along the contracted dimension. capacity a multiple of 16.
        segments: as in :func:`joint_attention`, starts being multiples of 16 (``segment_table(...,
            alignment=16)``); others are rounded down.
        q_scale: [batch, heads] fp32, positive.
        k_scale: [batch, kv_heads] fp32, positive.
        v_scale: [batch, kv_heads] fp32.
        softmax_scale: positive factor on q k^T; ``head_dim ** -0.5`` by default.
        out_dtype: bf16, fp16 or fp32.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        [batch, q_len, heads, head_dim] in ``out_dtype``.

    Raises:
        KernelArgumentError: a shape, dtype, layout, device or the scale does not fit.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: 8-bit attention as in arXiv 2407.08608 section 3.3, here with scales per head and probabilities
    under a fixed power of two.
    """
    require_shape("v", v, (None, None, None, None), "[batch, kv_heads, head_dim, capacity]")
    scale = _check(q, k, v.permute(0, 3, 1, 2), segments, softmax_scale, (FP8,))
    require_contiguous("v", v)
    require(
        k.shape[1] % FP8_ALIGNMENT == 0,
        "capacity",
        f"a multiple of {FP8_ALIGNMENT} slots in fp8",
        k.shape[1],
        "pad the memory",
    )
    require(out_dtype in _FLOATS[:3], "out_dtype", "bfloat16, float16 or float32", out_dtype)
    for name, tensor, heads in (("q_scale", q_scale, q), ("k_scale", k_scale, k), ("v_scale", v_scale, k)):
        require_shape(name, tensor, (heads.shape[0], heads.shape[2]), "[batch, heads]")
        require_dtype(name, tensor, (torch.float32,))
        require_contiguous(name, tensor)
        require_device(name, tensor, q.device, "q")
    if not use_triton(backend, q, k, v):
        queries = q.float() * q_scale[:, None, :, None]
        keys = k.float() * k_scale[:, None, :, None]
        values = (v.float() * v_scale[:, :, None, None]).permute(0, 3, 1, 2)
        return attend(queries, keys, values, aligned_segments(segments, FP8_ALIGNMENT), scale).to(out_dtype)
    out, _ = _outputs(q, out_dtype, False)
    _joint_attention_op(out, None, q, k, v, segments, q_scale, k_scale, v_scale, scale)
    return out


def _outputs(q: torch.Tensor, dtype: torch.dtype, with_lse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch, q_len, num_heads, _ = q.shape
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    lse = torch.empty((batch, num_heads, q_len), dtype=torch.float32, device=q.device) if with_lse else None
    return out, lse


def _launch(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor,
    q_scale: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    softmax_scale: float,
    config: AttentionConfig | None = None,
) -> Launch:
    batch, q_len, num_heads, head_dim = q.shape
    capacity, num_kv_heads = k.shape[1:3]
    quantized = q.dtype == FP8
    config = config or attention_config(q.dtype, head_dim)
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        require_aligned(name, tensor)

    def rows_of(x: torch.Tensor, block_rows: int) -> TensorDescriptor:
        width = x.shape[2] * head_dim
        return TensorDescriptor(x, [x.shape[0] * x.shape[1], width], [width, 1], [block_rows, head_dim])

    def values(block_n: int) -> TensorDescriptor:
        if not quantized:
            return rows_of(v, block_n)
        return TensorDescriptor(
            v, [batch * num_kv_heads * head_dim, capacity], [capacity, 1], [head_dim, block_n]
        )

    args = {
        "out_ptr": out,
        "lse_ptr": lse,
        "q_desc": rows_of(q, config.block_m),
        "k_desc": rows_of(k, config.block_n),
        "v_desc": values(config.block_n),
        "k_tail_desc": rows_of(k, config.tail_n),
        "v_tail_desc": values(config.tail_n),
        "segments_ptr": segments,
        "q_scale_ptr": q_scale,
        "k_scale_ptr": k_scale,
        "v_scale_ptr": v_scale,
        "softmax_scale": softmax_scale,
        "q_len": q_len,
        "capacity": capacity,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "HEAD_DIM": head_dim,
        "NUM_SEGMENTS": segments.shape[1],
        "STORE_LSE": lse is not None,
        "QUANTIZED": quantized,
        "SHIFT": _FP8_SHIFT if quantized else 0.0,
        "ALIGNMENT": FP8_ALIGNMENT if quantized else 1,
        "UPCAST": INTERPRETED and q.dtype == torch.bfloat16,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "TAIL_N": config.tail_n,
    }
    grid = (triton.cdiv(q_len, config.block_m) * num_heads, batch)
    return Launch(_joint_attention_kernel, grid, args, config.num_warps, config.num_stages, device=q.device)


@torch.library.custom_op("streamchar::joint_attention", mutates_args=("out", "lse"))
def _joint_attention_op(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor,
    q_scale: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    softmax_scale: float,
) -> None:
    _launch(out, lse, q, k, v, segments, q_scale, k_scale, v_scale, softmax_scale).run()


@_joint_attention_op.register_fake
def _(*args: object) -> None:
    return None


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor,
    softmax_scale: float | None,
    dtypes: tuple[torch.dtype, ...],
) -> float:
    require_shape("q", q, (None, None, None, None), "[batch, q_len, heads, head_dim]")
    require_dtype("q", q, dtypes)
    batch, _, num_heads, head_dim = q.shape
    require(q.numel() > 0, "q", "non-empty", list(q.shape))
    require(head_dim in HEAD_DIMS, "head_dim", "64 or 128", head_dim)
    require_shape("k", k, (batch, None, None, head_dim), "[batch, capacity, kv_heads, head_dim]")
    num_kv_heads = k.shape[2]
    require(k.numel() > 0, "k", "non-empty", list(k.shape))
    require(num_heads % num_kv_heads == 0, "kv_heads", f"a divisor of {num_heads} (heads of q)", num_kv_heads)
    require_shape("v", v, k.shape, "the shape of k")
    require_shape("segments", segments, (batch, None, 2), "[batch, num_segments, 2]")
    num_segments = segments.shape[1]
    require(1 <= num_segments <= MAX_SEGMENTS, "num_segments", f"between 1 and {MAX_SEGMENTS}", num_segments)
    require_dtype("segments", segments, (torch.int32,))
    require_contiguous("segments", segments)
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        require_dtype(name, tensor, (q.dtype,))
        require_device(name, tensor, q.device, "q")
        if name != "v" or q.dtype != FP8:
            require_contiguous(name, tensor)
    require_device("segments", segments, q.device, "q")
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    require(scale > 0, "softmax_scale", "positive", scale)
    return scale


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""

    def case(dtype: torch.dtype, head_dim: int, lse: bool = False) -> Launch:
        q = torch.empty((1, 2080, 24, head_dim), dtype=dtype, device="meta")
        k = torch.empty((1, 6432, 24, head_dim), dtype=dtype, device="meta")
        v = k.permute(0, 2, 3, 1).contiguous() if dtype == FP8 else k
        segments = torch.empty((1, 5, 2), dtype=torch.int32, device="meta")
        scale = torch.empty((1, 24), device="meta") if dtype == FP8 else None
        out, sums = _outputs(q, torch.bfloat16 if dtype == FP8 else dtype, lse)
        return _launch(out, sums, q, k, v, segments, scale, scale, scale, head_dim**-0.5)

    return {
        "attention/d128 bf16": case(torch.bfloat16, 128),
        "attention/d128 lse bf16": case(torch.bfloat16, 128, lse=True),
        "attention/d128 fp16": case(torch.float16, 128),
        "attention/d128 fp8": case(FP8, 128),
        "attention/d64 bf16": case(torch.bfloat16, 64),
        "attention/d64 fp8": case(FP8, 64),
    }
