"""The stages of a chunk, each alone, in the steady state of a session."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.baseline import Conditioning, steady_lane
from streamchar.engine import StreamCharEngine
from streamchar.kernels import egress
from streamchar.lane import Lane

ROUNDS, WARM_UP_ROUNDS = 10, 2

#: Times the work given to it.
Stage = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="module")
def latents(engine: StreamCharEngine) -> Conditioning:
    """Return what the stages are conditioned on."""
    return Conditioning.random(engine)


@pytest.fixture(scope="module")
def lane(engine: StreamCharEngine, latents: Conditioning) -> Lane:
    """Return a lane apart from the engine's own."""
    with torch.inference_mode():
        return steady_lane(engine, latents)


@pytest.fixture
def stage(benchmark: Any) -> Stage:
    """Return a function that times a stage."""

    def time(work: Callable[[], object]) -> None:
        benchmark.group = "stage"
        with torch.inference_mode():
            benchmark.pedantic(work, rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS)

    return time


def test_prefix_prefill(lane: Lane, stage: Stage) -> None:
    """Transcript window and audio history through the language model."""
    stage(lane.prefill)


def test_denoising_step(lane: Lane, stage: Stage) -> None:
    """The language model's chunk positions, the transformer, the sampler's update."""
    stage(lambda: lane.denoise(1))


def test_motion_commit(lane: Lane, stage: Stage) -> None:
    """Keys and values of the chunk just finished."""
    stage(lambda: lane.commit("motion"))


def test_vae_decode(engine: StreamCharEngine, latents: Conditioning, lane: Lane, stage: Stage) -> None:
    """A chunk of video latents to frames."""
    with torch.inference_mode():
        state = engine.vae.new_state(1, engine.preset.picture.latent_size)
        engine.vae.prime(state, latents.reference[:, 0])
        video = lane.buffers.x_video.to(engine.dtype)
    stage(lambda: engine.vae.decode(state, video))


def test_vocoder(engine: StreamCharEngine, lane: Lane, stage: Stage) -> None:
    """A chunk of audio latents to samples."""
    with torch.inference_mode():
        state = engine.vocoder.new_state(1)
        audio = lane.buffers.x_audio.to(engine.dtype)
    stage(lambda: engine.vocoder.decode(state, audio))


def test_egress(engine: StreamCharEngine, stage: Stage) -> None:
    """Decoded frames to the bytes that viewers and encoders take."""
    picture = engine.preset.picture
    with torch.inference_mode():
        shape = (engine.preset.frames, 3, picture.height, picture.width)
        generator = torch.Generator().manual_seed(0)
        frames = (torch.rand(shape, generator=generator) * 2 - 1).to(engine.device, engine.dtype)
    stage(lambda: egress(frames, rgb=True, yuv=True))
