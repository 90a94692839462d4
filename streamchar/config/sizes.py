"""Sizes of the clock, the picture, the chunk, both transformers and the sampler."""

from dataclasses import dataclass
from typing import Literal

from .checks import require, require_positive

#: Names of the tokenizers; see :attr:`OrchestratorConfig.tokenizer`.
TOKENIZERS = ("bytes", "phonemes", "given")


@dataclass(frozen=True)
class ClockConfig:
    """The clock that video and audio share; by default 1000 audio samples per video frame.

    Attributes:
        frame_rate: video frames per second; one audio token lasts one video frame.
        sample_rate: audio samples per second, a multiple of ``frame_rate``.
    """

    frame_rate: int = 24
    sample_rate: int = 24000

    def __post_init__(self) -> None:
        require_positive(self, "frame_rate", "sample_rate")
        require(
            self.sample_rate % self.frame_rate == 0,
            "sample_rate",
            f"a multiple of frame_rate = {self.frame_rate}",
            self.sample_rate,
            "timestamps are whole samples; resample the audio",
        )

    @property
    def samples_per_frame(self) -> int:
        """Audio samples per video frame."""
        return self.sample_rate // self.frame_rate


#: The default clock, used by the corpus, the renderer and the evaluation.
CLOCK = ClockConfig()


@dataclass(frozen=True)
class PictureConfig:
    """Size of the video frames, of their latents and of the tokens of one latent frame.

    Attributes:
        height: pixels, a multiple of ``spatial_stride * patch``.
        width: pixels, a multiple of ``spatial_stride * patch``.
        spatial_stride: pixels per latent cell, along each axis.
        temporal_stride: video frames per latent frame.
        channels: channels of a video latent.
        patch: latent cells per token, along each axis.
    """

    height: int
    width: int
    spatial_stride: int
    channels: int
    patch: int
    temporal_stride: int = 4

    def __post_init__(self) -> None:
        require_positive(self, "height", "width", "spatial_stride", "channels", "patch", "temporal_stride")
        cell = self.spatial_stride * self.patch
        for name in ("height", "width"):
            value = getattr(self, name)
            limit = f"a multiple of spatial_stride * patch = {cell}"
            require(value % cell == 0, name, limit, value, f"use {max(round(value / cell), 1) * cell}")

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a video latent, in cells."""
        return self.height // self.spatial_stride, self.width // self.spatial_stride

    @property
    def tokens_per_latent(self) -> int:
        """Tokens per latent frame."""
        height, width = self.latent_size
        return (height // self.patch) * (width // self.patch)


@dataclass(frozen=True)
class ChunkConfig:
    """Latent frames of each segment of the joint sequence.

    Attributes:
        latent_frames: latent frames that are denoised together, T.
        reference_latents: latent frames of the reference image.
        sink_latents: first latent frames of the first chunk, kept as a visual anchor; 0 disables the sink.
        motion_latents: last latent frames of the previous chunk; 0 disables motion conditioning.
    """

    latent_frames: int = 8
    reference_latents: int = 1
    sink_latents: int = 8
    motion_latents: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "latent_frames", "reference_latents")
        limit = f"a whole number between 0 and latent_frames = {self.latent_frames}"
        for name in ("sink_latents", "motion_latents"):
            value = getattr(self, name)
            ok = isinstance(value, int) and 0 <= value <= self.latent_frames
            require(ok, name, limit, repr(value), "it is a slice of one chunk; raise latent_frames")


@dataclass(frozen=True)
class DiTConfig:
    """The joint audio-video diffusion transformer.

    Attributes:
        dim: width of a token, equal to ``heads * head_dim``.
        layers: number of blocks.
        heads: attention heads.
        head_dim: width of a head, 64 or 128.
        video_ffn: hidden width of the video expert.
        audio_ffn: hidden width of the audio expert.
        audio_channels: channels of an audio latent; each audio token is one latent.
    """

    dim: int
    layers: int
    heads: int
    head_dim: int
    video_ffn: int
    audio_ffn: int
    audio_channels: int = 64

    def __post_init__(self) -> None:
        require_positive(
            self, "dim", "layers", "heads", "head_dim", "video_ffn", "audio_ffn", "audio_channels"
        )
        require(
            self.head_dim in (64, 128),
            "head_dim",
            "64 or 128",
            self.head_dim,
            "the attention kernel has tiles for these widths only",
        )
        width = self.heads * self.head_dim
        require(width == self.dim, "dim", f"heads * head_dim = {width}", self.dim, "change heads or dim")

    @property
    def attention_parameters(self) -> int:
        """Weights of one block's four attention projections, which apply to every token."""
        return 4 * self.dim * self.dim

    @property
    def parameters(self) -> int:
        """Weights of all blocks' matrices, without embeddings, norms and biases (under 1 % of the total)."""
        experts = 2 * self.dim * (self.video_ffn + self.audio_ffn)
        return self.layers * (self.attention_parameters + experts)


