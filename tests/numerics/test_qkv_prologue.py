"""QKV prologue: norm, rotation, slots of the KV cache, and the fp8 form with transposed v."""

import math
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels import (
    BackendUnavailableError,
    KernelArgumentError,
    qkv_prologue,
    qkv_prologue_fp8,
    rope_tables,
)
from streamchar.kernels.qkv_prologue import interface
from streamchar.kernels.qkv_prologue.arguments import QkvPrologueArgs
from streamchar.kernels.qkv_prologue.reference import qkv_prologue_reference, store_by_index, store_rows
from streamchar.numerics import EPSILON
from tests.closeness import assert_close

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
FP8 = torch.float8_e4m3fn
NAN = float("nan")
#: Roundings in fp32 of a result: the sum of 128 squares as a tree 8, mean and eps 2, rsqrt 2,
#: scale 1, weight and x 2, two products and their sum 3. The rotation keeps the norm, so nothing grows.
GROWTH = 18.0
#: (num_heads, kv_heads, head_dim, dtype): few, because each is compiled on a GPU. Heads that fill their block
#: of 8, that fill it in part, that need three blocks, and that share keys.
SHAPES = [(8, 8, 64, BF16), (3, 1, 128, FP32), (20, 4, 64, FP16), (10, 2, 128, BF16)]
OUTSIDE = (-1, -2, -(2**31), 2**31 - 1)


@dataclass
class Case:
    """Arguments of a call; the caches are views into NaN-filled buffers that surround them."""

    inputs: list[torch.Tensor]
    buffers: list[torch.Tensor]
    caches: list[torch.Tensor]
    scales: list[torch.Tensor]
    num_heads: int

    @property
    def slots(self) -> torch.Tensor:
        return self.inputs[5]


def scatter_slots(rng: torch.Generator, batch: int, tokens: int, capacity: int) -> torch.Tensor:
    """Give tokens distinct random slots; about one in five is outside and not stored."""
    rows = [torch.randperm(capacity, generator=rng)[:tokens] for _ in range(batch)]
    slots = torch.stack(rows)
    outside = torch.tensor((*OUTSIDE, capacity, capacity + 1))
    pick = torch.randint(0, len(outside), slots.shape, generator=rng)
    drop = torch.rand(slots.shape, generator=rng) < 0.2
    return torch.where(drop, outside[pick], slots)


def run_slots(batch: int, starts: list[tuple[int, int]]) -> torch.Tensor:
    """Give tokens the slots of the runs (start, length) in order, the same in every batch row."""
    row = torch.cat([torch.arange(start, start + length) for start, length in starts])
    return row.expand(batch, -1)


