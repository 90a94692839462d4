"""All sizes of the system as frozen dataclasses, and the presets that name complete sets of them."""

from .checks import ConfigError
from .codecs import VaeConfig, VocoderConfig
from .presets import PRESETS, Preset, preset
from .sizes import (
    CLOCK,
    TOKENIZERS,
    ChunkConfig,
    ClockConfig,
    DiTConfig,
    OrchestratorConfig,
    PictureConfig,
    SamplerConfig,
)

__all__ = [
    "CLOCK",
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
