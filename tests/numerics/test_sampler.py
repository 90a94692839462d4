"""Few-step sampler: both modes, guidance, the schedule on the device, noise."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels import BackendUnavailableError, KernelArgumentError, sampler_noise, sampler_step
from streamchar.kernels._shared.philox import philox_normal_reference
from streamchar.kernels.sampler.arguments import SamplerArgs
from streamchar.kernels.sampler.interface import operator
from streamchar.kernels.sampler.reference import sampler_step_reference
from streamchar.numerics import EPSILON
from tests.closeness import assert_close

NAN = float("nan")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SIGMAS = (1.0, 0.94, 0.8, 0.45, 0.0)
#: Roundings in fp32: guidance 3, x0 2, the two products and their sum 3, the noise 4 (see test_philox).
GROWTH = 12.0


def guarded(values: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Place ``values`` in the middle of a buffer of NaN; return the view and the buffer."""
    buffer = torch.full((values.numel() + 64,), NAN, dtype=values.dtype, device=device)
    view = buffer[32 : 32 + values.numel()].view(values.shape)
    view.copy_(values)
    return view, buffer


def make(
    rng: torch.Generator,
    device: torch.device,
    video: tuple[int, ...] = (2, 3, 7, 5),
    audio: tuple[int, ...] = (2, 3, 11),
    dtype: torch.dtype = FP32,
    v_dtype: torch.dtype = BF16,
    guided: bool = False,
    step: tuple[int, ...] = (0, 2),
) -> dict[str, Any]:
    def draw(shape: tuple[int, ...], like: torch.dtype) -> torch.Tensor:
        return guarded(torch.randn(shape, generator=rng).to(like), device)[0]

    batch = video[0]
    case: dict[str, Any] = {
        "x_video": draw(video, dtype),
        "x_audio": draw(audio, dtype),
        "v_video": draw(video, v_dtype),
        "v_audio": draw(audio, v_dtype),
        "sigmas": guarded(torch.tensor(SIGMAS), device)[0],
        "step": torch.tensor(step[:batch], dtype=torch.int32, device=device),
        "seed": torch.randint(-(2**62), 2**62, (batch,), generator=rng).to(device),
        "chunk": torch.arange(batch).mul(3).to(device),
    }
    if guided:
        case["v_video_uncond"], case["v_audio_uncond"] = draw(video, v_dtype), draw(audio, v_dtype)
        case["guidance"] = torch.linspace(1.5, 5.0, batch).to(device)
    return case


