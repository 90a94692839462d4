"""Joint attention of a chunk's tokens over the segments of a KV cache at a fixed address.

Queries are the chunk's video and audio tokens. Keys and values lie in one buffer per layer, in segments
``[reference | sink | motion | video | audio]``. The kernel reads their starts and lengths from a small int32
tensor on the device, one row per batch row, so one captured graph serves both the first chunk, which has no
sink and no motion, and every later chunk. Attention is not causal, neither within nor across segments.

The kernel walks the full BLOCK_N tiles of all segments in one pipelined loop without masks, then the rest of
each segment in short masked tiles. Softmax is online (arXiv 2205.14135, algorithm 1), in base 2.

FLOP: 4 q_len kv_len head_dim per head; bytes: q, k, v and out once each. At 2080 x 6432 tokens, 24 heads of
128 that is 1.6e11 FLOP for 0.1 GB: compute-bound. 8-bit keys and values are quantised once, where they are
written (:mod:`..qkv_prologue`), not here.
"""

import torch

from .._shared.checks import require_aligned
from .._shared.compat import FP8, INTERPRETED, TensorDescriptor, tl, triton
from .._shared.configs import AttentionConfig, attention_config
from .._shared.dispatch import Launch
from .._shared.math import LN_2, LOG2_E
from .arguments import FP8_ALIGNMENT, AttentionArgs

#: exp2 offset of fp8 probabilities: the largest becomes 2**8 of e4m3's 448, the smallest kept 2**-17 of it.
_FP8_SHIFT = 8.0


@triton.jit
def _segment(segments_ptr, s, capacity, ALIGNMENT: tl.constexpr):
    """Read segment s as (start, length), clamped into the buffer."""
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
    # Full query tiles come first, head by head, so that the programs in flight share the keys of few heads
    # in L2. The short last tiles of the heads come at the end, to fill SMs that the last wave leaves idle.
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

    # One flat loop again instead of a loop per segment: with a nested loop, ptxas serialises every matrix
    # instruction of the kernel (its note C7515). Tiles are short, because a wide masked tile takes a quarter
    # more registers.
    for tile in range(num_tails):
        row = _row_of_tile(tile, first_tails, tail_shifts, TAIL_N, NUM_SEGMENTS)
        end = _row_of_tile(tile, first_tails, ends, 0, NUM_SEGMENTS)
        in_segment = row + tl.arange(0, TAIL_N) < end
        k = k_tail_desc.load([kv_row + row, kv_col])
        scores = tl.where(in_segment[None, :], _scores(q, k, UPCAST), float("-inf"))
        v = _load_v(v_tail_desc, batch, kv_head, row, capacity, num_kv_heads, HEAD_DIM, QUANTIZED)
        # A zero probability does not remove a NaN in an unwritten slot: 0 * NaN is NaN.
        v = tl.where(in_segment[:, None], v, 0.0).to(v.dtype)
        acc, m_i, l_i = _softmax_step(acc, m_i, l_i, scores, v, scale, SHIFT, UPCAST)

    rows = q_start + tl.arange(0, BLOCK_M)
    valid = rows < q_len
    # Without any key the sum and the output are 0 and the log-sum-exp is -inf.
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


def launch(args: AttentionArgs, config: AttentionConfig | None = None) -> Launch:
    """Build the launch that writes ``args.out`` and, where it is given, ``args.lse``."""
    q, k, v = args.q, args.k, args.v
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

    kernel_args = {
        "out_ptr": args.out,
        "lse_ptr": args.lse,
        "q_desc": rows_of(q, config.block_m),
        "k_desc": rows_of(k, config.block_n),
        "v_desc": values(config.block_n),
        "k_tail_desc": rows_of(k, config.tail_n),
        "v_tail_desc": values(config.tail_n),
        "segments_ptr": args.segments,
        "q_scale_ptr": args.q_scale,
        "k_scale_ptr": args.k_scale,
        "v_scale_ptr": args.v_scale,
        "softmax_scale": args.scale,
        "q_len": q_len,
        "capacity": capacity,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "HEAD_DIM": head_dim,
        "NUM_SEGMENTS": args.segments.shape[1],
        "STORE_LSE": args.lse is not None,
        "QUANTIZED": quantized,
        "SHIFT": _FP8_SHIFT if quantized else 0.0,
        "ALIGNMENT": FP8_ALIGNMENT if quantized else 1,
        "UPCAST": INTERPRETED and q.dtype == torch.bfloat16,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "TAIL_N": config.tail_n,
    }
    grid = (triton.cdiv(q_len, config.block_m) * num_heads, batch)
    warps, stages = config.num_warps, config.num_stages
    return Launch(_joint_attention_kernel, grid, kernel_args, warps, stages, device=q.device)


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""

    def case(dtype: torch.dtype, head_dim: int, with_lse: bool = False) -> Launch:
        q = torch.empty((1, 2080, 24, head_dim), dtype=dtype, device="meta")
        k = torch.empty((1, 6432, 24, head_dim), dtype=dtype, device="meta")
        v = k.permute(0, 2, 3, 1).contiguous() if dtype == FP8 else k
        segments = torch.empty((1, 5, 2), dtype=torch.int32, device="meta")
        scale = torch.empty((1, 24), device="meta") if dtype == FP8 else None
        out = torch.empty(q.shape, dtype=torch.bfloat16 if dtype == FP8 else dtype, device="meta")
        lse = torch.empty((1, 24, 2080), device="meta") if with_lse else None
        return launch(AttentionArgs(q, k, v, segments, None, scale, scale, scale, out, lse))

    return {
        "attention/d128 bf16": case(torch.bfloat16, 128),
        "attention/d128 lse bf16": case(torch.bfloat16, 128, with_lse=True),
        "attention/d128 fp16": case(torch.float16, 128),
        "attention/d128 fp8": case(FP8, 128),
        "attention/d64 bf16": case(torch.bfloat16, 64),
        "attention/d64 fp8": case(FP8, 64),
    }
