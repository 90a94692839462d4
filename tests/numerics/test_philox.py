"""The random generator: exact integers, normals to fp32 rounding, independent streams."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels._shared.compat import tl, triton
from streamchar.kernels._shared.philox import (
    AUDIO,
    _normal_pair,
    philox4x32,
    philox_normal,
    philox_normal_reference,
    philox_reference,
)
from tests.closeness import assert_close

# The published test vectors of Philox4x32-10: counter, key, output.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
WORDS = torch.tensor([[int(word, 16) for word in " ".join(vector).split()] for vector in VECTORS])
WORD = st.integers(0, 2**32 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)


@triton.jit
def _words_kernel(out_ptr, counter_ptr, key_ptr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    c0 = tl.load(counter_ptr + 4 * i).to(tl.uint32)
    c1 = tl.load(counter_ptr + 4 * i + 1).to(tl.uint32)
    c2 = tl.load(counter_ptr + 4 * i + 2).to(tl.uint32)
    c3 = tl.load(counter_ptr + 4 * i + 3).to(tl.uint32)
    k0 = tl.load(key_ptr + 2 * i).to(tl.uint32)
    k1 = tl.load(key_ptr + 2 * i + 1).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + 4 * i, w0.to(tl.int64))
    tl.store(out_ptr + 4 * i + 1, w1.to(tl.int64))
    tl.store(out_ptr + 4 * i + 2, w2.to(tl.int64))
    tl.store(out_ptr + 4 * i + 3, w3.to(tl.int64))


@triton.jit
def _normal_kernel(out_ptr, seed_ptr, chunk_ptr, draw_ptr, MODALITY: tl.constexpr, BLOCK: tl.constexpr):
    seed, chunk, draw = tl.load(seed_ptr), tl.load(chunk_ptr), tl.load(draw_ptr)
    block = tl.program_id(0)
    group = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    normals = philox_normal(seed, chunk, draw, MODALITY, group, BLOCK)
    tl.store(out_ptr + block * BLOCK + tl.arange(0, BLOCK), normals)


@triton.jit
def _pair_kernel(first_ptr, second_ptr, words_ptr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    radius = tl.load(words_ptr + 2 * i).to(tl.uint32)
    angle = tl.load(words_ptr + 2 * i + 1).to(tl.uint32)
    first, second = _normal_pair(radius, angle)
    tl.store(first_ptr + i, first)
    tl.store(second_ptr + i, second)


def words_of_kernel(counter: torch.Tensor, key: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Run the jit generator on [n, 4] counters and [n, 2] keys, n a power of two."""
    out = torch.full_like(counter, -1).to(device)
    _words_kernel[(1,)](out, counter.to(device).contiguous(), key.to(device).contiguous(), counter.shape[0])
    return out.cpu()


def normals(
    seed: int = 1, chunk: int = 1, draw: int = 1, modality: int = 0, count: int = 2**16
) -> torch.Tensor:
    rows = (torch.tensor([value]) for value in (seed, chunk, draw))
    return philox_normal_reference(*rows, modality, count, torch.float64)[0]


def test_reference_gives_the_published_vectors() -> None:
    assert torch.equal(philox_reference(WORDS[:, :4], WORDS[:, 4:6]), WORDS[:, 6:])


def test_kernel_gives_the_published_vectors(device: torch.device) -> None:
    padded = torch.cat((WORDS, WORDS[:1]))
    assert torch.equal(words_of_kernel(padded[:, :4], padded[:, 4:6], device), padded[:, 6:])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[WORD] * 6), min_size=8, max_size=8))
def test_kernel_integers_equal_the_reference_bit_for_bit(rows: list[tuple[int, ...]]) -> None:
    words = torch.tensor(rows)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = words_of_kernel(words[:, :4], words[:, 4:], where)
    assert torch.equal(out, philox_reference(words[:, :4], words[:, 4:]))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(INT64, INT64, st.integers(0, 2**20), st.sampled_from([0, 1]))
def test_kernel_normals_equal_the_float64_reference(seed: int, chunk: int, draw: int, modality: int) -> None:
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = torch.tensor([seed]), torch.tensor([chunk]), torch.tensor([draw], dtype=torch.int32)
    out = torch.full((4096,), float("nan"), device=where)
    _normal_kernel[(4,)](out, *(row.to(where) for row in rows), modality, 1024)
    # One epsilon each for: the logarithm and its doubling (halved by the root), the root, the angle's product
    # with 2 pi, the series, and the final product.
    assert_close(out, philox_normal_reference(*rows, modality, 4096, torch.float64)[0], torch.float32, 4.0)


