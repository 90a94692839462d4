import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels import (
    KernelArgumentError,
    gated_norm_modulate,
    gated_norm_modulate_fp8,
    norm_modulate,
    norm_modulate_fp8,
    quantize_fp8,
)
from streamchar.kernels._shared.compat import FP8, INTERPRETED
from streamchar.kernels.modulation.arguments import ModulationArgs
from streamchar.kernels.modulation.reference import modulation_reference
from streamchar.numerics import relative_error
from tests.closeness import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Results are rounded once: half an epsilon, or one if the interpreter truncates. In fp32 the mean of d
# squares and the root add a few more.
GROWTH = {torch.float32: 8.0, torch.float16: 1.0, torch.bfloat16: 1.0}
# One rounding to e4m3; the interpreter's error is larger for 2 % of the values.
GROWTH_FP8 = 1.0 if INTERPRETED else 0.5


@pytest.fixture(autouse=True)
def _poisoned_allocations(monkeypatch):
    """Fill the outputs that the family allocates with NaN."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        fresh = empty(*args, **kwargs)
        if fresh.dtype == FP8:
            fresh.view(torch.uint8).fill_(0x7F)
        elif fresh.is_floating_point():
            fresh.fill_(float("nan"))
        return fresh

    monkeypatch.setattr(torch, "empty", poisoned)


def draw(rng, device, dtype, *, batch=2, tokens=5, dim=200, rows=3):
    x, branch = (torch.randn((batch, tokens, dim), generator=rng).to(device, dtype) for _ in "xb")
    # One table with six vectors a row, as in adaLN-single; the three used here are strided views.
    table = torch.randn((batch, rows, 6, dim), generator=rng).to(device)
    gate, scale, shift = table[:, :, 0], table[:, :, 2], table[:, :, 5]
    index = torch.randint(0, rows, (batch, tokens), generator=rng, dtype=torch.int32).to(device)
    return x, branch, gate, scale, shift, index


def reference(x, branch, gate, scale, shift, index, norm):
    wide = [None if each is None else each.double() for each in (x, branch, gate, scale, shift)]
    return modulation_reference(ModulationArgs(*wide, index, norm))


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_modulate_matches_float64(rng, device, dtype, norm):
    x, _, _, scale, shift, index = draw(rng, device, dtype)
    out = norm_modulate(x, scale, shift, index, norm=norm, backend="triton")
    assert out.dtype == dtype
    assert_close(out, reference(x, None, None, scale, shift, index, norm)[1], dtype, GROWTH[dtype])


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_norm_modulate_matches_float64(rng, device, dtype, norm):
    given_ = draw(rng, device, dtype)
    residual, out = gated_norm_modulate(*given_, norm=norm, backend="triton")
    expected_residual, expected = reference(*given_, norm)
    assert_close(residual, expected_residual, dtype, GROWTH[dtype])
    assert_close(out, expected, dtype, GROWTH[dtype])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 9),
    dim=st.sampled_from([1, 7, 64, 129]),
    rows=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_any_shape_matches_float64(batch, tokens, dim, rows, seed):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = torch.Generator().manual_seed(seed)
    given_ = draw(rng, device, torch.float32, batch=batch, tokens=tokens, dim=dim, rows=rows)
    residual, out = gated_norm_modulate(*given_, norm="rms", backend="triton")
    expected_residual, expected = reference(*given_, "rms")
    assert_close(residual, expected_residual, torch.float32, GROWTH[torch.float32])
    assert_close(out, expected, torch.float32, GROWTH[torch.float32])


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_fp8_output_is_the_modulated_token_over_its_own_scale(rng, device, backend, gated):
    x, branch, gate, scale, shift, index = draw(rng, device, torch.float32)
    x[0, 1] *= 1000
    if gated:
        residual, values, token_scale = gated_norm_modulate_fp8(
            x, branch, gate, scale, shift, index, backend=backend
        )
        expected_residual, expected = reference(x, branch, gate, scale, shift, index, "rms")
        assert_close(residual, expected_residual, torch.float32, GROWTH[torch.float32])
    else:
        values, token_scale = norm_modulate_fp8(x, scale, shift, index, backend=backend)
        _, expected = reference(x, None, None, scale, shift, index, "rms")
    assert values.dtype == FP8
    assert_close(token_scale, expected.abs().amax(-1) / 448, torch.float32, GROWTH[torch.float32])
    assert_close(values.double() * token_scale[..., None].double(), expected, FP8, GROWTH_FP8)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_quantize_scales_each_token_and_survives_zeros(rng, device, backend):
    x = torch.randn((2, 4, 100), generator=rng).to(device)
    x *= torch.tensor([1e-6, 1.0, 1e4, 0.0], device=device)[None, :, None]
    values, token_scale = quantize_fp8(x, backend=backend)
    for token in range(3):
        restored = values[:, token].double() * token_scale[:, token, None].double()
        assert_close(restored, x[:, token], FP8, GROWTH_FP8)
    assert (values[:, 3].float() == 0).all()
    assert torch.isfinite(token_scale).all()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_row_index_out_of_range_reads_the_nearest_row(rng, device, backend):
    x, _, _, scale, shift, index = draw(rng, device, torch.float32)
    guarded = torch.full((4, 3, 200), float("nan"), device=device)
    guarded[1:3] = scale
    wild = index.clone()
    wild[:, 0], wild[:, 1] = -(2**31), 2**31 - 1
    out = norm_modulate(x, guarded[1:3], shift, wild, backend=backend)
    index[:, 0], index[:, 1] = 0, 2
    expected = reference(x, None, None, scale, shift, index, "rms")[1]
    assert_close(out, expected, torch.float32, GROWTH[torch.float32])


def test_strided_tokens_need_no_copy(rng, device):
    x, branch, gate, scale, shift, index = draw(rng, device, torch.float32, tokens=8)
    index = index[:, :3].contiguous()
    x, branch = x[:, 2:5], branch[:, ::2][:, :3]
    residual, out = gated_norm_modulate(x, branch, gate, scale, shift, index, backend="triton")
    expected = reference(x, branch, gate, scale, shift, index, "rms")
    assert_close(residual, expected[0], torch.float32, GROWTH[torch.float32])
    assert_close(out, expected[1], torch.float32, GROWTH[torch.float32])


def test_a_new_row_index_on_the_device_is_seen_by_the_next_call(rng, device):
    x, _, _, scale, shift, index = draw(rng, device, torch.float32)
    norm_modulate(x, scale, shift, index, backend="triton")
    index.copy_((index + 1) % 3)
    out = norm_modulate(x, scale, shift, index, backend="triton")
    expected = reference(x, None, None, scale, shift, index, "rms")[1]
    assert_close(out, expected, torch.float32, GROWTH[torch.float32])


def test_torch_path_gives_gradients_to_everything_it_reads(rng, device):
    x, branch, gate, scale, shift, index = draw(rng, device, torch.float32)
    leaves = [each.clone().requires_grad_() for each in (x, branch, gate, scale, shift)]
    residual, out = gated_norm_modulate(*leaves, index)
    (residual.sum() + out.square().sum()).backward()
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_compiles_into_one_graph_with_the_eager_result(rng, device, gated):
    x, branch, gate, scale, shift, index = draw(rng, device, torch.float32)

    def run(x, branch, gate, scale, shift, index):
        if gated:
            return gated_norm_modulate_fp8(x, branch, gate, scale, shift, index, backend="triton")
        return norm_modulate_fp8(x, scale, shift, index, backend="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    arguments = (x, branch, gate, scale, shift, index)
    for ours, eager in zip(compiled(*arguments), run(*arguments), strict=True):
        assert relative_error(ours.float(), eager.float()) == 0


def _replace(name, value):
    return lambda arguments: arguments.__setitem__(name, value(arguments[name]))


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("x", _replace("x", lambda x: x[0])),
        ("x", _replace("x", lambda x: x.int())),
        ("x", _replace("x", lambda x: x[:, :0])),
        ("x", _replace("x", lambda x: x.repeat(1, 1, 2)[..., ::2])),
        ("x.shape[2]", _replace("x", lambda x: x.repeat(1, 1, 100))),
        ("branch", _replace("branch", lambda x: x[..., :100])),
        ("branch", _replace("branch", lambda x: x.half())),
        ("branch", _replace("branch", lambda x: x.to("meta"))),
        ("scale", _replace("scale", lambda x: x[:1])),
        ("shift", _replace("shift", lambda x: x[:, :2])),
        ("shift", _replace("shift", lambda x: x.int())),
        ("gate", _replace("gate", lambda x: x.to("meta"))),
        ("row_index", _replace("row_index", lambda x: x.long())),
        ("row_index", _replace("row_index", lambda x: x[:, :4])),
        ("norm", _replace("norm", lambda _: "batch")),
        ("backend", _replace("backend", lambda _: "cuda")),
    ],
)
def test_wrong_arguments_are_named_before_any_work(rng, device, argument, change):
    names = ("x", "branch", "gate", "scale", "shift", "row_index")
    arguments = dict(zip(names, draw(rng, device, torch.float32), strict=True))
    arguments |= {"norm": "rms", "backend": "auto"}
    change(arguments)
    with pytest.raises(KernelArgumentError) as error:
        gated_norm_modulate(**arguments)
    assert error.value.argument == argument


def test_scale_without_rows_is_refused(rng, device):
    x, _, _, scale, shift, index = draw(rng, device, torch.float32)
    with pytest.raises(KernelArgumentError, match="at least 1 modulation row"):
        norm_modulate(x, scale[:, :0], shift[:, :0], index)
