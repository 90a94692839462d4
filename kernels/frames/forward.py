"""Decoder output to bytes: interleaved RGB and planar YUV 4:2:0 in one pass over the frames.

Fused: the map from [-1, 1] to [0, 255], clamping, rounding, interleaving of the channels, the BT.709 matrix
and the 2 x 2 average of the chroma. The input is read once, for one output or both.

Bytes that must move for P pixels and elements of e bytes: 3 P e in; 3 P out for RGB, 3/2 P out for YUV. About
10 FLOP a pixel for RGB and 20 for YUV: always memory-bound.

Source: Recommendation ITU-R BT.709-6, sections 3 and 4 (matrix and limited range).
"""

import torch

from .._shared.compat import tl, triton
from .._shared.dispatch import Launch
from .arguments import FramesArgs

#: Pieces per program: with YUV 32 elements per thread and channel, in two rows.
_PIECES = 128
#: Pixels of a row in one piece: 48 bytes of RGB, the smallest size that is whole 16-byte vectors.
PIECE = tl.constexpr(16)
#: Adding this to 0 <= x < 2^22 leaves round-half-to-even(x) in the low bits of the fp32 mantissa.
ROUNDER = tl.constexpr(8388608.0)
# BT.709 luma weights, and the chroma divisors 2 (1 - weight) that bring B - Y and R - Y to [-1/2, 1/2].
LUMA_R = tl.constexpr(0.2126)
LUMA_G = tl.constexpr(0.7152)
LUMA_B = tl.constexpr(0.0722)
CHROMA_B = tl.constexpr(1.8556)
CHROMA_R = tl.constexpr(1.5748)
# Limited range, for inputs of 0 .. 255: luma 16 .. 235, chroma 16 .. 240 about 128.
LUMA_RANGE = tl.constexpr(219.0 / 255.0)
CHROMA_RANGE = tl.constexpr(224.0 / 255.0)


@triton.jit
def _byte(x):
    """Round fp32 0 <= x <= 255 half to even, as int32."""
    return (x + ROUNDER).to(tl.int32, bitcast=True) & 0xFF