def make(
    rng: torch.Generator,
    device: torch.device,
    shape: tuple[int, int, int, torch.dtype],
    slots: torch.Tensor,
    capacity: int,
    fp8: bool = False,
    magnitude: float = 1.0,
    guard: int = 16,
) -> Case:
    num_heads, kv_heads, head_dim, dtype = shape
    batch, tokens = slots.shape

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=rng)

    # Rows of the projection have NaN between them.
    width = (num_heads + 2 * kv_heads) * head_dim
    wide = torch.full((batch, tokens, width + 64), NAN)
    # Heads differ in magnitude, so that a norm over the wrong elements is noticed.
    size = torch.exp2(torch.arange(width // head_dim) % 3 - 1.0).repeat_interleave(head_dim)
    wide[..., :width] = draw(batch, tokens, width) * size * magnitude
    qkv = wide.to(device, dtype)[..., :width]
    norms = [(1.0 + 0.3 * draw(head_dim)).to(device, dtype) for _ in range(2)]
    angle = 3.0 * draw(tokens, head_dim // 2)
    inputs = [
        qkv,
        *norms,
        angle.cos().to(device),
        angle.sin().to(device),
        slots.int().to(device).contiguous(),
    ]
    cache_dtype = FP8 if fp8 else dtype
    buffers = [poison((batch, capacity + 2 * guard, kv_heads, head_dim), cache_dtype, device)]
    caches = [buffers[0][:, guard : guard + capacity]]
    if fp8:
        buffers.append(poison((batch, kv_heads, head_dim, capacity + 2 * guard), cache_dtype, device))
        caches.append(buffers[1][..., guard : guard + capacity])
    else:
        buffers.append(torch.full_like(buffers[0], NAN))
        caches.append(buffers[1][:, guard : guard + capacity])
    # A scale of about 1/40 of the values avoids both the clamp and the subnormals of e4m3.
    heads = (num_heads, kv_heads, kv_heads) if fp8 else ()
    scales = [0.02 * torch.exp2(draw(batch, n).clamp(-1, 1)).to(device) for n in heads]
    return Case(inputs, buffers, caches, scales, num_heads)


def poison(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # fill_ has no fp8 kernel on every PyTorch.
    return torch.full(shape, NAN, device=device).to(dtype)


class PoisonedTorch:
    """Replaces torch in the family: uninitialised tensors are NaN and lie inside a larger buffer of NaN."""

    GUARD = 4096

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        size = math.prod(shape)
        self.buffers.append(poison((size + 2 * self.GUARD,), dtype, device))
        return self.buffers[-1][self.GUARD : self.GUARD + size].view(shape)

    def intact(self) -> bool:
        edges = [edge for buffer in self.buffers for edge in (buffer[: self.GUARD], buffer[-self.GUARD :])]
        return all(bool(edge.float().isnan().all()) for edge in edges)


def call(case: Case, backend: str = "triton", eps: float = 1e-6) -> torch.Tensor:
    """Call the public function, with every buffer that it allocates filled with and surrounded by NaN."""
    function = qkv_prologue_fp8 if case.scales else qkv_prologue
    poisoned = PoisonedTorch()
    with mock.patch.object(interface, "torch", poisoned):
        q = function(
            *case.inputs, *case.caches, *case.scales, num_heads=case.num_heads, eps=eps, backend=backend
        )
    assert poisoned.intact(), "q is written outside"
    return q


def expect(case: Case, eps: float = 1e-6) -> list[torch.Tensor]:
    """Compute q and both caches [batch, capacity, heads, head_dim] in float64, unrounded, NaN where unset."""
    wide = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in case.inputs]
    k_cache = torch.full(case.caches[0].shape, NAN, dtype=FP64)
    v_cache = k_cache.clone()
    q = qkv_prologue_reference(QkvPrologueArgs(*wide, k_cache, v_cache, case.num_heads, eps))
    out = [q, k_cache, v_cache]
    if case.scales:
        scales = [scale.cpu().double()[:, None, :, None] for scale in case.scales]
        out = [(x / scale).clamp(-448.0, 448.0) for x, scale in zip(out, scales)]
    return out


def check(case: Case, q: torch.Tensor, expected: list[torch.Tensor]) -> None:
    narrow = q.dtype
    # One epsilon for a narrow store that truncates, as the interpreter's does.
    growth = GROWTH if narrow == FP32 else 1.0 + GROWTH * EPSILON[FP32] / EPSILON[narrow]
    assert_close(q, expected[0], narrow, growth)
    v_cache = case.caches[1].permute(0, 3, 1, 2) if case.scales else case.caches[1]
    for cache, buffer, want in zip((case.caches[0], v_cache), case.buffers, expected[1:]):
        got = cache.cpu().double()
        assert torch.equal(got.isnan(), want.isnan()), "the written slots are not the expected ones"
        assert buffer.float().isnan().sum() == buffer.numel() - (~want.isnan()).sum(), "written outside"
        assert_close(got[~want.isnan()], want[~want.isnan()], narrow, growth)
    if not case.scales:
        assert torch.equal(v_cache.cpu().double().nan_to_num(), expected[2].nan_to_num()), "v is a copy"


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES),
    batch=st.integers(1, 2),
    tokens=st.integers(1, 23),
    spare=st.integers(0, 9),
    fp8=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_scattered_tokens_equal_reference(
    shape: tuple[int, int, int, torch.dtype], batch: int, tokens: int, spare: int, fp8: bool, seed: int
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = torch.Generator().manual_seed(seed)
    slots = scatter_slots(rng, batch, tokens, tokens + spare)
    case = make(rng, device, shape, slots, tokens + spare, fp8)
    expected = expect(case)
    check(case, call(case), expected)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_equals_reference(
    shape: tuple[int, int, int, torch.dtype], fp8: bool, device: torch.device, rng: torch.Generator
) -> None:
    case = make(rng, device, shape, scatter_slots(rng, 2, 19, 23), 23, fp8)
    expected = expect(case)
    check(case, call(case), expected)


@pytest.mark.parametrize(
    ("runs", "capacity"),
    [
        ([(16, 64)], 96),  # every block of v starts at a multiple of 16: whole 16-byte stores
        ([(0, 32), (48, 40)], 88),  # the second ends with the cache, in a partial block
        ([(5, 64)], 80),  # a run from a slot that is not a multiple of 16
        ([(0, 32), (64, 16), (32, 16)], 112),  # an aligned start, then a jump within a block
        ([(48, 64)], 72),  # a run from a multiple of 16 that leaves the cache within a block
        ([(2**31 - 16, 16), (0, 48)], 64),  # slots whose successor does not fit in int32
    ],
)
def test_runs_of_slots_are_stored_transposed(
    runs: list[tuple[int, int]], capacity: int, device: torch.device, rng: torch.Generator
) -> None:
    case = make(rng, device, (2, 1, 128, BF16), run_slots(1, runs), capacity, fp8=True)
    expected = expect(case)
    check(case, call(case), expected)


def test_cache_off_a_16_byte_boundary_is_written_correctly(
    device: torch.device, rng: torch.Generator
) -> None:
    case = make(rng, device, (2, 2, 64, BF16), run_slots(2, [(16, 64), (0, 7)]), 87, fp8=True, guard=5)
    expected = expect(case)
    check(case, call(case), expected)


def test_eps_bounds_the_norm_of_a_small_head(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, (3, 1, 128, FP32), scatter_slots(rng, 1, 5, 9), 9, magnitude=1e-3)
    expected = expect(case, eps=1e-5)
    check(case, call(case, eps=1e-5), expected)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_fp8_saturates(backend: str, device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, (3, 1, 128, BF16), run_slots(1, [(0, 32), (33, 5)]), 40, fp8=True)
    for scale in case.scales:
        scale.fill_(1e-4)
    expected = expect(case)
    assert (expected[0].abs() == 448.0).any(), "this test needs values beyond e4m3"
    check(case, call(case, backend), expected)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_tokens_that_share_a_slot_leave_the_others_alone(
    backend: str, fp8: bool, device: torch.device, rng: torch.Generator
) -> None:
    slots = run_slots(1, [(16, 9)])
    slots = torch.cat((slots, slots[:, 3:5]), 1)
    case = make(rng, device, (3, 1, 128, BF16), slots, 40, fp8)
    expected = expect(case)
    q = call(case, backend)
    # Either writer may win: check that the shared slots are set, then exclude them from the comparison.
    v_cache = case.caches[1].permute(0, 3, 1, 2) if fp8 else case.caches[1]
    for cache, want in zip((case.caches[0], v_cache), expected[1:]):
        assert torch.isfinite(cache[:, 19:21].float()).all()
        cache[:, 19:21] = want[:, 19:21].to(device).to(cache.dtype)
    check(case, q, expected)


@pytest.mark.parametrize("fp8", [False, True])
def test_no_token_stored_still_returns_q(fp8: bool, device: torch.device, rng: torch.Generator) -> None:
    slots = torch.tensor([[-1, 7, -7, 2**31 - 1, -(2**31)]])
    case = make(rng, device, (3, 1, 128, BF16), slots, 7, fp8)
    expected = expect(case)
    check(case, call(case), expected)


def test_both_ways_to_store_write_the_same_rows(rng: torch.Generator) -> None:
    slots = scatter_slots(rng, 3, 21, 40)
    slots[1] = -1
    rows = torch.randn(3, 21, 2, 8, generator=rng)
    caches = [torch.full((3, 40, 2, 8), NAN) for _ in range(2)]
    store_by_index(caches[0], rows, slots)
    store_rows(caches[1], rows, slots)
    assert torch.equal(caches[0].nan_to_num(7), caches[1].nan_to_num(7))
    assert caches[0][1].isnan().all()
    assert not caches[0][0].isnan().all()
    store_by_index(caches[0], rows[:, :0], slots[:, :0])


def test_both_ways_to_store_give_the_same_gradients(rng: torch.Generator) -> None:
    slots = torch.tensor([[0, 2, -1, 3, -1], [-1, -1, -1, -1, -1]])
    rows, old = torch.randn(2, 5, 1, 4, generator=rng), torch.randn(2, 6, 1, 4, generator=rng)
    weight = torch.randn(2, 6, 1, 4, generator=rng)

    def gradients(store: Any) -> tuple[torch.Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (rows, old)]
        cache = leaves[1] * 1
        store(cache, leaves[0], slots)
        return torch.autograd.grad((cache * weight).sum(), leaves)

    by_index, by_slot = gradients(store_by_index), gradients(store_rows)
    for ours, theirs in zip(by_index, by_slot, strict=True):
        assert torch.equal(ours, theirs)


def test_cache_with_heads_outermost(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, (4, 2, 64, FP32), scatter_slots(rng, 2, 11, 13), 13)
    case.buffers = [poison((2, 2, 13, 64), FP32, device) for _ in range(2)]
    case.caches = [buffer.transpose(1, 2) for buffer in case.buffers]
    expected = expect(case)
    check(case, call(case), expected)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP32, FP64])
def test_torch_backend_equals_reference(
    dtype: torch.dtype, fp8: bool, device: torch.device, rng: torch.Generator
) -> None:
    case = make(rng, device, (6, 2, 64, dtype), scatter_slots(rng, 2, 17, 21), 21, fp8)
    expected = expect(case)
    check(case, call(case, "torch"), expected)


def test_reference_equals_rotation_of_complex_numbers(rng: torch.Generator) -> None:
    case = make(rng, torch.device("cpu"), (3, 1, 128, FP64), run_slots(1, [(0, 9)]), 9)
    qkv, q_norm, k_norm, cos, sin, _ = case.inputs
    q, k_cache, v_cache = expect(case)
    heads = qkv.reshape(1, 9, 5, 128)
    unit = torch.nn.functional.normalize(heads, dim=-1) * 128**0.5
    turn = torch.complex(cos.double(), sin.double())[:, None]
    for got, x, weight in ((q, unit[:, :, :3], q_norm), (k_cache, unit[:, :, 3:4], k_norm)):
        y = x * weight
        turned = torch.complex(y[..., :64], y[..., 64:]) * turn
        # The mean square is at least 1/4, so eps = 1e-6 is negligible.
        torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), -1), rtol=1e-5, atol=1e-7)
    assert torch.equal(v_cache, heads[:, :, 4:])


