"""Fixed buffers that chunks are made in, one row per session."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from ..codecs.vae import VaeState
from ..codecs.vocoder import VocoderState
from ..config import Preset
from ..model.orchestrator import OrchestratorState

B = TypeVar("B", "ChunkBuffers", "MediaBuffers")


def _row_of(buffers: B, index: int) -> B:
    one = slice(index, index + 1)
    return type(buffers)(**{field.name: getattr(buffers, field.name)[one] for field in fields(buffers)})


@dataclass(frozen=True)
class ChunkBuffers:
    """What the steps of a chunk read and write.

    Attributes:
        x_video: [batch, latent_frames, channels, height, width] fp32, video latents of the chunk.
        x_audio: [batch, audio_tokens, audio_channels] fp32, audio latents of the chunk.
        seed: [batch] int64, seed of the session.
        chunk: [batch] int64, index of the chunk in its session.
        text_ids: [batch, transcript_tokens] int64, the transcript window.
        text_lengths: [batch] int32, valid tokens of the window.
        progress: [batch] fp32, tokens of the window that were said before this chunk.
        history: [batch, history_tokens, audio_channels] fp32, audio latents already spoken.
        history_lengths: [batch] int32, valid tokens of the history.
        position: [batch, audio_tokens] fp32, position of each audio token in the window.
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
        return _row_of(self, index)


@dataclass(frozen=True)
class MediaBuffers:
    """What the decoders write.

    Attributes:
        frames: [batch, frames, 3, height, width] in [-1, 1], the decoder's dtype.
        rgb: [batch, frames, height, width, 3] uint8.
        yuv: [batch, frames, height * 3 / 2, width] uint8, planar 4:2:0.
        audio: [batch, samples] fp32.
    """

    frames: torch.Tensor
    rgb: torch.Tensor
    yuv: torch.Tensor
    audio: torch.Tensor

    @classmethod
    def zeros(cls, preset: Preset, batch: int, device: torch.device, dtype: torch.dtype) -> "MediaBuffers":
        """Allocate the buffers of ``batch`` sessions; ``dtype`` is that of the decoded frames."""
        count, height, width = preset.frames, preset.picture.height, preset.picture.width

        def make(*shape: int, of: torch.dtype = torch.uint8) -> torch.Tensor:
            return torch.zeros((batch, *shape), dtype=of, device=device)

        return cls(
            frames=make(count, 3, height, width, of=dtype),
            rgb=make(count, height, width, 3),
            yuv=make(count, height * 3 // 2, width),
            audio=make(preset.samples, of=torch.float32),
        )

    def row(self, index: int) -> "MediaBuffers":
        """Return a view of one row, as buffers of batch 1."""
        return _row_of(self, index)


@dataclass(frozen=True)
class DecoderState:
    """Streaming state of both decoders, one stream per row."""

    vae: VaeState
    vocoder: VocoderState

    def row(self, index: int) -> "DecoderState":
        """Return a view of one stream, as a state of batch 1."""
        one, vocoder = slice(index, index + 1), self.vocoder
        return DecoderState(
            self.vae.row(index),
            VocoderState(vocoder.context[:, one], vocoder.tail[one], vocoder.window),
        )


def orchestrator_row(state: OrchestratorState, index: int) -> OrchestratorState:
    """Return a view of one row of the orchestrator's state, as a state of batch 1."""
    one = slice(index, index + 1)
    layered = {name: getattr(state, name)[:, one] for name in ("k", "v")}
    rest = {
        field.name: getattr(state, field.name)[one] for field in fields(state) if field.name not in layered
    }
    return replace(state, **layered, **rest)
