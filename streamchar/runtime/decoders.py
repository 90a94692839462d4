"""The steps that turn finished latents into frames and samples, captured on fixed buffers.

Both decoders stream: each row of their state carries its session from chunk to chunk.
"""

from collections.abc import Callable

import torch

from ..codecs.vae import Vae
from ..codecs.vocoder import Vocoder
from ..kernels import pack_frames
from .buffers import ChunkBuffers, DecoderState, MediaBuffers
from .graphs import GraphPool
from .queues import Completion, Queues


class Decoders:
    """Both decoders on the rows of one state.

    Attributes:
        media: what the steps write.
        state: streaming state of both decoders.
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
            "video": pool.step("video", self._decode_video, "decode"),
            "frames": pool.step("frames", self._pack_frames, "decode"),
            "audio": pool.step("audio", self._decode_audio, "decode"),
        }

    def decode(self, queues: Queues, *after: Completion) -> dict[str, Completion]:
        """Queue the decoding of a chunk behind ``after``; return the queued work by stage."""
        return {stage: queues.run("decode", step, *after) for stage, step in self._steps.items()}

    def open(self, reference: torch.Tensor) -> None:
        """Reset the streams and start them with a picture.

        Args:
            reference: [batch, 3, height, width] in [-1, 1]; its latents are written to the chunk buffers,
                from where the reference is committed.
        """
        self.state.vocoder.reset()
        latent = self.vae.encode_image(reference)
        self.vae.prime(self.state.vae, latent)
        self._latents.reference.copy_(latent[:, None].expand_as(self._latents.reference))

    def stages(self) -> dict[str, Callable[[], None]]:
        """Return every step by name, for warming up: running one leaves garbage in the buffers."""
        return dict(self._steps)

    def _decode_video(self) -> None:
        latents = self._latents.x_video.to(self.media.frames.dtype)
        self.media.frames.copy_(self.vae.decode(self.state.vae, latents))

    def _pack_frames(self) -> None:
        rgb, yuv = pack_frames(self.media.frames.flatten(0, 1), rgb=True, yuv=True)
        assert rgb is not None
        assert yuv is not None
        self.media.rgb.copy_(rgb.view_as(self.media.rgb))
        self.media.yuv.copy_(yuv.view_as(self.media.yuv))

    def _decode_audio(self) -> None:
        self.media.audio.copy_(self.vocoder.decode(self.state.vocoder, self._latents.x_audio))
