"""Batched sessions for rollouts, made of the engine's own steps.

A batch of sessions advances chunk by chunk through a :class:`~streamchar.runtime.runner.ChunkRunner`, with
its prefill, its denoising steps, its commits of sink and motion, and its audio history. Each transcript moves
through the same window as in a session, by the positions of the pointer. The conditioning of a chunk is
returned as a batch, so that one of its steps can be repeated with a graph. Only the transcript and the audio
grow with the number of chunks, by some kilobytes per chunk; the alignment needs all of them.

If the weights change between chunks, as they do in a rollout, the keys and values of reference and sink
remain those of the weights that committed them. Motion is committed anew for every chunk, and everything for
the next rollout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Preset
from ..model.kv_cache import KVCache, Role
from ..model.pointer import PlannedPointer
from ..runtime.buffers import ChunkBuffers
from ..runtime.graphs import GraphPool
from ..runtime.runner import ChunkRunner
from ..text.tokenizers import Tokenizer
from ..text.transcript_window import TextWindow
from .batches import SpeechBatch
from .joint import JointBatch, JointModel


@dataclass(frozen=True)
class RolledOutChunk:
    """A generated chunk, with everything needed to repeat one of its steps.

    Attributes:
        batch: the conditioning of the chunk; its clean latents are the generated ones.
        x: video and audio latents before the requested step.
        x_audio_last: audio latents before the last step, at which the pointer is read.
        position: [batch, audio_tokens] fp32, the pointer's positions in the window.
        origins: per row, tokens of the text before the window.
    """

    batch: JointBatch
    x: tuple[Tensor, Tensor]
    x_audio_last: Tensor
    position: Tensor
    origins: list[int]


class SessionBatch:
    """A batch of sessions that advance together.

    Args:
        model: the model that generates the chunks; its weights may change between chunks.
        preset: sizes and schedule.
        tokenizer: tokenizer of the texts.
        batch: number of sessions.
        device: device of the model.
        sink: whether later chunks attend to the first one.
        pointer: whether the transcript follows the model's pointer; otherwise it follows planned durations.
    """

    def __init__(
        self,
        model: JointModel,
        preset: Preset,
        tokenizer: Tokenizer,
        batch: int,
        device: torch.device,
        sink: bool = True,
        pointer: bool = True,
    ) -> None:
        self._planned = None if pointer else PlannedPointer(preset.audio_tokens)
        self.preset, self._tokenizer, self._batch, self._sink_used = preset, tokenizer, batch, sink
        self._cache = KVCache(preset, batch, device, model.dtype)
        self._buffers = ChunkBuffers.zeros(preset, batch, device)
        state = model.orchestrator.new_state(batch)
        # FSDP gathers sharded weights at changing addresses, so a captured graph could not read them.
        pool = GraphPool(torch.device("cpu") if model.sharded else device)
        parts = self._cache, state, self._buffers, pool
        self._runner = ChunkRunner(model.dit, model.orchestrator, *parts)
        self._windows: list[TextWindow] = []
        self._tokens: list[list[int]] = []
        self._audio: list[Tensor] = []
        self._sink = self._motion = torch.empty(0)
        self.chunk = 0

    @torch.no_grad()
    def begin(self, texts: Sequence[str], references: Tensor, seed: int) -> None:
        """Open new sessions in place of the previous ones.

        Args:
            texts: one per session, longer than the rollout will be.
            references: [batch, 1, channels, height, width], latents of the reference images.
            seed: noise seed of the first session; those of the others follow it.
        """
        buffers, chunk = self._buffers, self.preset.chunk
        self._windows = [
            TextWindow(self._tokenizer, self.preset.orchestrator.transcript_tokens) for _ in texts
        ]
        for window, text in zip(self._windows, texts, strict=True):
            window.append(text)
            window.finish()
        self._tokens, self._audio, self.chunk = [[] for _ in texts], [], 0
        for row in range(self._batch):
            self._cache.reset(row)
            self._cache.set_valid(row, reference=True)
        buffers.seed.copy_(seed + torch.arange(self._batch))
        buffers.history.zero_()
        buffers.history_lengths.zero_()
        buffers.reference.copy_(references)
        self._runner.refresh()
        self._commit("reference")
        # No chunk attends to these yet.
        self._sink = torch.zeros_like(buffers.x_video[:, : chunk.sink_latents])
        self._motion = torch.zeros_like(buffers.x_video[:, -chunk.motion_latents :])

    @torch.no_grad()
    def make(self, step: int) -> RolledOutChunk:
        """Generate the next chunk of every session and add it to cache, history and transcript.

        Args:
            step: denoising step before which the latents are recorded.
        """
        buffers, runner = self._buffers, self._runner
        origins = [self._fill_window(row, window) for row, window in enumerate(self._windows)]
        batch = self._conditioning()
        runner.refresh()
        buffers.chunk.fill_(self.chunk)
        runner.prefill()
        runner.draw_noise()
        x, x_audio_last = (buffers.x_video, buffers.x_audio), buffers.x_audio
        for index, denoise in enumerate(runner.denoise):
            if index == step:
                x = buffers.x_video.clone(), buffers.x_audio.clone()
            if index == runner.steps - 1:
                x_audio_last = buffers.x_audio.clone()
            denoise()
        batch.video.copy_(buffers.x_video)
        batch.speech.audio.copy_(buffers.x_audio)
        position = self._position()
        self._advance(position)
        return RolledOutChunk(batch, x, x_audio_last, position, origins)

    def transcript(self, row: int) -> list[int]:
        """Return the tokens of a session's text up to the end of its window."""
        return self._tokens[row]

    def audio(self) -> Tensor:
        """Return the audio latents of all chunks so far, [batch, audio tokens, channels]."""
        return torch.cat(self._audio, 1)

    def _commit(self, role: Role) -> None:
        if role in self._runner.commit:
            self._runner.commit[role]()

    def _fill_window(self, row: int, window: TextWindow) -> int:
        """Choose the window of a row and return the number of its text's tokens before the window."""
        ids = torch.empty(self.preset.orchestrator.transcript_tokens, dtype=torch.int64)
        length = window.fill(ids)
        self._buffers.text_ids[row].copy_(ids)
        self._buffers.text_lengths[row] = length
        self._buffers.progress[row] = window.progress
        origin = window.origin
        self._tokens[row][origin:] = ids[:length].tolist()
        return origin

    def _conditioning(self) -> JointBatch:
        buffers = self._buffers
        speech = SpeechBatch(
            text_ids=buffers.text_ids.clone(),
            text_lengths=buffers.text_lengths.clone(),
            durations=torch.zeros_like(buffers.text_ids, dtype=torch.float32),
            progress=buffers.progress.clone(),
            position=torch.zeros_like(buffers.position),
            history=buffers.history.clone(),
            history_lengths=buffers.history_lengths.clone(),
            audio=torch.empty_like(buffers.x_audio),
        )
        later = self.chunk > 0
        valid = torch.tensor([True, later and self._sink_used, later], device=buffers.x_video.device)
        return JointBatch(
            speech,
            buffers.reference.clone(),
            self._sink,
            self._motion,
            torch.empty_like(buffers.x_video),
            valid.expand(self._batch, 3),
        )

    def _position(self) -> Tensor:
        position = self._buffers.position
        if self._planned is None:
            return position.clone()
        state = self._runner.state
        # The planned pointer reads the prior alone; only the shapes of the other arguments matter.
        conditions = position[..., None]
        return self._planned.locate(conditions, state.pointer_keys, state.text_lengths, state.prior)

    def _advance(self, position: Tensor) -> None:
        """Take the chunk in the buffers into transcript, cache and history."""
        buffers, chunk = self._buffers, self.preset.chunk
        for window, positions in zip(self._windows, position.tolist(), strict=True):
            for each in positions:
                window.advance(each)
        self._audio.append(buffers.x_audio.clone())
        self._motion = buffers.x_video[:, -chunk.motion_latents :].clone()
        opened = range(self._batch if self.chunk == 0 else 0)
        if opened:
            self._sink = buffers.x_video[:, : chunk.sink_latents].clone()
            self._commit("sink")
        # The sink becomes valid before motion is committed, which attends to it.
        for row in opened:
            self._cache.set_valid(row, sink=self._sink_used)
        self._commit("motion")
        for row in opened:
            self._cache.set_valid(row, motion=True)
        self._runner.append_history()
        self.chunk += 1
