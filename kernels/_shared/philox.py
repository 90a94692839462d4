"""Counter-based normal noise: Philox4x32-10, equal bit for bit in Triton and in PyTorch.

Every number is determined by a counter and a key of fixed layout, so noise needs no state, can be replayed
in a CUDA graph, and does not depend on the batch or on the launch:

    key      k0 = seed, low 32 bits       k1 = seed, high 32 bits
    counter  c0 = element // 4            c1 = 2 * draw + modality
             c2 = chunk, low 32 bits      c3 = chunk, high 32 bits

``draw`` is 0 for the initial noise of a chunk and i + 1 for the noise that sampler step i adds; ``modality``
is VIDEO or AUDIO; ``element`` counts within one batch row. Fields do not share bits, so two different
(seed, chunk, draw, modality, element // 4) never give the same counter and key. The four words of a counter
become the four normals of elements 4i .. 4i + 3.

Cost per counter: 10 rounds of two 32 x 32 -> 64 bit products and four exclusive ors, then about 80 FLOP for
four normals; no memory traffic.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3;
Box and Muller, Annals of Mathematical Statistics 29 (1958).
"""

import math

import torch

from .compat import tl, triton

ROUNDS = tl.constexpr(10)
MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_2 = tl.constexpr(0xCD9E8D57)
KEY_STEP_0 = tl.constexpr(0x9E3779B9)
KEY_STEP_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Return the four uint32 outputs of Philox4x32-10 for uint32 counter words and key words."""
    for _ in tl.static_range(ROUNDS):
        # A 64-bit product of two zero-extended words is one IMAD.WIDE, which yields both halves.
        p0 = c0.to(tl.uint64) * MULTIPLIER_0
        p2 = c2.to(tl.uint64) * MULTIPLIER_2
        c0 = (p2 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p2.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        # 64-bit sums cut to a word, because the interpreter reports an overflow if 32-bit sums wrap.
        k0 = (k0.to(tl.uint64) + KEY_STEP_0).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + KEY_STEP_1).to(tl.uint32)
    return c0, c1, c2, c3


TWO_PI = tl.constexpr(2.0 * math.pi)


@triton.jit
def _uniform(word):
    # (word + 1/2) / 2^32: the product is exact, so there is one rounding in any order of evaluation. The
    # smallest value is 2^-33, never 0.
    return word.to(tl.float32) * 2.0**-32 + 2.0**-33


@triton.jit
def _normal_pair(word_radius, word_angle):
    radius = tl.sqrt(-2.0 * tl.log(_uniform(word_radius)))
    # The angle in turns, split into the nearest quarter and an exact rest in [-1/8, 1/8]. This avoids range
    # reduction by pi, and a short series is exact to fp32.
    turns = _uniform(word_angle)
    quarter = tl.floor(turns * 4.0 + 0.5)
    angle = (turns - quarter * 0.25) * TWO_PI
    square = angle * angle
    sine = 2.7557319e-6 * square - 1.9841270e-4
    sine = sine * square + 8.3333333e-3
    sine = sine * square - 1.6666667e-1
    sine = sine * square * angle + angle
    cosine = -2.7557319e-7 * square + 2.4801587e-5
    cosine = cosine * square - 1.3888889e-3
    cosine = cosine * square + 4.1666667e-2
    cosine = cosine * square - 0.5
    cosine = cosine * square + 1.0
    q = quarter.to(tl.int32)
    odd = (q & 1) != 0
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    first = tl.where(((q + 1) & 2) != 0, -first, first)
    second = tl.where((q & 2) != 0, -second, second)
    return radius * first, radius * second


VIDEO = tl.constexpr(0)
AUDIO = tl.constexpr(1)
WORD = tl.constexpr(0xFFFFFFFF)


@triton.jit
def philox_normal(seed, chunk, draw, modality: tl.constexpr, group, BLOCK: tl.constexpr):
    """Return BLOCK fp32 standard normals, those of elements 4 * group .. 4 * group + 3 in order.

    Args:
        seed: int64 scalar.
        chunk: int64 scalar.
        draw: int32 scalar, 0 for initial noise and i + 1 for sampler step i.
        modality: VIDEO or AUDIO.
        group: [BLOCK // 4] int32, element index over 4.
        BLOCK: number of normals.
    """
    c0 = group.to(tl.uint32)
    zero = c0 * 0
    c1 = zero + (draw * 2 + modality).to(tl.uint32)
    c2 = zero + (chunk & WORD).to(tl.uint32)
    c3 = zero + ((chunk >> 32) & WORD).to(tl.uint32)
    k0 = (seed & WORD).to(tl.uint32)
    k1 = ((seed >> 32) & WORD).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(c0, c1, c2, c3, k0, k1)
    n0, n1 = _normal_pair(w0, w1)
    n2, n3 = _normal_pair(w2, w3)
    # The outer join is the faster index, so pairing (0, 2) with (1, 3) puts the four in order in a thread.
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [BLOCK])


def philox_reference(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Compute Philox4x32-10 in int64 arithmetic.

    Args:
        counter: [..., 4] int64, words in [0, 2^32).
        key: [..., 2] int64, words in [0, 2^32), broadcast against ``counter``.

    Returns:
        [..., 4] int64, words in [0, 2^32).

    Source: Salmon et al., SC 2011, section 3.3.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # int64 products wrap modulo 2^64, so their bits are right; the mask undoes the signed shift.
        p0, p2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p2 >> 32) & 0xFFFFFFFF) ^ c1 ^ k0,
            p2 & 0xFFFFFFFF,
            ((p0 >> 32) & 0xFFFFFFFF) ^ c3 ^ k1,
            p0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return torch.stack((c0, c1, c2, c3), -1)


def philox_normal_reference(
    seed: torch.Tensor,
    chunk: torch.Tensor,
    draw: torch.Tensor,
    modality: int,
    elements: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Compute the standard normals of the kernels in PyTorch.

    Args:
        seed: [batch] int64.
        chunk: [batch] int64 or int32.
        draw: [batch] int32 or int64, 0 for initial noise and i + 1 for sampler step i.
        modality: 0 for video, 1 for audio.
        elements: number of normals in a row.
        dtype: float32 or float64, for the logarithm, root and angle; the uniforms are fp32 in both cases.

    Returns:
        [batch, elements] in ``dtype``.

    Source: Box and Muller, Annals of Mathematical Statistics 29 (1958).
    """
    seed, chunk, draw = seed.long(), chunk.long(), draw.long()
    group = torch.arange((elements + 3) // 4, dtype=torch.int64, device=seed.device)
    row_words = torch.stack((2 * draw + modality, chunk, chunk >> 32), -1) & 0xFFFFFFFF
    counter = torch.cat(
        (
            group[None, :, None].expand(seed.shape[0], -1, 1),
            row_words[:, None].expand(-1, group.shape[0], 3),
        ),
        -1,
    )
    key = torch.stack((seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF), -1)[:, None]
    words = philox_reference(counter, key)
    uniform = (words.to(torch.float32) * 2.0**-32 + 2.0**-33).to(dtype)
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0::2]))
    angle = 2.0 * math.pi * uniform[..., 1::2]
    normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1)
    return normals.flatten(1)[:, :elements]
