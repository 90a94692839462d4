"""The steps that make the latents of a chunk, for one session or for all at once, on fixed buffers.

An engine has one lane for each of its rows and, where it has several, one that spans them all: a session
that is due alone is computed alone, sessions due together share one batched pass. Lanes are views of the
same storage, so a session may go from one to the other between chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch

from .capture import GraphPool
from .config import Preset
from .kernels import sampler_noise
from .memory import KVMemory, Role
from .model import JointDiT
from .orchestrator import Orchestrator, OrchestratorState, append_history
from .ranges import span
from .sampler import Denoiser


@dataclass(frozen=True)
class ChunkBuffers:
    """What a chunk step reads and writes, one row a session.

    Attributes:
        x_video: [batch, latent_frames, channels, height, width] fp32, the chunk's video latents.
        x_audio: [batch, audio_tokens, audio_channels] fp32, its audio latents.
        seed: [batch] int64.
        chunk: [batch] int64, number of the chunk in its session.
        text_ids: [batch, transcript_tokens] int64, the transcript window.
        text_lengths: [batch] int32.
        progress: [batch] fp32, tokens of the window said before this chunk.
        history: [batch, history_tokens, audio_channels] fp32, audio latents already spoken.
        history_lengths: [batch] int32.
        position: [batch, audio_tokens] fp32, where in the window each audio token stands.
        reference: [batch, reference_latents, channels, height, width] fp32, latents of the reference image.
    """

    x_video: torch.Tensor
    x_audio: torch.Tensor
    seed: torch.Tensor
    chunk: torch.Tensor
    text_ids: torch.Tensor
    text_lengths: torch.Tensor
    progress: torch.Tensor
    history: torch.Tensor
    history_lengths: torch.Tensor
    position: torch.Tensor
    reference: torch.Tensor

    @classmethod
    def zeros(cls, preset: Preset, batch: int, device: torch.device) -> "ChunkBuffers":
        """Allocate the buffers of ``batch`` sessions."""

        def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros((batch, *shape), dtype=dtype, device=device)

        picture, channels = preset.picture, preset.dit.audio_channels
        return cls(
            x_video=make(preset.chunk.latent_frames, picture.channels, *picture.latent_size),
            x_audio=make(preset.audio_tokens, channels),
            seed=make(dtype=torch.int64),
            chunk=make(dtype=torch.int64),
            text_ids=make(preset.orchestrator.transcript_tokens, dtype=torch.int64),
            text_lengths=make(dtype=torch.int32),
            progress=make(),
            history=make(preset.history_tokens, channels),
            history_lengths=make(dtype=torch.int32),
            position=make(preset.audio_tokens),
            reference=make(preset.chunk.reference_latents, picture.channels, *picture.latent_size),
        )

    def row(self, index: int) -> "ChunkBuffers":
        """Return a view of one row, as buffers of batch 1."""
        one = slice(index, index + 1)
        return ChunkBuffers(**{field.name: getattr(self, field.name)[one] for field in fields(self)})


def state_row(state: OrchestratorState, index: int) -> OrchestratorState:
    """Return a view of one row of the orchestrator's state, as a state of batch 1."""
    one = slice(index, index + 1)
    layered = {name: getattr(state, name)[:, one] for name in ("k", "v")}
    rest = {
        field.name: getattr(state, field.name)[one] for field in fields(state) if field.name not in layered
    }
    return replace(state, **layered, **rest)


class Lane:
    """One batch of rows and the steps that advance it.

    Attributes:
        buffers: what the steps read and write.
        steps: denoising steps of a chunk.
    """

    def __init__(
        self,
        dit: JointDiT,
        orchestrator: Orchestrator,
        memory: KVMemory,
        state: OrchestratorState,
        buffers: ChunkBuffers,
        pool: GraphPool,
    ) -> None:
        self.dit, self.orchestrator = dit, orchestrator
        self.memory, self.state, self.buffers = memory, state, buffers
        denoiser = Denoiser(dit, batch=memory.batch)
        self.modulation, self.steps = denoiser.modulation, denoiser.steps
        self._denoiser = denoiser
        chunk = dit.preset.chunk
        x_video = buffers.x_video
        self._latents: dict[Role, torch.Tensor] = {
            "reference": buffers.reference,
            "sink": x_video[:, : chunk.sink_latents],
            "motion": x_video[:, chunk.latent_frames - chunk.motion_latents :],
        }
        # There is no graph of nothing.
        self._latents = {role: latents for role, latents in self._latents.items() if latents.shape[1]}
        self._prefill, self._draw = pool.step(self._run_prefill), pool.step(self._run_draw)
        self._denoise = [pool.step(partial(self._run_step, index)) for index in range(self.steps)]
        self._commit = {role: pool.step(partial(self._run_commit, role)) for role in self._latents}
        self._remember = pool.step(self._run_remember)

    @span("prefill")
    def prefill(self) -> None:
        """Compute the orchestrator's prefix from transcript window and audio history."""
        self._prefill()

    def draw(self) -> None:
        """Overwrite the latents with the chunk's initial noise."""
        self._draw()

    def denoise(self, index: int) -> None:
        """Take denoising step ``index``, in [0, steps)."""
        with span("step", index):
            self._denoise[index]()

    def commit(self, role: Role) -> None:
        """Write keys and values of reference, sink or motion into the memory; see :meth:`JointDiT.commit`.

        Sink and motion are the first and the last latents of the chunk that was denoised last; where the
        preset keeps none of them nothing is done.
        """
        if role in self._commit:
            with span(role):
                self._commit[role]()

    def remember(self) -> None:
        """Append the sound of the chunk that was denoised last to the audio history."""
        self._remember()

    def refresh(self) -> None:
        """Take up weights that have changed, as training changes them between chunks."""
        self._denoiser.set_schedule(self.dit.preset.sampler)

    def stages(self) -> dict[str, Callable[[], None]]:
        """Return every step by name; all run once, all are captured, and the buffers hold garbage."""
        return {
            "prefill": self.prefill,
            "noise": self.draw,
            **{f"denoising step {index + 1}": partial(self.denoise, index) for index in range(self.steps)},
            **{role: partial(self.commit, role) for role in self._commit},
            "history": self.remember,
        }

    def _run_prefill(self) -> None:
        b = self.buffers
        self.orchestrator.prefill(
            self.state, b.text_ids, b.text_lengths, b.history, b.history_lengths, b.progress
        )

    def _run_draw(self) -> None:
        b = self.buffers
        sampler_noise(b.x_video, b.x_audio, b.seed, b.chunk, backend=self.dit.backend)

    def _run_commit(self, role: Role) -> None:
        self.dit.commit(role, self._latents[role], self.modulation, self.memory)

    def _run_remember(self) -> None:
        b = self.buffers
        append_history(b.history, b.history_lengths, b.x_audio)

    def _run_step(self, index: int) -> None:
        b = self.buffers
        self._denoiser.step(index, b.x_video, b.x_audio, b.seed, b.chunk, self._conditions, self.memory)

    @span("orchestrator")
    def _conditions(self, x_audio: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        c_a, position = self.orchestrator.step(self.state, x_audio, sigma)
        self.buffers.position.copy_(position)
        return c_a