@dataclass(frozen=True)
class OrchestratorConfig:
    """The causal language model that plans the speech, in the Qwen2 architecture.

    Attributes:
        dim: width of a token.
        layers: number of blocks.
        heads: query heads.
        kv_heads: key and value heads, a divisor of ``heads``.
        head_dim: width of a head.
        ffn: hidden width of the gated feed-forward network.
        vocabulary: number of text tokens; the embedding also serves as the output head.
        history_seconds: longest audio history in the packed sequence, 0 to 15 seconds.
        transcript_tokens: size of the transcript window, in text tokens.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square in RMSNorm.
        tokenizer: ``"phonemes"`` for English phonemes, ``"bytes"`` for UTF-8, or ``"given"`` for a tokenizer
            that the caller passes to the engine, such as the tokenizer.json of a pretrained language model.
        duration_dim: width of the network that predicts the duration of each text token. With it, the
            position of a text token is the time at which it will be spoken, on the time axis of the audio.
            0 disables it: text then keeps the positions that pretrained language models expect.
        duration_scale: factor on predicted durations during generation, 0.5 to 2; above 1 gives slower and
            clearer speech. Training uses the pace of the recordings. Must be 1 if ``duration_dim`` is 0.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    history_seconds: float = 15.0
    transcript_tokens: int = 256
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    tokenizer: str = "bytes"
    duration_dim: int = 0
    duration_scale: float = 1.0

    def __post_init__(self) -> None:
        require_positive(
            self, "dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocabulary", "transcript_tokens"
        )
        limit = f"a divisor of heads = {self.heads}"
        require(self.heads % self.kv_heads == 0, "kv_heads", limit, self.kv_heads)
        require(self.head_dim % 2 == 0, "head_dim", "even (RoPE rotates pairs)", self.head_dim)
        require(self.dim % self.heads == 0, "dim", f"a multiple of heads = {self.heads}", self.dim)
        require(self.rope_theta > 1, "rope_theta", "above 1", self.rope_theta)
        require(self.norm_eps > 0, "norm_eps", "above 0", self.norm_eps)
        limit = " or ".join(map(repr, TOKENIZERS))
        require(self.tokenizer in TOKENIZERS, "tokenizer", limit, repr(self.tokenizer))
        require(self.duration_dim >= 0, "duration_dim", "0 or more", self.duration_dim)
        limit = "between 0.5 and 2" if self.duration_dim else "1 where duration_dim is 0"
        least, most = (0.5, 2.0) if self.duration_dim else (1.0, 1.0)
        require(least <= self.duration_scale <= most, "duration_scale", limit, self.duration_scale)
        limit = "between 0 and 15 seconds (the range seen in training)"
        require(0 <= self.history_seconds <= 15, "history_seconds", limit, self.history_seconds)

    @property
    def matrix_parameters(self) -> int:
        """Weights of all blocks' matrices, which apply to every token; without norms and biases."""
        attention = 2 * self.dim * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.dim * self.ffn)

    @property
    def parameters(self) -> int:
        """Weights of the matrices and the embedding."""
        return self.matrix_parameters + self.vocabulary * self.dim


@dataclass(frozen=True)
class SamplerConfig:
    """The noise schedule and the type of the denoising steps.

    Attributes:
        sigmas: noise level at the start of each step, strictly decreasing from 1; the last step ends at 0.
        mode: ``"renoise"`` predicts the clean latents and adds fresh noise (few-step student); ``"euler"``
            integrates the velocity (teacher).
    """

    sigmas: tuple[float, ...] = (1.0, 0.9375, 0.8333, 0.625)
    mode: Literal["renoise", "euler"] = "renoise"

    def __post_init__(self) -> None:
        require(self.mode in ("renoise", "euler"), "mode", "'renoise' or 'euler'", repr(self.mode))
        decreasing = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:]))
        ok = bool(self.sigmas) and self.sigmas[0] == 1.0 and decreasing and self.sigmas[-1] > 0
        require(ok, "sigmas", "strictly decreasing from 1 and above 0", self.sigmas)

    @classmethod
    def shifted(cls, steps: int, shift: float = 5.0) -> "SamplerConfig":
        """Return a schedule of Euler steps, uniform in t and shifted towards high noise.

        The noise level is ``shift * t / (1 + (shift - 1) * t)`` (arXiv 2403.03206, section 5.3.2). The
        teacher uses 50 steps.

        Args:
            steps: number of steps.
            shift: above 1 for more steps at high noise; 1 leaves t as it is.

        Raises:
            ConfigError: ``steps`` or ``shift`` is not positive.
        """
        require(steps > 0, "steps", "a positive integer", steps)
        require(shift > 0, "shift", "above 0", shift)
        times = [1 - index / steps for index in range(steps)]
        return cls(tuple(shift * t / (1 + (shift - 1) * t) for t in times), "euler")

    @property
    def steps(self) -> int:
        """Denoising steps per chunk."""
        return len(self.sigmas)
