"""Every size of the system, as frozen dataclasses, and the presets that name a whole set of them.

One clock: 24 video frames and 24 000 audio samples a second, so 1000 samples and one audio token a frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from .codecs.config import WAN22_LATENTS_MEAN, WAN22_LATENTS_STD, VaeConfig, VocoderConfig
from .config_checks import ConfigError, require, require_positive

#: What turns text into tokens.
TOKENIZERS = ("bytes", "phonemes", "given")

__all__ = [
    "PRESETS",
    "TOKENIZERS",
    "ChunkConfig",
    "ClockConfig",
    "ConfigError",
    "DiTConfig",
    "OrchestratorConfig",
    "PictureConfig",
    "Preset",
    "SamplerConfig",
    "VaeConfig",
    "VocoderConfig",
    "preset",
]


@dataclass(frozen=True)
class ClockConfig:
    """The time base that picture and sound share.

    Attributes:
        frame_rate: video frames a second; an audio token lasts one frame.
        sample_rate: audio samples a second.
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
            "both streams are stamped in whole samples; resample the audio",
        )

    @property
    def samples_per_frame(self) -> int:
        """Audio samples that sound during one video frame."""
        return self.sample_rate // self.frame_rate


@dataclass(frozen=True)
class PictureConfig:
    """The picture, its latent grid and the tokens of one latent frame.

    Attributes:
        height: pixels.
        width: pixels.
        spatial_stride: pixels that one latent cell spans, along either axis.
        temporal_stride: video frames that one latent frame spans.
        channels: channels of a video latent.
        patch: latent cells that one token spans, along either axis.
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
        """Tokens of one latent frame."""
        height, width = self.latent_size
        return (height // self.patch) * (width // self.patch)


@dataclass(frozen=True)
class ChunkConfig:
    """How many latent frames each segment of the joint sequence holds.

    Attributes:
        latent_frames: latent frames denoised together, T.
        reference_latents: latents of the reference image.
        sink_latents: latents of the first chunk kept as a visual anchor; 0 for none.
        motion_latents: latents of the chunk just finished; 0 for none.
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
            require(ok, name, limit, repr(value), "it is cut from one chunk; raise latent_frames")


@dataclass(frozen=True)
class DiTConfig:
    """The joint audio-video diffusion transformer.

    Attributes:
        dim: width of a token.
        layers: number of blocks.
        heads: attention heads.
        head_dim: width of a head, 64 or 128; heads * head_dim = dim.
        video_ffn: hidden width of the video expert.
        audio_ffn: hidden width of the audio expert.
        audio_channels: channels of an audio latent, one latent a token.
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
            "these are the widths that the attention kernel has tiles for",
        )
        width = self.heads * self.head_dim
        require(width == self.dim, "dim", f"heads * head_dim = {width}", self.dim, "change heads or dim")

    @property
    def attention_parameters(self) -> int:
        """Weights of one block's four attention projections, which every token meets."""
        return 4 * self.dim * self.dim

    @property
    def parameters(self) -> int:
        """Weights of all blocks' matrices; embeddings, norms and biases, under one percent, left out."""
        experts = 2 * self.dim * (self.video_ffn + self.audio_ffn)
        return self.layers * (self.attention_parameters + experts)


@dataclass(frozen=True)
class OrchestratorConfig:
    """The causal language model that plans the speech; Qwen2-family architecture.

    Attributes:
        dim: width of a token.
        layers: number of blocks.
        heads: query heads.
        kv_heads: key and value heads, a divisor of ``heads``.
        head_dim: width of a head.
        ffn: hidden width of the gated feed-forward network.
        vocabulary: text tokens; the embedding also serves as the output head.
        history_seconds: audio history in the packed sequence, at most.
        transcript_tokens: transcript window, in text tokens, at most.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square in RMSNorm.
        tokenizer: ``"phonemes"`` for English phonemes, ``"bytes"`` for UTF-8, ``"given"`` for one that the
            engine's user brings, such as the tokenizer.json of a pretrained language model.
        duration_dim: width of the network that predicts how long each text token sounds. Text then lies on
            the time line of the audio, the token to be said next at the chunk's first frame; 0 leaves text at
            the positions of the language model, as pretrained ones expect.
        duration_scale: what planned durations are multiplied by when the engine speaks: above 1 is slower
            speech, and clearer. Training reads text at the pace it is said at. Without a duration predictor
            there is no plan, and it must be 1.
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
        limit = "between 0 and 15 seconds (the range it is trained on)"
        require(0 <= self.history_seconds <= 15, "history_seconds", limit, self.history_seconds)

    @property
    def matrix_parameters(self) -> int:
        """Weights of all blocks' matrices, which every token meets; norms and biases left out."""
        attention = 2 * self.dim * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.dim * self.ffn)

    @property
    def parameters(self) -> int:
        """Weights of the matrices and of the embedding."""
        return self.matrix_parameters + self.vocabulary * self.dim


