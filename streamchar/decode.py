"""The steps that turn finished latents into frames and samples, for one session or for all at once.

Both decoders stream: each row of their state remembers its session. Decoding a row is a fixed sequence of
operations on fixed addresses, captured like the steps of :mod:`streamchar.lane`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from .capture import GraphPool
from .codecs.vae import Vae, VaeState
from .codecs.vocoder import Vocoder, VocoderState
from .config import Preset
from .kernels import egress
from .lane import ChunkBuffers
from .ranges import span
from .streams import Done, Streams


@dataclass(frozen=True)
class MediaBuffers:
    """What decoding writes, one row a session.

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
        """Allocate the buffers of ``batch`` sessions."""
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
        one = slice(index, index + 1)
        return MediaBuffers(**{field.name: getattr(self, field.name)[one] for field in fields(self)})


@dataclass(frozen=True)
class DecoderState:
    """What both decoders remember of their streams, one a row."""

    vae: VaeState
    vocoder: VocoderState

    def row(self, index: int) -> "DecoderState":
        """Return the state of one stream, a batch of 1 in the same memory."""
        one, vocoder = slice(index, index + 1), self.vocoder
        return DecoderState(
            self.vae.row(index),
            VocoderState(vocoder.context[:, one], vocoder.tail[one], vocoder.window),
        )


class Decoders:
    """Both decoders on the rows of one state.

    Attributes:
        media: what the steps write.
        state: what they remember.
    """

    def __init__(
        self,
        vae: Vae,
        vocoder: Vocoder,
        state: DecoderState,
        latents: ChunkBuffers,
        media: MediaBuffers,
        pool: GraphPool,
    ) -> None:
        self.vae, self.vocoder, self.state, self.media = vae, vocoder, state, media
        self._latents = latents
        self._steps = {
            "video": pool.step(self._run_video, "decode"),
            "egress": pool.step(self._run_egress, "decode"),
            "audio": pool.step(self._run_audio, "decode"),
        }

    def decode(self, streams: Streams, *after: Done) -> dict[str, Done]:
        """Queue the decoding of a chunk once its latents are there; returns what was queued, by stage."""
        queued: dict[str, Done] = {}
        for stage, step in self._steps.items():
            with span(stage):
                queued[stage] = streams.run("decode", step, *after)
        return queued

    def open(self, reference: torch.Tensor) -> None:
        """Start the streams afresh with a picture, [batch, 3, height, width], and leave its latents.

        They are left in the chunk buffers, where the reference is committed from.
        """
        self.state.vocoder.reset()
        latent = self.vae.encode_image(reference)
        self.vae.prime(self.state.vae, latent)
        self._latents.reference.copy_(latent[:, None].expand_as(self._latents.reference))

    def stages(self) -> dict[str, Callable[[], None]]:
        """Return every step by name; all run once, all are captured, and the buffers hold garbage."""
        return dict(self._steps)

    def _run_video(self) -> None:
        latents = self._latents.x_video.to(self.media.frames.dtype)
        self.media.frames.copy_(self.vae.decode(self.state.vae, latents))

    def _run_egress(self) -> None:
        rgb, yuv = egress(self.media.frames.flatten(0, 1), rgb=True, yuv=True)
        assert rgb is not None
        assert yuv is not None
        self.media.rgb.copy_(rgb.view_as(self.media.rgb))
        self.media.yuv.copy_(yuv.view_as(self.media.yuv))

    def _run_audio(self) -> None:
        self.media.audio.copy_(self.vocoder.decode(self.state.vocoder, self._latents.x_audio))
