"""Sessions rolled out for training, by the very steps the engine takes.

A batch of sessions advances chunk by chunk in lockstep through a :class:`~streamchar.lane.Lane`: its prefill,
its denoising, its commits of sink and motion, its audio history; text slides through the session's own window
where the pointer says that the speech has come to. What conditions a chunk is handed out as a batch, so that
one of its steps can be taken again with a graph. What grows with the number of chunks is the text and the
sound alone, which an alignment needs whole: some kilobytes a chunk.

Where the weights change between chunks, as a rollout's do, keys and values of reference and sink stay those
of the weights that committed them; motion is committed anew each chunk, and all at the next rollout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture import GraphPool
from ..config import Preset
from ..lane import ChunkBuffers, Lane
from ..memory import KVMemory
from ..pointer import PlannedPointer
from ..tokenizers import Tokenizer
from ..window import TextWindow
from .batches import SpeechBatch
from .joint import JointBatch, JointModel


@dataclass(frozen=True)
class RolledOut:
    """A chunk that was made, with what it takes to make one of its steps again.

    Attributes:
        batch: what conditioned it; its clean latents are those that were made.
        x: video and audio latents before the step that was asked for.
        last: audio latents before the last step, where the pointer is read.
        said: [batch, audio_tokens] fp32, the pointer's positions in the window.
        origins: per row, tokens of the text before the window.
    """

    batch: JointBatch
    x: tuple[Tensor, Tensor]
    last: Tensor
    said: Tensor
    origins: list[int]


class SessionBatch:
    """A batch of sessions that advance together.

    Args:
        model: whose weights make the chunks; they may change between chunks.
        preset: sizes and schedule.
        tokenizer: of the texts.
        batch: sessions.
        device: where the model is.
        sink: whether chunks see the first one.
        pointer: whether the model's pointer says where the speech has come to; else the plan of durations.
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
        self._memory = KVMemory(preset, batch, device, model.dtype)
        self._buffers = ChunkBuffers.zeros(preset, batch, device)
        state = model.orchestrator.new_state(batch)
        # Split weights have no lasting address that a captured graph could read them from.
        graphs = GraphPool(torch.device("cpu") if model.split else device)
        parts = self._memory, state, self._buffers, graphs
        self._lane = Lane(model.dit, model.orchestrator, *parts)
        self._windows: list[TextWindow] = []
        self._tokens: list[list[int]] = []
        self._heard: list[Tensor] = []
        self._sink = self._motion = torch.empty(0)
        self.chunk = 0

    @torch.no_grad()
    def begin(self, texts: Sequence[str], references: Tensor, seed: int) -> None:
        """Forget the sessions before and open new ones.

        Args:
            texts: one a session, longer than what will be rolled out.
            references: [batch, 1, channels, height, width], latents of the reference images.
            seed: of the first session's noise; the others follow.
        """
        buffers, chunk = self._buffers, self.preset.chunk
        self._windows = [
            TextWindow(self._tokenizer, self.preset.orchestrator.transcript_tokens) for _ in texts
        ]
        for window, text in zip(self._windows, texts, strict=True):
            window.append(text)
            window.finish()
        self._tokens, self._heard, self.chunk = [[] for _ in texts], [], 0
        for row in range(self._batch):
            self._memory.reset(row)
            self._memory.set_valid(row, reference=True)
        buffers.seed.copy_(seed + torch.arange(self._batch))
        buffers.history.zero_()
        buffers.history_lengths.zero_()
        buffers.reference.copy_(references)
        self._lane.refresh()
        self._lane.commit("reference")
        # Nothing may attend to these yet.
        self._sink = torch.zeros_like(buffers.x_video[:, : chunk.sink_latents])
        self._motion = torch.zeros_like(buffers.x_video[:, -chunk.motion_latents :])

    @torch.no_grad()
    def make(self, step: int) -> RolledOut:
        """Make the next chunk of every session and take it into memory, history and transcript.

        Args:
            step: of the schedule, whose latents are wanted back.
        """
        buffers, lane = self._buffers, self._lane
        origins = [self._fill(row, window) for row, window in enumerate(self._windows)]
        batch = self._conditioning()
        lane.refresh()
        buffers.chunk.fill_(self.chunk)
        lane.prefill()
        lane.draw()
        x, last = (buffers.x_video, buffers.x_audio), buffers.x_audio
        for index in range(lane.steps):
            if index == step:
                x = buffers.x_video.clone(), buffers.x_audio.clone()
            if index == lane.steps - 1:
                last = buffers.x_audio.clone()
            lane.denoise(index)
        batch.video.copy_(buffers.x_video)
        batch.speech.audio.copy_(buffers.x_audio)
        said = self._said()
        self._take_in(said)
        return RolledOut(batch, x, last, said, origins)

    def transcript(self, row: int) -> list[int]:
        """Return the tokens of a session's text, as far as its window has come."""
        return self._tokens[row]

    def heard(self) -> Tensor:
        """Return the sound of all chunks so far, [batch, audio tokens, channels]."""
        return torch.cat(self._heard, 1)

    def _fill(self, row: int, window: TextWindow) -> int:
        """Choose a row's window and return how many tokens of its text lie before it."""
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

    def _said(self) -> Tensor:
        position = self._buffers.position
        if self._planned is None:
            return position.clone()
        state = self._lane.state
        # It looks at the plan alone; the other arguments have shapes to give.
        conditions = position[..., None]
        return self._planned.locate(conditions, state.pointer_keys, state.text_lengths, state.prior)

    def _take_in(self, said: Tensor) -> None:
        buffers, lane, chunk = self._buffers, self._lane, self.preset.chunk
        for window, positions in zip(self._windows, said.tolist(), strict=True):
            for position in positions:
                window.slide(position)
        self._heard.append(buffers.x_audio.clone())
        self._motion = buffers.x_video[:, -chunk.motion_latents :].clone()
        opened = range(self._batch if self.chunk == 0 else 0)
        if opened:
            self._sink = buffers.x_video[:, : chunk.sink_latents].clone()
            lane.commit("sink")
        # Before motion is committed, which attends to the sink.
        for row in opened:
            self._memory.set_valid(row, sink=self._sink_used)
        lane.commit("motion")
        for row in opened:
            self._memory.set_valid(row, motion=True)
        lane.remember()
        self.chunk += 1