@dataclass(frozen=True)
class SamplerConfig:
    """The schedule and the kind of its steps.

    Attributes:
        sigmas: noise level at the start of each step, falling from 1; the last step ends at 0.
        mode: ``"renoise"`` predicts the clean latents and adds fresh noise, for the few-step student;
            ``"euler"`` follows the velocity, for the teacher.
    """

    sigmas: tuple[float, ...] = (1.0, 0.9375, 0.8333, 0.625)
    mode: Literal["renoise", "euler"] = "renoise"

    def __post_init__(self) -> None:
        require(self.mode in ("renoise", "euler"), "mode", "'renoise' or 'euler'", repr(self.mode))
        falling = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:]))
        ok = bool(self.sigmas) and self.sigmas[0] == 1.0 and falling and self.sigmas[-1] > 0
        require(ok, "sigmas", "falling from 1 and above 0", self.sigmas)

    @classmethod
    def shifted(cls, steps: int, shift: float = 5.0) -> "SamplerConfig":
        """Return ``steps`` Euler steps, even in t and warped to ``shift * t / (1 + (shift - 1) * t)``.

        The warp of arXiv 2403.03206 section 5.3.2; the teacher takes 50 of these.
        """
        require(steps > 0, "steps", "a positive integer", steps)
        require(shift > 0, "shift", "above 0", shift)
        times = [1 - index / steps for index in range(steps)]
        return cls(tuple(shift * t / (1 + (shift - 1) * t) for t in times), "euler")

    @property
    def steps(self) -> int:
        """Denoising steps a chunk."""
        return len(self.sigmas)