def test_gradients_reach_the_projection_and_the_norms(rng: torch.Generator) -> None:
    case = make(rng, torch.device("cpu"), (2, 1, 64, FP64), torch.tensor([[2, -1]]), 3)
    qkv, q_norm, k_norm, *rest = case.inputs

    def all_outputs(qkv: torch.Tensor, q_norm: torch.Tensor, k_norm: torch.Tensor) -> torch.Tensor:
        caches = [torch.zeros(cache.shape, dtype=FP64) for cache in case.caches]
        q = qkv_prologue(qkv, q_norm, k_norm, *rest, *caches, num_heads=2)
        return torch.cat([x.flatten() for x in (q, *caches)])

    leaves = [x.detach().clone().requires_grad_() for x in (qkv, q_norm, k_norm)]
    assert torch.autograd.gradcheck(all_outputs, leaves, fast_mode=True)


def test_audio_and_video_at_one_time_meet_in_phase(device: torch.device, rng: torch.Generator) -> None:
    # Tokens with equal content and positions must give equal rows.
    positions = torch.tensor([[0.5, 0.0, 0.0], [2.0, 1.0, 3.0], [0.5, 0.0, 0.0]], dtype=FP64)
    case = make(rng, device, (3, 1, 128, FP32), run_slots(1, [(0, 3)]), 3)
    cos, sin = rope_tables(positions, 128)
    case.inputs[0][:, 2] = case.inputs[0][:, 0]
    case.inputs[3], case.inputs[4] = cos.to(device), sin.to(device)
    q = call(case)
    assert torch.equal(q[:, 0], q[:, 2])
    assert torch.equal(case.caches[0][:, 0], case.caches[0][:, 2])


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles_whole_and_equals_eager(
    backend: str, fp8: bool, device: torch.device, rng: torch.Generator
) -> None:
    case = make(rng, device, (3, 1, 128, BF16), scatter_slots(rng, 1, 5, 9), 9, fp8)
    function = qkv_prologue_fp8 if fp8 else qkv_prologue
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    caches = [cache.clone() for cache in case.caches]
    q = call(case, backend)
    again = compiled(*case.inputs, *caches, *case.scales, num_heads=case.num_heads, backend=backend)
    for got, want in zip((again, *caches), (q, *case.caches)):
        assert torch.equal(got.float().nan_to_num(-1.0), want.float().nan_to_num(-1.0))