def test_reference_in_float32_equals_float64_to_rounding() -> None:
    rows = torch.tensor([5, -6]), torch.tensor([7, 8]), torch.tensor([1, 2])
    wide = philox_normal_reference(*rows, 0, 1001, torch.float64)
    # As above, but the angle is up to 2 pi, so its rounding adds up to pi epsilons.
    assert_close(philox_normal_reference(*rows, 0, 1001), wide, torch.float32, 4.0 + math.pi)


def test_extreme_words_give_finite_normals(device: torch.device) -> None:
    top = 2**32 - 1
    # Every quarter turn and its neighbours, at the smallest and the largest radius.
    angles = [0, 1, 2**29, 2**29 - 1, 2**30, 2**31, 3 * 2**30, 7 * 2**29, top - 1, top]
    words = torch.tensor([(r, a) for r in (0, 1, 2**31, top - 255, top) for a in angles])
    words = torch.cat((words, words[:14]))
    first, second = (torch.full((64,), float("nan"), device=device) for _ in range(2))
    _pair_kernel[(1,)](first, second, words.to(device), 64)
    uniform = (words.float() * 2.0**-32 + 2.0**-33).double()
    radius, angle = torch.sqrt(-2 * uniform[:, 0].log()), 2 * math.pi * uniform[:, 1]
    assert radius.max() < 6.8
    # 4 epsilons as for the normals.
    assert_close(first, radius * angle.cos(), torch.float32, 4.0)
    assert_close(second, radius * angle.sin(), torch.float32, 4.0)


def test_normals_are_standard_normal() -> None:
    x = normals(count=2**20)
    n = x.numel()
    # Five standard errors of each estimate for independent standard normals.
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
    for bound in (-2.0, -0.5, 0.5, 2.0):
        p = 0.5 * (1 + math.erf(bound / math.sqrt(2)))
        assert abs((x < bound).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_neighbouring_elements_are_independent() -> None:
    x = normals(count=2**18)
    for lag in (1, 2, 3, 4, 8):
        for power in (1, 2):
            a, b = x[:-lag] ** power, x[lag:] ** power
            correlation = torch.corrcoef(torch.stack((a, b)))[0, 1]
            assert abs(correlation) < 5 / math.sqrt(a.numel()), (lag, power)


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"chunk": 2}, {"draw": 2}, {"modality": 1}, {"seed": 1 + 2**32}]
)
def test_streams_are_independent(other: dict[str, int]) -> None:
    a, b = normals(), normals(**other)
    for power in (1, 2):
        correlation = torch.corrcoef(torch.stack((a**power, b**power)))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(a.numel())


def test_no_two_streams_share_a_number() -> None:
    # Values that would collide if two fields overlapped or a high half was dropped.
    wide = (0, 1, 2, 2**31, 2**32, 2**32 + 1, -1)
    streams = list(itertools.product(wide, wide, (0, 1, 2, 4), (0, 1)))
    seeds, chunks, draws, modalities = (torch.tensor(column) for column in zip(*streams))
    rows = [
        philox_normal_reference(seeds[own], chunks[own], draws[own], modality, 8, torch.float64)
        for modality in (0, 1)
        for own in [modalities == modality]
    ]
    values = torch.cat(rows).reshape(-1, 4)
    assert values.unique(dim=0).shape[0] == values.shape[0] == 2 * len(streams)


def test_kernel_streams_differ_in_every_field(device: torch.device) -> None:
    base = {"seed": 3, "chunk": 4, "draw": 5}
    changed = [
        base,
        *({**base, name: base[name] + step} for name in ("seed", "chunk") for step in (1, 2**32)),
    ]
    changed.append({**base, "draw": 6})
    results = []
    for fields, modality in [*((fields, 0) for fields in changed), (base, AUDIO.value)]:
        seed, chunk = (torch.tensor([fields[name]], device=device) for name in ("seed", "chunk"))
        draw = torch.tensor([fields["draw"]], dtype=torch.int32, device=device)
        out = torch.full((64,), float("nan"), device=device)
        _normal_kernel[(1,)](out, seed, chunk, draw, modality, 64)
        results.append(out.cpu())
    for a, b in itertools.combinations(results, 2):
        assert not torch.equal(a, b)