@dataclass(frozen=True)
class Preset:
    """A whole system: every size that kernels, engine and benchmarks need.

    Attributes:
        name: how it is called in :data:`PRESETS`.
        dit: the diffusion transformer.
        picture: the picture and its latent grid.
        orchestrator: the language model.
        vae: the video codec.
        vocoder: the audio decoder.
        chunk: segment lengths.
        clock: the time base.
        sampler: the few-step schedule.
    """

    name: str
    dit: DiTConfig
    picture: PictureConfig
    orchestrator: OrchestratorConfig
    vae: VaeConfig
    vocoder: VocoderConfig
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    clock: ClockConfig = field(default_factory=ClockConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        for name, have, want in (
            ("vae.z_dim", self.vae.z_dim, self.picture.channels),
            ("vae.spatial_stride", self.vae.spatial_stride, self.picture.spatial_stride),
            ("vae.temporal_stride", self.vae.temporal_stride, self.picture.temporal_stride),
        ):
            require(have == want, name, f"the picture's {want}", have, "one clock and one grid for both")
        limit = f"a divisor of the {self.clock.samples_per_frame} samples of a frame"
        ok = self.clock.samples_per_frame % self.vocoder.hop == 0
        require(ok, "vocoder.hop", limit, self.vocoder.hop, "an audio token is a whole number of hops")

    @property
    def frames(self) -> int:
        """Video frames of a chunk, and its audio tokens."""
        return self.chunk.latent_frames * self.picture.temporal_stride

    @property
    def samples(self) -> int:
        """Audio samples of a chunk."""
        return self.frames * self.clock.samples_per_frame

    @property
    def seconds(self) -> float:
        """Duration of a chunk: the playback budget."""
        return self.frames / self.clock.frame_rate

    @property
    def video_tokens(self) -> int:
        """Noisy video tokens of a chunk."""
        return self.chunk.latent_frames * self.picture.tokens_per_latent

    @property
    def audio_tokens(self) -> int:
        """Noisy audio tokens of a chunk, one a frame."""
        return self.frames

    @property
    def history_tokens(self) -> int:
        """Audio tokens of the orchestrator's history, at most."""
        return int(self.orchestrator.history_seconds * self.clock.frame_rate)

    @property
    def noisy_tokens(self) -> int:
        """Tokens that a denoising step computes."""
        return self.video_tokens + self.audio_tokens

    @property
    def reference_tokens(self) -> int:
        """Tokens of the reference image."""
        return self.chunk.reference_latents * self.picture.tokens_per_latent

    @property
    def sink_tokens(self) -> int:
        """Tokens of the visual anchor."""
        return self.chunk.sink_latents * self.picture.tokens_per_latent

    @property
    def motion_tokens(self) -> int:
        """Tokens of the chunk just finished."""
        return self.chunk.motion_latents * self.picture.tokens_per_latent

    @property
    def cached_tokens(self) -> int:
        """Conditioning tokens whose keys and values are kept."""
        return self.reference_tokens + self.sink_tokens + self.motion_tokens

    def with_latent_frames(self, latent_frames: int) -> "Preset":
        """Return this preset with T = ``latent_frames``; sink and motion keep their share of a chunk."""
        require(latent_frames > 0, "latent_frames", "a positive integer", latent_frames)

        def scaled(latents: int) -> int:
            return max(min(latents, 1), round(latents * latent_frames / self.chunk.latent_frames))

        chunk = replace(
            self.chunk,
            latent_frames=latent_frames,
            sink_latents=scaled(self.chunk.sink_latents),
            motion_latents=scaled(self.chunk.motion_latents),
        )
        return replace(self, chunk=chunk)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": Preset(
            name="tiny",
            dit=DiTConfig(
                dim=256, layers=6, heads=4, head_dim=64, video_ffn=768, audio_ffn=256, audio_channels=64
            ),
            picture=PictureConfig(height=96, width=96, spatial_stride=16, channels=48, patch=1),
            orchestrator=OrchestratorConfig(
                dim=256,
                layers=4,
                heads=4,
                kv_heads=2,
                head_dim=64,
                ffn=768,
                vocabulary=192,
                history_seconds=2.0,
                transcript_tokens=96,
                tokenizer="phonemes",
                duration_dim=96,
            ),
            vae=VaeConfig(
                base_dim=20,
                decoder_base_dim=32,
                z_dim=48,
                dim_mult=(1, 2, 2),
                num_res_blocks=1,
                temporal_downsample=(True, True),
                patch_size=4,
                latents_mean=(0.0,) * 48,
                latents_std=(1.0,) * 48,
            ),
            vocoder=VocoderConfig(dim=192, layers=4, ffn=576),
        ),
        "5b": Preset(
            name="5b",
            dit=DiTConfig(dim=3072, layers=30, heads=24, head_dim=128, video_ffn=14336, audio_ffn=4096),
            picture=PictureConfig(height=512, width=512, spatial_stride=16, channels=48, patch=2),
            orchestrator=OrchestratorConfig(
                dim=2048, layers=36, heads=16, kv_heads=2, head_dim=128, ffn=11008, vocabulary=151936
            ),
            vae=VaeConfig(
                base_dim=160,
                decoder_base_dim=256,
                z_dim=48,
                dim_mult=(1, 2, 4, 4),
                num_res_blocks=2,
                temporal_downsample=(False, True, True),
                patch_size=2,
                latents_mean=WAN22_LATENTS_MEAN,
                latents_std=WAN22_LATENTS_STD,
            ),
            vocoder=VocoderConfig(dim=512, layers=8, ffn=1536),
        ),
    }
)


def preset(name: str) -> Preset:
    """Return the preset called ``name``.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError("preset", " or ".join(repr(known) for known in PRESETS), repr(name))
    return PRESETS[name]
