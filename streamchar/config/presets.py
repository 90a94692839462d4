"""Presets: named sets of all sizes of a system."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from .checks import ConfigError, require
from .codecs import WAN22_LATENTS_MEAN, WAN22_LATENTS_STD, VaeConfig, VocoderConfig
from .sizes import ChunkConfig, ClockConfig, DiTConfig, OrchestratorConfig, PictureConfig, SamplerConfig


@dataclass(frozen=True)
class Preset:
    """All sizes of one complete system, as kernels, engine and benchmarks use them.

    Attributes:
        name: key in :data:`PRESETS`.
        dit: the diffusion transformer.
        picture: the video frames and their latent grid.
        orchestrator: the language model.
        vae: the video codec.
        vocoder: the audio decoder.
        chunk: latent frames of each segment.
        clock: frame rate and sample rate.
        sampler: the noise schedule.
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
            require(
                have == want, name, f"{want}, as in picture", have, "codec and transformer share one grid"
            )
        limit = f"a divisor of the {self.clock.samples_per_frame} samples of a frame"
        ok = self.clock.samples_per_frame % self.vocoder.hop == 0
        require(ok, "vocoder.hop", limit, self.vocoder.hop, "an audio token must be a whole number of hops")

    @property
    def frames(self) -> int:
        """Video frames per chunk."""
        return self.chunk.latent_frames * self.picture.temporal_stride

    @property
    def samples(self) -> int:
        """Audio samples per chunk."""
        return self.frames * self.clock.samples_per_frame

    @property
    def seconds(self) -> float:
        """Duration of a chunk, which is the time budget for generating it in real time."""
        return self.frames / self.clock.frame_rate

    @property
    def video_tokens(self) -> int:
        """Noisy video tokens per chunk."""
        return self.chunk.latent_frames * self.picture.tokens_per_latent

    @property
    def audio_tokens(self) -> int:
        """Noisy audio tokens per chunk, one per video frame."""
        return self.frames

    @property
    def history_tokens(self) -> int:
        """Size of the orchestrator's audio history, in tokens."""
        return int(self.orchestrator.history_seconds * self.clock.frame_rate)

    @property
    def noisy_tokens(self) -> int:
        """Tokens that a denoising step computes: video and audio."""
        return self.video_tokens + self.audio_tokens

    @property
    def reference_tokens(self) -> int:
        """Tokens of the reference image."""
        return self.chunk.reference_latents * self.picture.tokens_per_latent

    @property
    def sink_tokens(self) -> int:
        """Tokens of the sink."""
        return self.chunk.sink_latents * self.picture.tokens_per_latent

    @property
    def motion_tokens(self) -> int:
        """Tokens of the motion segment."""
        return self.chunk.motion_latents * self.picture.tokens_per_latent

    @property
    def cached_tokens(self) -> int:
        """Conditioning tokens whose keys and values stay in the KV cache."""
        return self.reference_tokens + self.sink_tokens + self.motion_tokens

    def with_latent_frames(self, latent_frames: int) -> "Preset":
        """Return this preset with another T; sink and motion keep their share of a chunk.

        Raises:
            ConfigError: ``latent_frames`` is not a positive integer.
        """
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


#: The presets by name: "tiny" runs on a CPU; "5b" has the sizes of Wan2.2's 5B model and of Qwen2.5-3B.
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
        ConfigError: there is no such preset; the message lists all names.
    """
    if name not in PRESETS:
        raise ConfigError("preset", " or ".join(repr(known) for known in PRESETS), repr(name))
    return PRESETS[name]
