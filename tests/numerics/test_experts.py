from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels import BackendUnavailableError, KernelArgumentError, expert_down, expert_up
from streamchar.kernels._shared.compat import FP8
from streamchar.kernels._shared.configs import GemmConfig
from streamchar.kernels.experts import forward, interface
from streamchar.kernels.experts.interface import operator
from tests.closeness import assert_close
from tests.numerics.expert_cases import Case, Fp8Case

# Small enough that every test has several tiles in each direction, and both whole and partial steps.
TILE = GemmConfig(16, 32, 32, group_m=2, num_warps=4, num_stages=2)
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new tensors with NaN, so that an element that is never written is noticed."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    use_config(monkeypatch, TILE)


def use_config(monkeypatch: pytest.MonkeyPatch, config: GemmConfig) -> None:
    monkeypatch.setattr(forward, "gemm_config", lambda *args: config)


def fp32_growth(k: int) -> float:
    # A sum of k products of random sign is rounded k times, each by half an epsilon of the partial sum. This
    # adds up to sqrt(k) / 2 of the result. Bias, the six operations of GELU or gate and residual, and the
    # store add at most one each.
    return 0.5 * k**0.5 + 8


# Results are summed in fp32 and rounded once: half an epsilon, or one if the interpreter truncates.
ONE_ROUNDING = 1.0
# The library rounds the product, then the activation or the sum. The first error is multiplied by the slope
# of GELU, at most 1.13, or by the gate.
TWO_ROUNDINGS = 2.0


