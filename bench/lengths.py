"""The chunk's denoising steps at other lengths of chunk, the paper's among them, with the same weights."""

from dataclasses import dataclass
from functools import partial

import torch

from bench.baseline import REPEATS, ROUNDS, Conditioning, Networks, interleave, shared_copy, steady_lane
from bench.cases import PAPER_LATENT_FRAMES
from streamchar.engine import StreamCharEngine
from streamchar.lane import Lane
from streamchar.orchestrator import Orchestrator


@dataclass(frozen=True)
class ChunkLength:
    """What the denoising steps of one chunk take.

    Attributes:
        latent_frames: of the chunk, T.
        media_seconds: that it plays.
        seconds: of all its denoising steps, one a repeat; neither prefill nor commit is in them.
    """

    latent_frames: int
    media_seconds: float
    seconds: list[float]


@torch.inference_mode()
def compare_chunk_lengths(engine: StreamCharEngine) -> list[ChunkLength]:
    """Time the denoising steps of the engine's chunk and of the paper's, in turns.

    The paper encodes each chunk alone: its T = 9 latents are 33 frames, 1.375 s. Ours goes on from the chunk
    before it, so that the same latents are 36 frames, 1.5 s.
    """
    ours = engine.preset.chunk.latent_frames
    lengths = [_networks(engine, latent_frames) for latent_frames in (ours, PAPER_LATENT_FRAMES)]
    contenders = {}
    for networks in lengths:
        lane = steady_lane(networks, Conditioning.random(networks))
        lane.prefill()
        contenders[f"T = {networks.preset.chunk.latent_frames}"] = partial(_denoise, lane)
    samples = interleave(contenders, REPEATS * ROUNDS, engine.device)
    return [
        ChunkLength(networks.preset.chunk.latent_frames, networks.preset.seconds, seconds)
        for networks, seconds in zip(lengths, samples.values(), strict=True)
    ]


def _networks(engine: StreamCharEngine, latent_frames: int) -> Networks:
    """Return the engine's networks for a chunk of another length."""
    preset = engine.preset.with_latent_frames(latent_frames)
    with torch.device("meta"):
        orchestrator = Orchestrator.from_preset(preset)
    orchestrator.load_state_dict(engine.orchestrator.state_dict(), assign=True)
    dit = shared_copy(engine.dit, preset, engine.dit.backend)
    return Networks(dit, orchestrator.eval().requires_grad_(False))


def _denoise(lane: Lane) -> None:
    lane.draw()
    for index in range(lane.steps):
        lane.denoise(index)
