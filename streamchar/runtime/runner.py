"""The steps that make the latents of a chunk, captured on fixed buffers.

An engine has one :class:`ChunkRunner` per row and, with several rows, one that spans them all: a session that
is due alone is computed alone, sessions that are due together share one batched pass. All runners are views
of the same storage, so a session may switch between them from chunk to chunk.
"""

from collections.abc import Callable
from functools import partial

import torch

from ..kernels import sampler_noise
from ..model.denoiser import Denoiser
from ..model.dit import JointDiT
from ..model.kv_cache import KVCache, Role
from ..model.orchestrator import Orchestrator, OrchestratorState, append_history
from ..model.packing import Prefix
from ..profiling import span
from .buffers import ChunkBuffers
from .graphs import GraphPool, Step


class _ChunkWork:
    """The work of each step, uncaptured."""

    def __init__(
        self,
        dit: JointDiT,
        orchestrator: Orchestrator,
        cache: KVCache,
        state: OrchestratorState,
        buffers: ChunkBuffers,
    ) -> None:
        self.dit, self.orchestrator = dit, orchestrator
        self.cache, self.state, self.buffers = cache, state, buffers
        self.denoiser = Denoiser(dit, batch=cache.batch)
        chunk, x_video = dit.preset.chunk, buffers.x_video
        latents: dict[Role, torch.Tensor] = {
            "reference": buffers.reference,
            "sink": x_video[:, : chunk.sink_latents],
            "motion": x_video[:, chunk.latent_frames - chunk.motion_latents :],
        }
        # A preset may keep no sink or no motion, and an empty step cannot be captured.
        self.latents = {role: kept for role, kept in latents.items() if kept.shape[1]}

    def prefill(self) -> None:
        b = self.buffers
        prefix = Prefix(b.text_ids, b.text_lengths, b.history, b.history_lengths, b.progress)
        self.orchestrator.prefill(self.state, prefix)

    def draw_noise(self) -> None:
        b = self.buffers
        sampler_noise(b.x_video, b.x_audio, b.seed, b.chunk, backend=self.dit.backend)

    def commit(self, role: Role) -> None:
        self.dit.commit(role, self.latents[role], self.denoiser.modulation, self.cache)

    def append_history(self) -> None:
        b = self.buffers
        append_history(b.history, b.history_lengths, b.x_audio)

    @span("orchestrator")
    def conditions(self, x_audio: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        c_a, position = self.orchestrator.step(self.state, x_audio, sigma)
        self.buffers.position.copy_(position)
        return c_a


class ChunkRunner:
    """The captured steps of one batch of rows.

    Attributes:
        dit: the diffusion transformer.
        orchestrator: the language model.
        buffers: what the steps read and write.
        cache: keys and values that the chunk attends to.
        state: the orchestrator's prefix.
        denoiser: schedule and modulation of the denoising steps.
        prefill: computes the orchestrator's prefix from transcript window and audio history.
        draw_noise: overwrites the latents with the chunk's initial noise.
        denoise: the denoising steps, in order.
        commit: by role, writes keys and values of reference, sink or motion into the cache; sink and motion
            are the first and the last latents of the chunk denoised last. A role that the preset does not
            keep is absent.
        append_history: appends the sound of the chunk denoised last to the audio history.
    """

    def __init__(
        self,
        dit: JointDiT,
        orchestrator: Orchestrator,
        cache: KVCache,
        state: OrchestratorState,
        buffers: ChunkBuffers,
        pool: GraphPool,
    ) -> None:
        self.dit, self.orchestrator = dit, orchestrator
        self.buffers, self.cache, self.state = buffers, cache, state
        work = _ChunkWork(dit, orchestrator, cache, state, buffers)
        self.denoiser, self._schedule = work.denoiser, dit.preset.sampler
        self.prefill = pool.step("prefill", work.prefill)
        self.draw_noise = pool.step("noise", work.draw_noise)
        latents = buffers.x_video, buffers.x_audio, buffers.seed, buffers.chunk
        self.denoise = tuple(
            pool.step(f"step {index}", partial(work.denoiser.step, index, *latents, work.conditions, cache))
            for index in range(work.denoiser.steps)
        )
        self.commit: dict[Role, Step] = {
            role: pool.step(role, partial(work.commit, role)) for role in work.latents
        }
        self.append_history = pool.step("history", work.append_history)

    @property
    def steps(self) -> int:
        """Denoising steps of a chunk."""
        return len(self.denoise)

    def refresh(self) -> None:
        """Use weights that have changed, as training changes them between chunks."""
        self.denoiser.set_schedule(self._schedule)

    def stages(self) -> dict[str, Callable[[], None]]:
        """Return every step by name, for warming up: running one leaves garbage in the buffers."""
        return {
            "prefill": self.prefill,
            "noise": self.draw_noise,
            **{f"denoising step {index + 1}": step for index, step in enumerate(self.denoise)},
            **{str(role): step for role, step in self.commit.items()},
            "history": self.append_history,
        }