@HALF
def test_up_matches_the_reference(
    dtype: torch.dtype, rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Case(rng, device, dtype)
    for out, reference in zip(case.run_up(), case.up_reference()):
        assert out.dtype == dtype
        assert_close(out, reference, dtype, ONE_ROUNDING)


@HALF
def test_down_matches_the_reference(
    dtype: torch.dtype, rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Case(rng, device, dtype)
    out = case.run_down()
    assert out.dtype == dtype
    assert_close(out, case.down_reference(), dtype, ONE_ROUNDING)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 2),
    video=st.integers(0, 40),
    audio=st.integers(0, 30),
    widths=st.sampled_from([(40, 104, 56), (32, 64, 96), (8, 4, 132)]),
    rows=st.integers(1, 4),
)
def test_any_ragged_shape_matches_in_fp32(
    seed: int, batch: int, video: int, audio: int, widths: tuple[int, int, int], rows: int
) -> None:
    if video + audio == 0:
        audio = 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = torch.Generator().manual_seed(seed)
    sizes = {"batch": batch, "video": video, "audio": audio, "rows": rows}
    case = Case(rng, device, torch.float32, widths=widths, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        use_config(patch, TILE)
        up, down = case.run_up(), case.run_down()
    assert_close(down, case.down_reference(), torch.float32, fp32_growth(max(widths[1:])))
    for out, reference in zip(up, case.up_reference()):
        assert_close(out, reference, torch.float32, fp32_growth(widths[0]))


@pytest.mark.parametrize(("video", "audio"), [(21, 18), (0, 18), (21, 0), (1, 1)])
def test_fp8_matches_the_dequantised_reference(
    video: int, audio: int, rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Fp8Case(rng, device, video=video, audio=audio)
    # Products of e4m3 are exact in fp32; the tensor core's short sums lose k / 32 of 2**-14, with k <= 112.
    for out, reference in zip(case.run_up8(), case.up8_reference()):
        assert_close(out, reference, torch.bfloat16, ONE_ROUNDING)
    assert_close(case.run_down8(), case.down8_reference(), torch.bfloat16, ONE_ROUNDING)


def test_fp8_scales_reach_the_accumulator_in_fp32(
    rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Fp8Case(rng, device)
    # Short sums of the tensor core: k / 32 of 2**-14, or 16 k epsilons of fp32. A bf16 epsilon is 65536.
    for out, reference in zip(case.run_up8(out_dtype=torch.float32), case.up8_reference()):
        assert out.dtype == torch.float32
        assert_close(out, reference, torch.float32, 16 * case.x.shape[2] + fp32_growth(48))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="shipped"),
        pytest.param(GemmConfig(16, 32, 32, 2, 4, 2, split_epilogue=False), id="whole epilogue"),
        pytest.param(GemmConfig(16, 32, 32, 2, 4, 2, flatten=True), id="flattened"),
        pytest.param(GemmConfig(16, 32, 32, 2, 4, 2, promote=True), id="promoted"),
        pytest.param(GemmConfig(16, 64, 64, 1, 4, 3), id="group of one"),
        pytest.param(GemmConfig(32, 64, 32, 16, 4, 2, blocks_per_sm=2), id="group of all"),
    ],
)
def test_every_tiling_gives_the_same_result(
    config: GemmConfig | None, rng: torch.Generator, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if config is not None:
        use_config(monkeypatch, config)
    case = Fp8Case(rng, device, video=35, audio=18)
    for out, reference in zip(case.run_up(), case.up_reference()):
        assert_close(out, reference, torch.bfloat16, ONE_ROUNDING)
    assert_close(case.run_down(), case.down_reference(), torch.bfloat16, ONE_ROUNDING)
    for out, reference in zip(case.run_up8(), case.up8_reference()):
        assert_close(out, reference, torch.bfloat16, ONE_ROUNDING)
    assert_close(case.run_down8(), case.down8_reference(), torch.bfloat16, ONE_ROUNDING)


def test_the_wide_tile_matches_over_several_tiles(rng: torch.Generator, device: torch.device) -> None:
    # 300 rows and 520 columns: two whole tiles and a part, either way.
    config = forward.gemm_config(torch.bfloat16, 2048, 14336, 3072)
    assert (config.block_m, config.block_n) == (128, 256)
    case = Case(rng, device, torch.bfloat16, batch=1, video=300, audio=20, widths=(72, 520, 264))
    with pytest.MonkeyPatch.context() as patch:
        use_config(patch, config)
        outs = case.run_up()
    for out, reference in zip(outs, case.up_reference()):
        assert_close(out, reference, torch.bfloat16, ONE_ROUNDING)


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_the_number_of_programs_changes_nothing(
    programs: int,
    rng: torch.Generator,
    device: torch.device,
    small_tiles: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(rng, device, torch.float32)
    expected = (*case.run_up(), case.run_down())
    properties = SimpleNamespace(multi_processor_count=programs)
    monkeypatch.setattr(forward, "_INTERPRETED_SMS", programs)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for out, before in zip((*case.run_up(), case.run_down()), expected):
        assert torch.equal(out, before)


def test_other_experts_and_other_batch_rows_do_not_leak(
    rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Case(rng, device, torch.bfloat16)
    references = case.up_reference()
    case.x[:, case.num_video :] = float("nan")
    assert_close(case.run_up()[0], references[0], torch.bfloat16, ONE_ROUNDING)
    case = Case(rng, device, torch.bfloat16)
    references = case.up_reference()
    case.x[:, : case.num_video] = float("nan")
    case.x[1] = float("nan")
    assert_close(case.run_up()[1][:1], references[1][:1], torch.bfloat16, ONE_ROUNDING)
    case = Case(rng, device, torch.bfloat16)
    reference = case.down_reference()
    for h in case.h:
        h[1] = float("nan")
    assert_close(case.run_down()[0], reference[0], torch.bfloat16, ONE_ROUNDING)


def test_nothing_is_written_outside_the_outputs(
    rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Case(rng, device, torch.float32)
    guard = 256

    def guarded(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        memory = torch.full((like.numel() + 2 * guard,), float("inf"), device=device)
        return memory, memory[guard:-guard].view(like.shape)

    references = (*case.up_reference(), case.down_reference())
    (m_video, video), (m_audio, audio), (m_out, out) = (guarded(each) for each in references)
    operator(case.up_args._replace(out_video=video, out_audio=audio))
    operator(case.down_args._replace(out_video=out))
    for memory, result, reference in zip((m_video, m_audio, m_out), (video, audio, out), references):
        assert_close(result, reference, torch.float32, fp32_growth(104))
        assert torch.isinf(memory[:guard]).all()
        assert torch.isinf(memory[-guard:]).all()


def test_gate_rows_outside_the_table_are_clamped(
    rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Case(rng, device, torch.float32)
    memory = torch.full((4, 9, case.gate.shape[2]), float("nan"), device=device)
    memory[1:3, 3:6] = case.gate
    case.gate = memory[1:3, 3:6]
    case.row_index[:, :2] = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    case.row_index[:, 2:4] = torch.tensor([-1, 3], dtype=torch.int32)
    reference = case.down_reference()
    assert_close(case.run_down(), reference, torch.float32, fp32_growth(104))


def test_gate_may_be_a_strided_slice_of_the_modulation_table(
    rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Case(rng, device, torch.bfloat16)
    table = torch.randn((2, 3, 6, 40), generator=rng).to(torch.bfloat16).to(device)
    case.gate = table[:, :, 5]
    assert_close(case.run_down(), case.down_reference(), torch.bfloat16, ONE_ROUNDING)


@HALF
def test_the_library_path_matches_the_reference(
    dtype: torch.dtype, rng: torch.Generator, device: torch.device
) -> None:
    case = Case(rng, device, dtype)
    for out, reference in zip(case.run_up("torch"), case.up_reference()):
        assert out.dtype == dtype
        assert_close(out, reference, dtype, TWO_ROUNDINGS)
    out = case.run_down("torch")
    assert out.dtype == dtype
    assert_close(out, case.down_reference(), dtype, TWO_ROUNDINGS)


@pytest.mark.parametrize(("video", "audio"), [(21, 18), (0, 18), (21, 0)])
def test_the_fp8_library_path_matches_the_reference(
    video: int, audio: int, rng: torch.Generator, device: torch.device
) -> None:
    case = Fp8Case(rng, device, video=video, audio=audio)
    for out, reference in zip(case.run_up8("torch"), case.up8_reference()):
        assert out.dtype == torch.bfloat16
        assert_close(out, reference, torch.bfloat16, TWO_ROUNDINGS)
    assert_close(case.run_down8("torch"), case.down8_reference(), torch.bfloat16, TWO_ROUNDINGS)


def test_fp64_stays_fp64_on_the_library_path(rng: torch.Generator, device: torch.device) -> None:
    case = Case(rng, device, torch.float64)
    case.gate = case.gate.double()
    assert_close(case.run_down("torch"), case.down_reference(), torch.float64, fp32_growth(104))
    with pytest.raises(KernelArgumentError, match=r"^backend must be 'auto' or 'torch' for float64"):
        case.run_up("triton")


def test_gradients_flow_on_the_library_path(rng: torch.Generator, device: torch.device) -> None:
    case = Case(rng, device, torch.float64, batch=1, video=2, audio=1, widths=(4, 6, 2))
    leaves = [case.x, *case.up, *case.down]
    for leaf in leaves:
        leaf.requires_grad_()

    def block(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        h = expert_up(x, *weights[:4], num_video=2)
        return expert_down(*h, *weights[4:], x, case.gate.double(), case.row_index)

    assert torch.autograd.gradcheck(block, leaves)


def test_triton_refuses_to_lose_a_gradient(rng: torch.Generator, device: torch.device) -> None:
    case = Case(rng, device, torch.float32)
    case.up[0].requires_grad_()
    with pytest.raises(BackendUnavailableError, match="no backward pass"):
        case.run_up("triton")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> list[str]:
    """Make ``auto`` choose as on a GPU; return a list that grows with every launch."""
    launches: list[str] = []
    launch = operator.launch

    def counted(args: Any) -> Any:
        launches.append("triton")
        return launch(args)

    monkeypatch.setattr(operator, "launch", counted)
    monkeypatch.setattr(interface, "use_triton", lambda backend, *tensors: True)
    if device.type == "cpu":
        properties = SimpleNamespace(name="a GPU", multi_processor_count=4)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return launches


@pytest.mark.parametrize("choice", ["triton", "cublas"])
def test_auto_on_cuda_takes_what_was_measured(
    choice: str,
    rng: torch.Generator,
    device: torch.device,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []
    other = "cublas" if choice == "triton" else "triton"

    def recorded(*key: Any) -> tuple[Any, ...]:
        asked.append(key[:4])
        # Rows are counted over the whole batch; those of one batch row would pick the other entry.
        return (21, 18, other), (42, 36, choice)

    monkeypatch.setattr(interface, "measured", recorded)
    case = Fp8Case(rng, device)
    calls = (case.run_up("auto"), case.run_down("auto"), case.run_up8("auto"), case.run_down8("auto"))
    assert len(launched) == (4 if choice == "triton" else 0)
    # Output and input width of the video expert.
    assert asked == [
        ("expert_up", torch.bfloat16, 112, 48),
        ("expert_down", torch.bfloat16, 48, 112),
        ("expert_up", FP8, 112, 48),
        ("expert_down", FP8, 48, 112),
    ]
    assert_close(calls[1], case.down_reference(), torch.bfloat16, TWO_ROUNDINGS)


def test_auto_is_chosen_again_when_a_compiled_call_has_other_rows(
    rng: torch.Generator,
    device: torch.device,
    launched: list[str],
    small_tiles: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = ((9, 3, "triton"), (7, 5, "cublas"))
    monkeypatch.setattr(interface, "measured", lambda *key: entries)
    case = Case(rng, device, torch.float32, batch=1, video=9, audio=3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def up(num_video: int) -> tuple[torch.Tensor, torch.Tensor]:
        return expert_up(case.x, *case.up, num_video=num_video)

    for num_video, launches in ((9, 1), (7, 1), (8, 2), (6, 2)):
        up(num_video)
        assert len(launched) == launches, num_video


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiled_without_a_graph_break_gives_the_same(
    backend: Any, rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Fp8Case(rng, device, batch=1, video=17, audio=5)

    def step() -> tuple[torch.Tensor, ...]:
        wide = (*case.run_up(backend), case.run_down(backend))
        return *wide, *case.run_up8(backend), case.run_down8(backend)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for out, eager in zip(compiled(), step()):
        assert torch.equal(out, eager)


def test_custom_op_is_registered_correctly(
    rng: torch.Generator, device: torch.device, small_tiles: None
) -> None:
    case = Case(rng, device, torch.float32, video=9, audio=3)
    video, audio = (torch.zeros_like(each, dtype=torch.float32) for each in case.up_reference())
    checks = ("test_schema", "test_faketensor")
    args = tuple(case.up_args._replace(out_video=video, out_audio=audio))
    torch.library.opcheck(operator.registered, args, test_utils=checks)


def test_every_shipped_launch_fits_the_hopper_it_is_meant_for() -> None:
    launches = forward.shipped()
    assert {name.split()[-1] for name in launches} == {"bf16", "fp16", "fp8"}
    for name, launch in launches.items():
        args = launch.args
        step = (
            (args["BLOCK_M"] + args["BLOCK_N"]) * args["BLOCK_K"] * args["w_video_desc"].base.element_size()
        )
        # At most 227 KB a program, and two programs on a multiprocessor if the grid assumes it.
        blocks = -(-launch.grid[0] // 132)
        assert step * launch.num_stages * blocks <= 227 * 1024, name
