"""Time each stage of a chunk separately, in the steady state of a session."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.baseline import Conditioning, steady_runner
from streamchar.engine import StreamCharEngine
from streamchar.kernels import pack_frames
from streamchar.runtime.runner import ChunkRunner

ROUNDS, WARM_UP_ROUNDS = 10, 2

#: Times the given work.
Stage = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="module")
def latents(engine: StreamCharEngine) -> Conditioning:
    """Return the conditioning of all stages."""
    return Conditioning.random(engine.dit)


@pytest.fixture(scope="module")
def runner(engine: StreamCharEngine, latents: Conditioning) -> ChunkRunner:
    """Return a runner that shares only its weights with the engine."""
    with torch.inference_mode():
        return steady_runner(engine.dit, engine.orchestrator, latents)


@pytest.fixture
def stage(benchmark: Any) -> Stage:
    """Return a function that times a stage."""

    def time(work: Callable[[], object]) -> None:
        benchmark.group = "stage"
        with torch.inference_mode():
            benchmark.pedantic(work, rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS)

    return time


def test_prefix_prefill(runner: ChunkRunner, stage: Stage) -> None:
    """Run transcript window and audio history through the language model."""
    stage(runner.prefill)


def test_denoising_step(runner: ChunkRunner, stage: Stage) -> None:
    """Run the chunk's positions of the language model, the transformer and the sampler's update."""
    stage(runner.denoise[1])


def test_motion_commit(runner: ChunkRunner, stage: Stage) -> None:
    """Write the keys and values of the chunk just finished into the cache."""
    stage(runner.commit["motion"])


def test_vae_decode(
    engine: StreamCharEngine, latents: Conditioning, runner: ChunkRunner, stage: Stage
) -> None:
    """Decode the video latents of a chunk to frames."""
    with torch.inference_mode():
        state = engine.vae.new_state(1, engine.preset.picture.latent_size)
        engine.vae.prime(state, latents.reference[:, 0])
        video = runner.buffers.x_video.to(engine.dtype)
    stage(lambda: engine.vae.decode(state, video))


def test_vocoder(engine: StreamCharEngine, runner: ChunkRunner, stage: Stage) -> None:
    """Decode the audio latents of a chunk to samples."""
    with torch.inference_mode():
        state = engine.vocoder.new_state(1)
        audio = runner.buffers.x_audio.to(engine.dtype)
    stage(lambda: engine.vocoder.decode(state, audio))


def test_frames(engine: StreamCharEngine, stage: Stage) -> None:
    """Convert decoded frames to the bytes that viewers and encoders take."""
    picture = engine.preset.picture
    with torch.inference_mode():
        shape = (engine.preset.frames, 3, picture.height, picture.width)
        generator = torch.Generator().manual_seed(0)
        frames = (torch.rand(shape, generator=generator) * 2 - 1).to(engine.device, engine.dtype)
    stage(lambda: pack_frames(frames, rgb=True, yuv=True))