NAMES = (
    "qkv",
    "q_norm",
    "k_norm",
    "cos",
    "sin",
    "slots",
    "k_cache",
    "v_cache",
    "q_scale",
    "k_scale",
    "v_scale",
)
CPU_ERRORS = [
    ("qkv", lambda x: x[0], "qkv must be"),
    ("qkv", lambda x: x[:, :0], "qkv must be non-empty"),
    ("qkv", lambda x: x.to(torch.int32), "qkv must be bfloat16"),
    ("qkv", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), "qkv must be contiguous in its last"),
    ("qkv", lambda x: x[..., 64:], r"qkv.shape\[2\] must be .* = 640"),
    ("q_norm", lambda x: x[:64], r"q_norm must be \[head_dim\] = \[128\]"),
    ("k_norm", lambda x: x.to(torch.int32), "k_norm must be"),
    ("q_norm", lambda x: x.repeat(2)[::2], "q_norm must be contiguous"),
    ("cos", lambda x: x[:-1], "cos must be"),
    ("sin", lambda x: x.double(), "sin must be float32"),
    ("sin", lambda x: x.T.contiguous().T, "sin must be contiguous"),
    ("slots", lambda x: x.long(), "slots must be int32"),
    ("slots", lambda x: x[:, :-1], "slots must be"),
    ("slots", lambda x: x.repeat(1, 2)[:, ::2], "slots must be contiguous"),
    ("slots", lambda x: x.to("meta"), "slots must be on"),
    ("k_cache", lambda x: x[0], "k_cache must be"),
    ("k_cache", lambda x: x[:, :0], r"k_cache.shape\[1\] must be at least 1"),
    ("k_cache", lambda x: x[..., :32], r"k_cache.shape\[3\] must be a head_dim of 64 or 128"),
    ("k_cache", lambda x: x[:, :, :0], "num_heads must be a positive multiple"),
    ("k_cache", lambda x: x.to(torch.int8), "k_cache must be"),
    ("k_cache", lambda x: x.to("meta"), "k_cache must be on"),
    ("k_cache", lambda x: x.as_strided(x.shape, (*x.stride()[:2], 2**31, 1)), r"k_cache.stride\(2\)"),
    ("v_cache", lambda x: x[:, :-1], "v_cache must be"),
    ("v_cache", lambda x: x.to(torch.int8), "v_cache must be"),
    ("v_cache", lambda x: x.repeat(1, 1, 1, 2)[..., ::2], "v_cache must be contiguous in its last"),
    ("q_scale", lambda x: x[:, :-1], r"q_scale must be \[batch, num_heads\]"),
    ("k_scale", lambda x: x.double(), "k_scale must be float32"),
    ("v_scale", lambda x: x.repeat(1, 2)[:, :1].expand(1, 2), "v_scale must be"),
    ("v_scale", lambda x: x.to("meta"), "v_scale must be on"),
]


