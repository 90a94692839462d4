"""The vocoder: cut anywhere it gives the same samples, at the right sample, each row on its own."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from streamchar.codecs.vocoder import Vocoder, VocoderError, VocoderState
from streamchar.config import PRESETS, ConfigError, preset
from streamchar.numerics import relative_error
from tests.closeness import assert_close

TINY = preset("tiny")
CONFIG = TINY.vocoder
TOKEN = TINY.clock.samples_per_frame
CHANNELS = TINY.dit.audio_channels
#: A bit more than the roundings met by one number: log magnitude (up to 6) and phase (up to 3) as they enter,
#: exp, sine and products (5), one for each level of a transform of 1000 points (10).
SPECTRUM_GROWTH = 24


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    """In float64, where two orders of the same sums differ by nothing that could hide a fault."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Vocoder.from_preset(TINY).to(device, torch.float64).requires_grad_(False)


@pytest.fixture
def latents(vocoder: Vocoder, rng: torch.Generator) -> Callable[..., torch.Tensor]:
    def draw(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, CHANNELS, dtype=torch.float64, generator=rng)
        return drawn.to(vocoder.head.weight.device)

    return draw


def spectrum(signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Transform windows that start at each hop, by the definition of the transform rather than by FFT."""
    frames = signal.double().unfold(-1, CONFIG.n_fft, CONFIG.hop)
    time = torch.arange(CONFIG.n_fft, dtype=torch.float64, device=signal.device)
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi * time / CONFIG.n_fft)
    angle = 2 * torch.pi / CONFIG.n_fft * (torch.outer(time, time[: CONFIG.bins]) % CONFIG.n_fft)
    real, imaginary = frames * window @ angle.cos(), -(frames * window @ angle.sin())
    return torch.log(torch.hypot(real, imaginary)), torch.atan2(imaginary, real)


def resynthesise(vocoder: Vocoder, signal: torch.Tensor) -> torch.Tensor:
    state = vocoder.new_state(signal.shape[0])
    dtype = vocoder.head.weight.dtype
    return vocoder.synthesise(state, *(part.to(dtype) for part in spectrum(signal)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_stream_cut_anywhere_gives_the_samples_of_one_decode(pieces: list[int]) -> None:
    torch.manual_seed(sum(pieces))
    vocoder = Vocoder.from_preset(TINY).double().requires_grad_(False)
    latents = torch.randn(2, sum(pieces), CHANNELS, dtype=torch.float64)
    state = vocoder.new_state(2)
    streamed = torch.cat([vocoder.decode(state, piece) for piece in latents.split(pieces, 1)], 1)
    # Only matrix products of other heights round otherwise: sums of at most 576 terms, a dozen in a row.
    assert_close(streamed, vocoder.decode(vocoder.new_state(2), latents), torch.float64, growth=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exact_spectrum_of_a_signal_gives_the_signal_back(
    vocoder: Vocoder, rng: torch.Generator, dtype: torch.dtype
) -> None:
    single = Vocoder.from_preset(TINY).to(vocoder.head.weight.device, dtype)
    signal = (torch.rand(2, 8 * TOKEN, generator=rng, dtype=torch.float64) * 2 - 1).to(
        single.head.weight.device
    )
    out = resynthesise(single, signal)
    assert out.dtype == dtype
    warm = slice(CONFIG.n_fft - CONFIG.hop, out.shape[1])
    assert_close(out[:, warm], signal[:, warm], dtype, growth=SPECTRUM_GROWTH)


def test_a_stream_fades_in_where_windows_before_its_start_are_missing(
    vocoder: Vocoder, rng: torch.Generator
) -> None:
    signal = torch.rand(1, 4 * TOKEN, generator=rng, dtype=torch.float64).to(vocoder.head.weight.device)
    out = resynthesise(vocoder, signal)
    time = torch.arange(out.shape[1], dtype=torch.float64, device=out.device)
    gain = torch.zeros_like(time)
    for start in range(0, out.shape[1], CONFIG.hop):
        inside = (time >= start) & (time < start + CONFIG.n_fft)
        gain += inside * torch.sin(torch.pi * (time - start) / CONFIG.n_fft) ** 4 / (0.375 * CONFIG.overlap)
    assert_close(out[0], gain * signal[0, : out.shape[1]], torch.float64, growth=SPECTRUM_GROWTH)


@pytest.mark.parametrize("position", [TINY.samples, TINY.samples + 1, TINY.samples - 1, TINY.samples + 617])
def test_an_impulse_sounds_at_its_own_sample(vocoder: Vocoder, position: int) -> None:
    signal = torch.full((1, TINY.samples + 3 * TOKEN), 1e-9, dtype=torch.float64)
    signal[0, position] = 1.0
    signal = signal.to(vocoder.head.weight.device)
    out = resynthesise(vocoder, signal)[0]
    assert out.abs().argmax() == position
    assert out[position].item() == pytest.approx(1.0, abs=1e-12)
    assert out.abs().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_a_token_sounds_from_its_own_first_sample_on_and_not_before(
    vocoder: Vocoder, latents: Callable[..., torch.Tensor]
) -> None:
    before = latents(1, 12)
    after = before.clone()
    after[:, 7] += 1.0
    one, other = (vocoder.decode(vocoder.new_state(1), x)[0] for x in (before, after))
    changed = (one != other).nonzero()[0].item()
    # The window itself is 0 at its first sample.
    assert changed == 7 * TOKEN + 1


def test_every_chunk_is_as_long_as_its_pictures(
    vocoder: Vocoder, latents: Callable[..., torch.Tensor]
) -> None:
    state = vocoder.new_state(1)
    for _ in range(3):
        assert vocoder.decode(state, latents(1, TINY.audio_tokens)).shape == (1, TINY.samples)


def test_rows_know_nothing_of_each_other(vocoder: Vocoder, latents: Callable[..., torch.Tensor]) -> None:
    first, second = latents(3, 5), latents(3, 4)
    poisoned = first.clone()
    poisoned[1] = float("nan")
    state = vocoder.new_state(3)
    vocoder.decode(state, poisoned)
    state.reset(1)
    out = vocoder.decode(state, second)
    for row in range(3):
        alone = vocoder.new_state(1)
        if row != 1:
            vocoder.decode(alone, first[row : row + 1])
        wanted = vocoder.decode(alone, second[row : row + 1])
        assert_close(out[row : row + 1], wanted, torch.float64, growth=100)


def test_reset_starts_every_stream_afresh(vocoder: Vocoder, latents: Callable[..., torch.Tensor]) -> None:
    x, state = latents(2, 3), vocoder.new_state(2)
    fresh = vocoder.decode(state, x)
    assert relative_error(vocoder.decode(state, x), fresh) > 0.01
    state.reset()
    assert torch.equal(vocoder.decode(state, x), fresh)


def record(vocoder: Vocoder, state: VocoderState, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Record one decode as a CUDA graph, or without a GPU as the list of its tensor operations."""
    if x.is_cuda:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            vocoder.decode(state, x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = vocoder.decode(state, x)
        return lambda: (graph.replay(), out)[1]

    def step(context: torch.Tensor, tail: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return vocoder.decode(VocoderState(context, tail, state.window), latents)

    traced = make_fx(step)(state.context.clone(), state.tail.clone(), x)
    return lambda: traced(state.context, state.tail, x)


def test_a_recorded_decode_replays_for_every_later_chunk(
    vocoder: Vocoder, latents: Callable[..., torch.Tensor]
) -> None:
    chunks = [latents(2, 4) for _ in range(4)]
    static, state, plain = latents(2, 4), vocoder.new_state(2), vocoder.new_state(2)
    where = [buffer.data_ptr() for buffer in (state.context, state.tail, state.window)]
    replay = record(vocoder, state, static)
    state.reset()
    for chunk in chunks:
        static.copy_(chunk)
        assert_close(replay(), vocoder.decode(plain, chunk), torch.float64, growth=100)
    assert where == [buffer.data_ptr() for buffer in (state.context, state.tail, state.window)]


def test_decode_compiles_to_one_graph(vocoder: Vocoder, latents: Callable[..., torch.Tensor]) -> None:
    compiled = torch.compile(vocoder.decode, fullgraph=True, backend="aot_eager")
    one, other = vocoder.new_state(1), vocoder.new_state(1)
    for _ in range(2):
        x = latents(1, 3)
        assert_close(compiled(one, x), vocoder.decode(other, x), torch.float64, growth=100)


def test_half_precision_weights_still_give_single_precision_samples(
    device: torch.device, rng: torch.Generator
) -> None:
    torch.manual_seed(1)
    model = Vocoder.from_preset(TINY).to(device, torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, 8, CHANNELS, generator=rng).to(device, torch.bfloat16)
    out = model.decode(model.new_state(1), x)
    assert out.dtype == torch.float32
    wide = model.double()
    # Some six roundings of half an epsilon a block on a quarter of the stream each, and those of the head.
    assert_close(out, wide.decode(wide.new_state(1), x), torch.bfloat16, growth=4)


@pytest.mark.parametrize("name", PRESETS)
def test_random_weights_give_sane_activations_and_quiet_noise(name: str, rng: torch.Generator) -> None:
    torch.manual_seed(2)
    model = Vocoder.from_preset(preset(name)).requires_grad_(False)
    spreads: list[float] = []
    for module in (model.embed, *model.blocks, model.head):
        module.register_forward_hook(lambda _module, _inputs, out: spreads.append(out.std().item()))
    out = model.decode(model.new_state(1), torch.randn(1, 16, model.channels, generator=rng))
    assert all(0.5 < spread < 2 for spread in spreads)
    assert 0.01 < out.std() < 0.3
    assert out.abs().max() < 1


def test_no_magnitude_exceeds_what_full_scale_samples_have(vocoder: Vocoder) -> None:
    shape = (1, 1, CONFIG.bins)
    state = vocoder.new_state(1)
    kwargs = {"dtype": torch.float64, "device": state.tail.device}
    loud = torch.full(shape, 1e9, **kwargs)
    assert vocoder.synthesise(state, loud, torch.zeros(shape, **kwargs)).isfinite().all()
    # A constant 1 under the window reaches the bound at zero frequency and nothing else does.
    constant = torch.ones(1, CONFIG.n_fft, **kwargs)
    assert spectrum(constant)[0].max().exp().item() == pytest.approx(CONFIG.n_fft / 2)


def test_gradients_flow_through_successive_chunks(device: torch.device, rng: torch.Generator) -> None:
    model = Vocoder.from_preset(TINY).to(device)
    state = model.new_state(1)
    for _ in range(2):
        model.zero_grad()
        model.decode(state, torch.randn(1, 3, CHANNELS, generator=rng).to(device)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not state.context.requires_grad
    assert not state.tail.requires_grad


@pytest.mark.parametrize("shape", [(1, 3, CHANNELS), (2, 3, CHANNELS + 1), (2, 0, CHANNELS), (2, CHANNELS)])
def test_latents_of_another_shape_are_refused(vocoder: Vocoder, shape: tuple[int, ...]) -> None:
    state = vocoder.new_state(2)
    limit = rf"latents must be \[batch, tokens, channels\] = \[2, any, {CHANNELS}\]"
    with pytest.raises(VocoderError, match=limit):
        vocoder.decode(state, torch.zeros(shape, device=state.tail.device))


@pytest.mark.parametrize("name", ["latents", "state"])
def test_another_device_is_refused(vocoder: Vocoder, name: str) -> None:
    state = vocoder.new_state(1, "meta" if name == "state" else None)
    where = "meta" if name == "latents" else vocoder.head.weight.device
    with pytest.raises(VocoderError, match=f"{name} must be on"):
        vocoder.decode(state, torch.zeros(1, 1, CHANNELS, device=where))


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: replace(CONFIG, layers=0), "layers"),
        (lambda: replace(CONFIG, n_fft=1100), "n_fft"),
        (lambda: replace(CONFIG, n_fft=500), "n_fft"),
        (lambda: replace(CONFIG, hop=5, n_fft=25), "n_fft"),
        (lambda: replace(TINY, vocoder=replace(CONFIG, hop=300, n_fft=1200)), "vocoder.hop"),
    ],
)
def test_an_impossible_size_is_refused(build: Callable[[], object], argument: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert error.value.argument == argument
