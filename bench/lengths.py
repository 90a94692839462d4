"""Time the denoising steps of chunks of several lengths, the paper's among them, on the same weights."""

from dataclasses import dataclass
from functools import partial

import torch

from bench.baseline import REPEATS, ROUNDS, Conditioning, interleave, shared_copy, steady_runner
from bench.cases import PAPER_LATENT_FRAMES
from streamchar.engine import StreamCharEngine
from streamchar.model.dit import JointDiT
from streamchar.model.orchestrator import Orchestrator
from streamchar.runtime.runner import ChunkRunner


@dataclass(frozen=True)
class ChunkLength:
    """Time of the denoising steps of one chunk.

    Attributes:
        latent_frames: latent frames of the chunk, T.
        media_seconds: playback time of the chunk.
        seconds: time of all denoising steps without prefill and commit, one value per repeat.
    """

    latent_frames: int
    media_seconds: float
    seconds: list[float]


@torch.inference_mode()
def compare_chunk_lengths(engine: StreamCharEngine) -> list[ChunkLength]:
    """Time the denoising steps of the engine's chunk and of the paper's, interleaved.

    The paper encodes each chunk separately, so its T = 9 latents are 33 frames, 1.375 s. This codec continues
    from the previous chunk, so the same latents are 36 frames, 1.5 s.
    """
    ours = engine.preset.chunk.latent_frames
    runners = {}
    for latent_frames in (ours, PAPER_LATENT_FRAMES):
        dit, orchestrator = _networks(engine, latent_frames)
        runner = steady_runner(dit, orchestrator, Conditioning.random(dit))
        runner.prefill()
        runners[f"T = {latent_frames}"] = runner
    contenders = {name: partial(_denoise, runner) for name, runner in runners.items()}
    samples = interleave(contenders, REPEATS * ROUNDS, engine.device)
    presets = [runner.dit.preset for runner in runners.values()]
    return [
        ChunkLength(preset.chunk.latent_frames, preset.seconds, seconds)
        for preset, seconds in zip(presets, samples.values(), strict=True)
    ]


def _networks(engine: StreamCharEngine, latent_frames: int) -> tuple[JointDiT, Orchestrator]:
    """Return the engine's networks, with shared weights, for another chunk length."""
    preset = engine.preset.with_latent_frames(latent_frames)
    with torch.device("meta"):
        orchestrator = Orchestrator.from_preset(preset)
    orchestrator.load_state_dict(engine.orchestrator.state_dict(), assign=True)
    dit = shared_copy(engine.dit, preset, engine.dit.backend)
    return dit, orchestrator.eval().requires_grad_(False)


def _denoise(runner: ChunkRunner) -> None:
    runner.draw_noise()
    for step in runner.denoise:
        step()