@triton.jit
def _split4(x):
    """Split [..., 2, 2] into four [...], in the order of the flattened last two dimensions."""
    even, odd = tl.split(x)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _join4(a, b, c, d):
    """Join four [...] into [..., 2, 2], undoing :func:`_split4`."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _inside(col, live, LIMIT: tl.constexpr, SPAN: tl.constexpr):
    """Mask live pieces and columns below LIMIT, which all are if LIMIT is a multiple of SPAN."""
    mask = live[:, None]
    if LIMIT // SPAN * SPAN != LIMIT:
        mask = mask & (col < LIMIT)
    return mask


@triton.jit
def _channel(pointers, col, live, PIECES: tl.constexpr, WIDTH: tl.constexpr):
    """Load [PIECES, 16] pixels of one channel as fp32 in 0 .. 255."""
    # Two loads of 8 columns each: for 2-byte input each is one 16-byte vector a thread. The thread that packs
    # a piece has both of its vectors, so no later step exchanges pixels between threads.
    left = tl.load(pointers, mask=_inside(col, live, WIDTH, PIECE), other=0.0)
    right = tl.load(pointers + 8, mask=_inside(col + 8, live, WIDTH, PIECE), other=0.0)
    x = tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), [PIECES, PIECE]).to(tl.float32)
    x = (x + 1.0) * 127.5
    # A comparison with NaN is false, so NaN becomes 0 on every backend.
    return tl.minimum(tl.where(x > 0.0, x, 0.0), 255.0)


@triton.jit
def _store_rgb(rgb_ptr, r, g, b, row, piece, live, WIDTH: tl.constexpr, PIECES: tl.constexpr):
    """Store [PIECES, 16] pixels of rows ``row`` from columns ``16 piece`` on, channels interleaved."""
    if WIDTH % 4 == 0:
        # Four pixels are three words. A piece is 12 words, written as three 16-byte vectors.
        r0, r1, r2, r3 = _split4(tl.reshape(_byte(r), [PIECES, 4, 2, 2]))
        g0, g1, g2, g3 = _split4(tl.reshape(_byte(g), [PIECES, 4, 2, 2]))
        b0, b1, b2, b3 = _split4(tl.reshape(_byte(b), [PIECES, 4, 2, 2]))
        first = r0 | (g0 << 8) | (b0 << 16) | (r1 << 24)
        second = g1 | (b1 << 8) | (r2 << 16) | (g2 << 24)
        third = b2 | (r3 << 8) | (g3 << 16) | (b3 << 24)
        f0, f1, f2, f3 = _split4(tl.reshape(first, [PIECES, 2, 2]))
        s0, s1, s2, s3 = _split4(tl.reshape(second, [PIECES, 2, 2]))
        t0, t1, t2, t3 = _split4(tl.reshape(third, [PIECES, 2, 2]))
        word = piece[:, None] * 12 + tl.arange(0, 4)[None, :]
        words: tl.constexpr = WIDTH // 4 * 3
        pointers = rgb_ptr.to(tl.pointer_type(tl.int32)) + row[:, None] * words + word
        vector = tl.reshape(_join4(f0, s0, t0, f1), [PIECES, 4])
        tl.store(pointers, vector, mask=_inside(word, live, words, 12))
        vector = tl.reshape(_join4(s1, t1, f2, s2), [PIECES, 4])
        tl.store(pointers + 4, vector, mask=_inside(word + 4, live, words, 12))
        vector = tl.reshape(_join4(t2, f3, s3, t3), [PIECES, 4])
        tl.store(pointers + 8, vector, mask=_inside(word + 8, live, words, 12))
    else:
        col = piece[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
        pointers = rgb_ptr + (row[:, None] * WIDTH + col) * 3
        mask = _inside(col, live, WIDTH, PIECE)
        tl.store(pointers, _byte(r).to(tl.uint8), mask=mask)
        tl.store(pointers + 1, _byte(g).to(tl.uint8), mask=mask)
        tl.store(pointers + 2, _byte(b).to(tl.uint8), mask=mask)


@triton.jit
def _pair_sum(x, PIECES: tl.constexpr):
    left, right = tl.split(tl.reshape(x, [PIECES, PIECE // 2, 2]))
    return left + right


@triton.jit
def _frames_kernel(
    rgb_ptr,
    yuv_ptr,
    frames_ptr,
    stride_f,
    stride_c,
    stride_h,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    RGB: tl.constexpr,
    YUV: tl.constexpr,
    PIECES: tl.constexpr,
):
    # With YUV an item is 16 columns of two rows, which hold whole chroma squares; otherwise of one row.
    ROWS: tl.constexpr = 2 if YUV else 1
    row_pieces: tl.constexpr = (WIDTH + PIECE - 1) // PIECE
    frame = tl.program_id(1).to(tl.int64)
    item = tl.program_id(0) * PIECES + tl.arange(0, PIECES)
    top = item // row_pieces * ROWS
    piece = item % row_pieces
    live = top < HEIGHT
    col = piece[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    first_half = piece[:, None] * PIECE + tl.arange(0, PIECE // 2)[None, :]
    frames_ptr += frame * stride_f
    if RGB:
        rgb_ptr += frame * (HEIGHT * WIDTH * 3)
    if YUV:
        yuv_ptr += frame * (HEIGHT * WIDTH // 2 * 3)
        r_sum = tl.zeros((PIECES, PIECE // 2), tl.float32)
        g_sum = tl.zeros((PIECES, PIECE // 2), tl.float32)
        b_sum = tl.zeros((PIECES, PIECE // 2), tl.float32)

    for i in tl.static_range(ROWS):
        row = top + i
        pointers = frames_ptr + row[:, None].to(tl.int64) * stride_h + first_half
        r = _channel(pointers, first_half, live, PIECES, WIDTH)
        g = _channel(pointers + stride_c, first_half, live, PIECES, WIDTH)
        b = _channel(pointers + 2 * stride_c, first_half, live, PIECES, WIDTH)
        if RGB:
            _store_rgb(rgb_ptr, r, g, b, row, piece, live, WIDTH, PIECES)
        if YUV:
            luma = 16.0 + LUMA_RANGE * (LUMA_R * r + LUMA_G * g + LUMA_B * b)
            tl.store(
                yuv_ptr + row[:, None] * WIDTH + col,
                _byte(luma).to(tl.uint8),
                mask=_inside(col, live, WIDTH, PIECE),
            )
            r_sum += _pair_sum(r, PIECES)
            g_sum += _pair_sum(g, PIECES)
            b_sum += _pair_sum(b, PIECES)

    if YUV:
        r, g, b = r_sum * 0.25, g_sum * 0.25, b_sum * 0.25
        luma = LUMA_R * r + LUMA_G * g + LUMA_B * b
        u = 128.0 + (CHROMA_RANGE / CHROMA_B) * (b - luma)
        v = 128.0 + (CHROMA_RANGE / CHROMA_R) * (r - luma)
        half_col = piece[:, None] * (PIECE // 2) + tl.arange(0, PIECE // 2)[None, :]
        mask = _inside(half_col, live, WIDTH // 2, PIECE // 2)
        u_pointers = yuv_ptr + HEIGHT * WIDTH + (top // 2)[:, None] * (WIDTH // 2) + half_col
        tl.store(u_pointers, _byte(u).to(tl.uint8), mask=mask)
        tl.store(u_pointers + HEIGHT * WIDTH // 4, _byte(v).to(tl.uint8), mask=mask)


def packed_shapes(frames: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the RGB and of the I420 output."""
    count, _, height, width = frames.shape
    return (count, height, width, 3), (count, height * 3 // 2, width)


def launch(args: FramesArgs) -> Launch:
    """Build the launch that writes those of ``args.rgb`` and ``args.yuv`` that are given."""
    frames = args.frames
    count, _, height, width = frames.shape
    kernel_args = {
        "rgb_ptr": args.rgb,
        "yuv_ptr": args.yuv,
        "frames_ptr": frames,
        "stride_f": frames.stride(0),
        "stride_c": frames.stride(1),
        "stride_h": frames.stride(2),
        "HEIGHT": height,
        "WIDTH": width,
        "RGB": args.rgb is not None,
        "YUV": args.yuv is not None,
        "PIECES": _PIECES,
    }
    rows = height if args.yuv is None else height // 2
    items = rows * triton.cdiv(width, 16)
    grid = (triton.cdiv(items, _PIECES), count)
    return Launch(_frames_kernel, grid, kernel_args, num_warps=4, device=frames.device)


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""
    frames = torch.empty((3, 32, 512, 512), dtype=torch.bfloat16, device="meta").transpose(0, 1)
    rgb, yuv = (torch.empty(shape, dtype=torch.uint8, device="meta") for shape in packed_shapes(frames))
    return {
        "frames/rgb bf16": launch(FramesArgs(frames, rgb=rgb)),
        "frames/yuv bf16": launch(FramesArgs(frames, yuv=yuv)),
        "frames/rgb yuv bf16": launch(FramesArgs(frames, rgb, yuv)),
    }
