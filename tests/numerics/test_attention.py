import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels import KernelArgumentError, joint_attention, joint_attention_fp8, segment_table
from streamchar.kernels._shared.compat import FP8, INTERPRETED
from streamchar.kernels._shared.configs import AttentionConfig
from streamchar.kernels.attention import forward
from streamchar.kernels.attention.arguments import AttentionArgs
from streamchar.kernels.attention.interface import operator
from streamchar.kernels.attention.reference import joint_attention_reference
from tests.closeness import assert_close

SMALL = AttentionConfig(block_m=32, block_n=32, tail_n=16, num_warps=4, num_stages=1)
# Exponents reach about 2**4, so an error of one epsilon in a score becomes about 2**4 epsilons in its
# probability. Below fp32, rounding of probabilities, values and output dominates: one epsilon in total.
GROWTH = {torch.float32: 16.0, torch.float16: 1.0, torch.bfloat16: 1.0}
# e4m3 rounds each probability by at most half an epsilon; the interpreter's error is larger for 2 % of them.
# The rounding of the inputs does not count.
GROWTH_FP8 = 1.0 if INTERPRETED else 0.5


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Make a few dozen tokens span several tiles."""
    monkeypatch.setattr(forward, "attention_config", lambda dtype, head_dim: SMALL)


def draw(rng, device, dtype, *, batch=1, q_len=37, heads=2, kv_heads=2, head_dim=64, capacity=96):
    q = torch.randn((batch, q_len, heads, head_dim), generator=rng).to(device, dtype)
    k, v = (torch.randn((batch, capacity, kv_heads, head_dim), generator=rng).to(device, dtype) for _ in "kv")
    return q, k, v


def poison_outside(tensor, spans):
    """Fill every slot outside the segments with NaN."""
    keep = torch.zeros(tensor.shape[:2], dtype=torch.bool)
    for row, segments in enumerate(spans):
        for start, length in segments:
            keep[row, start : start + length] = True
    tensor[~keep.to(tensor.device)] = float("nan")


def reference(q, k, v, segments):
    return joint_attention_reference(q.double(), k.double(), v.double(), segments, q.shape[-1] ** -0.5)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_matches_float64_on_ragged_segments_of_two_rows(rng, device, dtype, head_dim):
    spans = [[(0, 7), (0, 0), (0, 0), (40, 45), (90, 3)], [(3, 32), (35, 1), (40, 33), (80, 15), (95, 1)]]
    q, k, v = draw(rng, device, dtype, batch=2, head_dim=head_dim)
    poison_outside(k, spans)
    poison_outside(v, spans)
    segments = segment_table(spans, 96, device)
    out, lse = joint_attention(q, k, v, segments, return_lse=True, backend="triton")
    expected, expected_lse = reference(q, k, v, segments)
    assert_close(out, expected, dtype, GROWTH[dtype])
    # Scores come from exact products of the rounded inputs, summed in fp32 whatever the dtype.
    assert_close(lse, expected_lse, torch.float32, GROWTH[torch.float32])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_disjoint_segments_match_float64(data):
    cuts = data.draw(st.lists(st.integers(0, 80), min_size=6, max_size=6).map(sorted))
    spans = [[(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]]
    q_len = data.draw(st.sampled_from([1, 31, 33]))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = draw(rng, device, torch.float32, q_len=q_len, capacity=80)
    poison_outside(k, spans)
    poison_outside(v, spans)
    segments = segment_table(spans, 80, device)
    out = joint_attention(q, k, v, segments, backend="triton")
    assert_close(out, reference(q, k, v, segments)[0], torch.float32, GROWTH[torch.float32])


def test_grouped_queries_share_the_right_key_head(rng, device):
    q, k, v = draw(rng, device, torch.float32, heads=6, kv_heads=2)
    segments = segment_table([[(0, 50), (60, 21)]], 96, device)
    out = joint_attention(q, k, v, segments, backend="triton")
    assert_close(out, reference(q, k, v, segments)[0], torch.float32, GROWTH[torch.float32])


def test_every_output_element_is_written(rng, device):
    q, k, v = draw(rng, device, torch.float32, batch=2)
    segments = segment_table([[(0, 40)], [(1, 33)]], 96, device)
    out = torch.full_like(q, float("nan"))
    lse = torch.full((2, 2, 37), float("nan"), device=device)
    operator(AttentionArgs(q, k, v, segments, out=out, lse=lse))
    assert torch.isfinite(out).all()
    assert torch.isfinite(lse).all()


def test_a_row_without_keys_gives_zero_and_minus_infinity(rng, device):
    q, k, v = draw(rng, device, torch.float32, batch=2)
    k[0], v[0] = float("nan"), float("nan")
    segments = segment_table([[(0, 0), (5, 0)], [(0, 20), (30, 2)]], 96, device)
    for backend in ("triton", "torch"):
        out, lse = joint_attention(q, k, v, segments, return_lse=True, backend=backend)
        assert (out[0] == 0).all()
        assert (lse[0] == float("-inf")).all()
        assert_close(out[1], reference(q, k, v, segments)[0][1], torch.float32, GROWTH[torch.float32])


@pytest.mark.parametrize(
    "table",
    [[[90, 100]], [[-20, 60]], [[96, 5]], [[2**31 - 1, 2**31 - 1]], [[10, -5]], [[-(2**31), 2**31 - 1]]],
    ids=str,
)
def test_a_table_corrupted_on_the_device_stays_in_the_buffer(rng, device, table):
    q, k, v = draw(rng, device, torch.float32)
    big = torch.full((3, *k.shape[1:]), float("nan"), device=device)
    guarded_k, guarded_v = big.clone(), big.clone()
    guarded_k[1], guarded_v[1] = k[0], v[0]
    segments = torch.tensor([table], dtype=torch.int32, device=device)
    out = joint_attention(q, guarded_k[1:2], guarded_v[1:2], segments, backend="triton")
    assert torch.isfinite(out).all()
    assert_close(out, reference(q, k, v, segments)[0], torch.float32, GROWTH[torch.float32])


def test_replaying_with_a_changed_table_attends_to_the_new_segments(rng, device):
    q, k, v = draw(rng, device, torch.float32)
    segments = segment_table([[(0, 0), (50, 40)]], 96, device)
    joint_attention(q, k, v, segments, backend="triton")
    segments.copy_(segment_table([[(10, 35), (50, 40)]], 96, device))
    out = joint_attention(q, k, v, segments, backend="triton")
    assert_close(out, reference(q, k, v, segments)[0], torch.float32, GROWTH[torch.float32])


def test_large_scores_neither_overflow_nor_lose_the_maximum(rng, device):
    q, k, v = draw(rng, device, torch.float32)
    q *= 300
    segments = segment_table([[(0, 64), (70, 9)]], 96, device)
    out = joint_attention(q, k, v, segments, backend="triton")
    # Scores near 2**10 carry 2**10 epsilons into the exponent.
    assert_close(out, reference(q, k, v, segments)[0], torch.float32, 2.0**10)


def quantized(rng, device, head_dim, capacity=96, heads=4, kv_heads=2):
    q, k, v = draw(
        rng, device, torch.float32, heads=heads, kv_heads=kv_heads, head_dim=head_dim, capacity=capacity
    )
    scales = [torch.rand((1, x.shape[2]), generator=rng).to(device) * 0.02 + 0.01 for x in (q, k, v)]
    q8, k8, v8 = ((x / s[:, None, :, None]).clamp(-448, 448).to(FP8) for x, s in zip((q, k, v), scales))
    exact = [x.double() * s.double()[:, None, :, None] for x, s in zip((q8, k8, v8), scales)]
    return (q8, k8, v8.permute(0, 2, 3, 1).contiguous()), scales, exact


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("spans", [[(0, 64), (70, 0), (80, 16)], [(16, 33), (64, 7), (80, 15)]], ids=str)
def test_fp8_matches_float64_on_the_quantised_values(rng, device, head_dim, spans):
    (q8, k8, v8), scales, exact = quantized(rng, device, head_dim)
    segments = segment_table([spans], 96, device)
    keep = torch.zeros(96, dtype=torch.bool)
    for start, length in spans:
        keep[start : start + length] = True
    nan = torch.tensor(float("nan")).to(FP8).view(torch.uint8).item()
    k8.view(torch.uint8)[:, ~keep] = nan
    v8.view(torch.uint8)[..., ~keep] = nan
    expected = joint_attention_reference(*exact, segments, head_dim**-0.5)[0]
    out = joint_attention_fp8(q8, k8, v8, segments, *scales, out_dtype=torch.float32, backend="triton")
    assert_close(out, expected, FP8, GROWTH_FP8)
    plain = joint_attention_fp8(q8, k8, v8, segments, *scales, out_dtype=torch.float32, backend="torch")
    assert_close(plain, expected, torch.float32, GROWTH[torch.float32])


def test_torch_path_matches_float64_and_gives_gradients(rng, device):
    q, k, v = draw(rng, device, torch.float32, batch=2, heads=4, kv_heads=2)
    spans = [[(0, 7), (40, 45)], [(3, 32), (80, 15)]]
    poison_outside(k, spans)
    poison_outside(v, spans)
    segments = segment_table(spans, 96, device)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = joint_attention(q, k, v, segments)
    assert_close(out, reference(q, k, v, segments)[0], torch.float32, GROWTH[torch.float32])
    out.square().sum().backward()
    assert torch.isfinite(q.grad).all()
    assert q.grad.abs().sum() > 0
    used = torch.zeros(96, dtype=torch.bool)
    used[0:7] = used[40:85] = True
    assert (v.grad[0, ~used] == 0).all()
    assert (v.grad[0, used].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles_into_one_graph_that_follows_the_table(rng, device, backend):
    spans = [[(0, 40), (60, 5)], [(0, 0), (0, 0)]]
    q, k, v = draw(rng, device, torch.float32, batch=2, heads=4)
    poison_outside(k, spans)
    poison_outside(v, spans)
    segments = segment_table(spans, 96, device)

    def run(q, k, v, segments):
        return joint_attention(q, k, v, segments, backend=backend)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    compiled(q, k, v, torch.zeros_like(segments))
    out = compiled(q, k, v, segments)
    assert (out[1] == 0).all()
    assert_close(out, run(q, k, v, segments), torch.float32, 2.0)


def _bad(name, change):
    return pytest.param(name, change, id=f"{name}-{change.__name__.strip('_')}")


def three_dims(a):
    a["q"] = a["q"][0]


def integers(a):
    a["q"] = a["q"].int()


def odd_head_dim(a):
    a["q"] = a["q"][..., :48].contiguous()


def mixed_dtypes(a):
    a["k"] = a["k"].half()


def other_device(a):
    a["v"] = a["v"].to("meta")


def strided(a):
    a["k"] = a["k"].transpose(0, 1).contiguous().transpose(0, 1)[:, ::2]
    a["v"] = a["v"][:, ::2]


def three_heads(a):
    a["k"] = a["v"] = torch.zeros((2, 96, 3, 64), device=a["q"].device)


def other_capacity(a):
    a["v"] = a["v"][:, :32].contiguous()


def long_integers(a):
    a["segments"] = a["segments"].long()


def nine_segments(a):
    a["segments"] = a["segments"].repeat(1, 9, 1)


def other_batch(a):
    a["segments"] = a["segments"][:1]


def negative(a):
    a["softmax_scale"] = -1.0


def empty(a):
    a["q"] = a["q"][:, :0]


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        _bad("q", three_dims),
        _bad("q", integers),
        _bad("q", empty),
        _bad("head_dim", odd_head_dim),
        _bad("k", mixed_dtypes),
        _bad("v", other_device),
        _bad("k", strided),
        _bad("kv_heads", three_heads),
        _bad("v", other_capacity),
        _bad("segments", long_integers),
        _bad("num_segments", nine_segments),
        _bad("segments", other_batch),
        _bad("softmax_scale", negative),
    ],
)
def test_wrong_arguments_are_named_before_any_work(rng, device, argument, change):
    q, k, v = draw(rng, device, torch.float32, batch=2)
    arguments = {"q": q, "k": k, "v": v, "segments": segment_table([[(0, 4)], [(0, 4)]], 96, device)}
    change(arguments)
    with pytest.raises(KernelArgumentError) as error:
        joint_attention(**arguments)
    assert error.value.argument == argument


def test_a_tensor_off_its_16_byte_boundary_is_refused(rng, device):
    q, k, v = draw(rng, device, torch.float32)
    flat = torch.zeros(q.numel() + 1, device=device)
    with pytest.raises(KernelArgumentError, match="q must be aligned to 16 bytes"):
        joint_attention(flat[1:].view(q.shape), k, v, segment_table([[(0, 4)]], 96, device), backend="triton")


def test_fp8_rounds_a_misaligned_start_down_alike_on_both_paths(rng, device):
    (q8, k8, v8), scales, exact = quantized(rng, device, 64)
    segments = torch.tensor([[[21, 30], [70, 9]]], dtype=torch.int32, device=device)
    expected = joint_attention_reference(*exact, segment_table([[(16, 30), (64, 9)]], 96, device), 0.125)[0]
    for backend in ("triton", "torch"):
        out = joint_attention_fp8(q8, k8, v8, segments, *scales, backend=backend)
        assert_close(out, expected, FP8, GROWTH_FP8)


def test_fp8_names_a_capacity_that_cannot_be_described(rng, device):
    (q8, k8, v8), scales, _ = quantized(rng, device, 64)
    segments = segment_table([[(0, 4)]], 96, device)
    with pytest.raises(KernelArgumentError, match="multiple of 16 slots in fp8, got 90; pad the cache"):
        joint_attention_fp8(
            q8, k8[:, :90].contiguous(), v8[..., :90].contiguous(), segments, *scales, backend="triton"
        )
    with pytest.raises(KernelArgumentError, match="k_scale must be"):
        joint_attention_fp8(q8, k8, v8, segments, scales[0], scales[0], scales[2], backend="triton")