def expected(case: dict[str, Any], mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    wide = {k: t.cpu().double() if t.is_floating_point() else t.cpu() for k, t in case.items()}
    return sampler_step_reference(SamplerArgs(**wide, update=mode))


def check(case: dict[str, Any], mode: str = "renoise", backend: str = "triton") -> None:
    """Run the step in place and compare with float64. Updates the latents of ``case``."""
    reference = expected(case, mode)
    sampler_step(**case, mode=mode, backend=backend)
    for name, want in zip(("x_video", "x_audio"), reference):
        x = case[name]
        # A 2-byte result is rounded once more, by one epsilon if the store truncates.
        growth = GROWTH if x.dtype == FP32 else 1.0 + GROWTH * EPSILON[FP32] / EPSILON[x.dtype]
        assert_close(x, want, x.dtype, growth)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("mode", ["renoise", "euler"])
def test_step_equals_reference(
    mode: str, guided: bool, backend: str, device: torch.device, rng: torch.Generator
) -> None:
    check(make(rng, device, guided=guided), mode, backend)


@pytest.mark.parametrize(("dtype", "v_dtype"), [(FP32, FP32), (BF16, BF16), (FP16, FP32), (FP32, FP16)])
def test_dtypes_of_latent_and_velocity_are_free(
    dtype: torch.dtype, v_dtype: torch.dtype, device: torch.device, rng: torch.Generator
) -> None:
    check(make(rng, device, dtype=dtype, v_dtype=v_dtype, guided=True))


def test_modalities_may_differ_in_dtype(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device)
    case["x_audio"], case["v_video"] = case["x_audio"].half(), case["v_video"].float()
    check(case)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 511, 512, 513, 1027, 1536]),
    st.sampled_from([1, 5, 64, 512, 515]),
    st.sampled_from(["renoise", "euler"]),
    st.integers(0, 2**31),
)
def test_any_element_count_works(batch: int, video: int, audio: int, mode: str, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check(make(rng, where, (batch, video), (batch, audio), step=(1, 3, 0)), mode)


def test_memory_around_the_latents_is_neither_read_nor_written(
    device: torch.device, rng: torch.Generator
) -> None:
    case = make(rng, device, (2, 515), (2, 33), guided=True)
    buffers = {}
    for name in ("x_video", "x_audio"):
        case[name], buffers[name] = guarded(case[name].cpu(), device)
    check(case)
    for name, buffer in buffers.items():
        assert buffer[:32].isnan().all(), name
        assert buffer[-32:].isnan().all(), name


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("mode", ["renoise", "euler"])
def test_steps_outside_the_schedule_are_clamped(
    mode: str, backend: str, device: torch.device, rng: torch.Generator
) -> None:
    # The schedule is surrounded by NaN, so that a read outside is noticed.
    case = make(rng, device, step=(-3, 99))
    inside = {**case, "step": torch.tensor([0, 3], dtype=torch.int32)}
    reference = expected(inside, mode)
    sampler_step(**case, mode=mode, backend=backend)
    assert_close(case["x_video"], reference[0], FP32, GROWTH)
    assert_close(case["x_audio"], reference[1], FP32, GROWTH)


def test_last_step_returns_the_predicted_sample(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, step=(3, 3))
    x0 = case["x_video"].double() - SIGMAS[3] * case["v_video"].double()
    sampler_step(**case, backend="triton")
    # One rounding each of sigma, the product and the difference.
    assert_close(case["x_video"], x0, FP32, 3.0)


def test_one_row_schedule_of_one_step(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, (1, 9), (1, 4))
    case["sigmas"] = torch.tensor([1.0, 0.0], device=device)
    check(case)


def test_new_device_values_give_a_new_result(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, guided=True)
    other = make(rng, device, guided=True, step=(3, 1))
    check(case)
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sampler_step(**case, backend="triton")
        run = graph.replay
    else:

        def run() -> None:
            sampler_step(**case, backend="triton")

    for name in case:
        case[name].copy_(other[name])
    case["sigmas"].mul_(0.9)
    reference = expected(case, "renoise")
    run()
    assert_close(case["x_video"], reference[0], FP32, GROWTH)
    assert_close(case["x_audio"], reference[1], FP32, GROWTH)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_initial_noise_equals_reference(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    video, video_buffer = guarded(torch.full((2, 3, 171), NAN, dtype=dtype), device)
    audio, audio_buffer = guarded(torch.full((2, 37), NAN, dtype=dtype), device)
    seed, chunk = torch.tensor([5, -6], device=device), torch.tensor([0, 2**40], device=device)
    sampler_noise(video, audio, seed, chunk, backend=backend)
    for modality, x in enumerate((video, audio)):
        draw = torch.zeros(2, dtype=torch.int32)
        want = philox_normal_reference(seed.cpu(), chunk.cpu(), draw, modality, x[0].numel(), torch.float64)
        # In fp32 the bound of test_philox for the PyTorch path; otherwise one truncation.
        assert_close(x, want.view(x.shape), dtype, 8.0 if dtype == FP32 else 1.001)
    for buffer in (video_buffer, audio_buffer):
        assert buffer[:32].isnan().all()
        assert buffer[-32:].isnan().all()


def test_noise_of_a_row_does_not_depend_on_the_batch(device: torch.device) -> None:
    def noise(seeds: list[int], chunks: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        video, audio = (torch.full((len(seeds), n), NAN, device=device) for n in (70, 70))
        sampler_noise(
            video,
            audio,
            torch.tensor(seeds, device=device),
            torch.tensor(chunks, device=device),
            backend="triton",
        )
        return video, audio

    video, audio = noise([8, 9, 9, 8], [1, 1, 2, 1])
    alone = noise([9], [2])
    assert torch.equal(video[2:3], alone[0])
    assert torch.equal(audio[2:3], alone[1])
    assert torch.equal(video[0], video[3])
    rows = [*video[:3], *audio[:3]]
    assert all(not torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i])


def test_each_step_draws_noise_of_its_own(device: torch.device) -> None:
    zeros = torch.zeros(4, 64, device=device)
    seed, chunk = torch.full((4,), 3, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    video, audio, start_video, start_audio = (zeros.clone() for _ in range(4))
    # At a constant noise level of 1 the step returns only its noise.
    step, sigmas = torch.arange(4, dtype=torch.int32, device=device), torch.ones(5, device=device)
    sampler_step(video, audio, zeros, zeros, sigmas, step, seed, chunk, backend="triton")
    sampler_noise(start_video, start_audio, seed, chunk, backend="triton")
    draws = [*video, *audio, start_video[0], start_audio[0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_chunk_index_of_32_bits_equals_that_of_64(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device)
    case["chunk"] = torch.tensor([-1, 7], device=device)
    narrow = {name: tensor.clone() for name, tensor in case.items()}
    narrow["chunk"] = case["chunk"].int()
    sampler_step(**case, backend="triton")
    sampler_step(**narrow, backend="triton")
    assert torch.equal(case["x_video"], narrow["x_video"])


def test_torch_path_carries_gradients(device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, v_dtype=FP32)
    v = case["v_video"] = case["v_video"].clone().requires_grad_()
    sampler_step(**case)
    case["x_video"].sum().backward()
    sigma = torch.tensor(SIGMAS)
    # x' depends on v through -(1 - sigma') sigma.
    slope = torch.stack([-(1 - sigma[s + 1]) * sigma[s] for s in (0, 2)]).view(2, 1, 1, 1).expand(v.shape)
    assert v.grad is not None
    assert_close(v.grad, slope, FP32, 2.0)
    with pytest.raises(BackendUnavailableError, match="backward"):
        sampler_step(**{**case, "x_video": case["x_video"].detach()}, backend="triton")


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles_as_one_graph(backend: str, device: torch.device, rng: torch.Generator) -> None:
    case = make(rng, device, guided=True)
    eager = {name: tensor.clone() for name, tensor in case.items()}
    step = torch.compile(sampler_step, fullgraph=True, backend="aot_eager")
    noise = torch.compile(sampler_noise, fullgraph=True, backend="aot_eager")
    keys = case["seed"], case["chunk"]
    for run_step, run_noise, of in ((step, noise, case), (sampler_step, sampler_noise, eager)):
        run_noise(of["x_video"], of["x_audio"], *keys, backend=backend)
        run_step(**of, backend=backend)
    assert torch.equal(case["x_video"], eager["x_video"])
    assert torch.equal(case["x_audio"], eager["x_audio"])


def test_custom_op_is_registered_correctly(device: torch.device, rng: torch.Generator) -> None:
    args = tuple(SamplerArgs(**make(rng, device, guided=True)))
    torch.library.opcheck(operator.registered, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"mode": "heun"}, "mode"),
        ({"x_video": lambda c: c["x_video"].double()}, "x_video"),
        ({"x_video": lambda c: c["x_video"].transpose(1, 2)}, "x_video"),
        ({"x_video": lambda c: c["x_video"][:, :0]}, "x_video"),
        ({"x_video": lambda c: c["x_video"].flatten()}, "v_video|x_audio|x_video"),
        ({"x_video": lambda c: c["x_video"].new_empty((70000, 1))}, "x_audio.shape"),
        ({"x_audio": lambda c: c["x_audio"][:1]}, "x_audio"),
        ({"x_audio": lambda c: c["x_audio"].to("meta")}, "x_audio"),
        ({"v_video": lambda c: c["v_video"][..., :4]}, "v_video"),
        ({"v_audio": lambda c: c["v_audio"].int()}, "v_audio"),
        ({"v_audio": lambda c: c["v_audio"].mT.contiguous().mT}, "v_audio"),
        ({"v_video_uncond": None}, "v_video_uncond"),
        ({"guidance": None}, "guidance"),
        ({"guidance": lambda c: c["guidance"].double()}, "guidance"),
        ({"sigmas": lambda c: c["sigmas"][:1]}, "sigmas"),
        ({"sigmas": lambda c: c["sigmas"].double()}, "sigmas"),
        ({"sigmas": lambda c: c["sigmas"][::2]}, "sigmas"),
        ({"step": lambda c: c["step"].long()}, "step"),
        ({"step": lambda c: c["step"][:1]}, "step"),
        ({"seed": lambda c: c["seed"].int()}, "seed"),
        ({"chunk": lambda c: c["chunk"].float()}, "chunk"),
        ({"chunk": lambda c: c["chunk"].to("meta")}, "chunk"),
    ],
)
def test_wrong_arguments_are_named(
    change: dict[str, Any], argument: str, device: torch.device, rng: torch.Generator
) -> None:
    case = make(rng, device, guided=True)
    case.update({name: value(case) if callable(value) else value for name, value in change.items()})
    with pytest.raises(KernelArgumentError, match=f"^({argument})"):
        sampler_step(**case)


def test_more_rows_than_a_grid_holds_are_refused(device: torch.device) -> None:
    x, keys = torch.empty(65536, 1, device=device), torch.zeros(65536, dtype=torch.int64, device=device)
    with pytest.raises(KernelArgumentError, match=r"x_video.shape\[0\] must be at most 65535"):
        sampler_noise(x, x.clone(), keys, keys)