@pytest.mark.parametrize(("name", "change", "message"), CPU_ERRORS, ids=[m for _, _, m in CPU_ERRORS])
def test_wrong_argument_is_named(name: str, change: Any, message: str, rng: torch.Generator) -> None:
    for fp8 in (False, True):
        case = make(rng, torch.device("cpu"), (3, 1, 128, BF16), run_slots(1, [(0, 4)]), 8, fp8)
        args = dict(zip(NAMES, (*case.inputs, *case.caches, *case.scales)))
        if name not in args:
            continue
        args[name] = change(args[name])
        function = qkv_prologue_fp8 if fp8 else qkv_prologue
        with pytest.raises(KernelArgumentError, match=message):
            function(*args.values(), num_heads=3)


def test_heads_and_backend_are_checked(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, (4, 2, 64, BF16), run_slots(1, [(0, 4)]), 8)
    args = (*case.inputs, *case.caches)
    for heads in (0, -2, 3):
        with pytest.raises(KernelArgumentError, match="num_heads"):
            qkv_prologue(*args, num_heads=heads)
    with pytest.raises(KernelArgumentError, match=r"qkv.shape\[2\]"):
        qkv_prologue(*args, num_heads=6)
    with pytest.raises(KernelArgumentError, match="backend"):
        qkv_prologue(*args, num_heads=4, backend="cuda")  # type: ignore[arg-type]
    wide = [x.double() if x.dtype == BF16 else x for x in args]
    with pytest.raises(KernelArgumentError, match="qkv must be bfloat16 or float16 or float32"):
        qkv_prologue(*wide, num_heads=4, backend="triton")
    grad = (case.inputs[0].clone().requires_grad_(), *args[1:])
    with pytest.raises(BackendUnavailableError, match="no backward"):
        qkv_prologue(*grad, num_heads=4, backend="triton")
    assert all(cache.isnan().all() for cache in case.caches), "a refused call writes nothing"
