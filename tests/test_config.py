"""The presets say what the design says, and an impossible size is refused with its remedy."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from streamchar.config import (
    PRESETS,
    ChunkConfig,
    ClockConfig,
    ConfigError,
    DiTConfig,
    OrchestratorConfig,
    PictureConfig,
    SamplerConfig,
    preset,
)
from streamchar.model.dit import JointDiT
from streamchar.model.orchestrator import Orchestrator


def test_5b_has_the_designs_tokens():
    config = preset("5b")
    assert (config.video_tokens, config.audio_tokens, config.noisy_tokens) == (2048, 32, 2080)
    assert (config.reference_tokens, config.sink_tokens, config.motion_tokens) == (256, 2048, 2048)
    assert config.cached_tokens + config.noisy_tokens == 6432


def test_tiny_has_the_designs_tokens():
    config = preset("tiny")
    assert (config.video_tokens, config.audio_tokens, config.cached_tokens) == (288, 32, 612)


@pytest.mark.parametrize("name", PRESETS)
def test_a_chunk_is_32_frames_and_32000_samples(name):
    config = preset(name)
    assert config.name == name
    assert (config.frames, config.samples, config.clock.samples_per_frame) == (32, 32000, 1000)
    assert config.seconds == pytest.approx(4 / 3)


def test_parameter_counts_of_5b_are_those_of_the_design():
    # 4.5 G, and Qwen2.5-3B's 3.09 G.
    config = preset("5b")
    assert config.dit.parameters == pytest.approx(4.5e9, rel=0.06)
    assert config.orchestrator.parameters == pytest.approx(3.09e9, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_counted_by_the_config_are_those_of_the_modules(name):
    config = preset(name)
    with torch.device("meta"):
        dit, language_model = JointDiT(config), Orchestrator.from_preset(config).model
    matrices = [p.numel() for p in dit.blocks.parameters() if p.dim() > 1]
    assert sum(matrices) == config.dit.parameters
    matrices = [p.numel() for p in language_model.parameters() if p.dim() > 1]
    assert sum(matrices) == config.orchestrator.parameters


def test_nine_latent_frames_keep_the_segments_in_proportion():
    config = preset("5b").with_latent_frames(9)
    assert (config.chunk.sink_latents, config.chunk.motion_latents, config.chunk.reference_latents) == (
        9,
        9,
        1,
    )
    assert (config.video_tokens, config.audio_tokens, config.samples) == (2304, 36, 36000)


def test_conditioning_that_is_left_out_stays_out_at_another_length():
    config = preset("5b")
    config = replace(config, chunk=replace(config.chunk, sink_latents=0, motion_latents=1))
    chunk = config.with_latent_frames(3).chunk
    assert (chunk.sink_latents, chunk.motion_latents) == (0, 1)
    assert (config.sink_tokens, config.cached_tokens) == (0, 512)


def test_the_student_schedule_is_the_shifted_one():
    shifted = [5 * t / (1 + 4 * t) for t in (1.0, 0.75, 0.5, 0.25)]
    assert SamplerConfig().sigmas == pytest.approx(shifted, abs=5e-5)


def test_a_sampler_knows_its_kinds_of_steps():
    with pytest.raises(ConfigError, match="mode must be 'renoise' or 'euler', got 'heun'"):
        SamplerConfig(mode="heun")
    assert SamplerConfig().steps == 4


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        preset("5b").dit.dim = 1024


DIT = preset("tiny").dit
PICTURE = preset("tiny").picture
LM = preset("tiny").orchestrator


@pytest.mark.parametrize(
    ("build", "argument", "remedy"),
    [
        (lambda: preset("6b"), "preset", "'tiny' or '5b'"),
        (lambda: replace(DIT, dim=320), "dim", "heads * head_dim = 256"),
        (lambda: replace(DIT, heads=8, head_dim=32), "head_dim", "64 or 128"),
        (lambda: replace(DIT, layers=0), "layers", "a positive integer"),
        (lambda: replace(DIT, video_ffn=1.5), "video_ffn", "a positive integer"),
        (lambda: replace(PICTURE, height=100), "height", "use 96"),
        (lambda: replace(PICTURE, width=8), "width", "use 16"),
        (lambda: replace(LM, kv_heads=3), "kv_heads", "a divisor of heads = 4"),
        (lambda: replace(LM, history_seconds=20.0), "history_seconds", "15 seconds"),
        (lambda: replace(LM, duration_scale=0.4), "duration_scale", "between 0.5 and 2"),
        (lambda: replace(LM, duration_scale=float("nan")), "duration_scale", "between 0.5 and 2"),
        (
            lambda: replace(LM, duration_dim=0, duration_scale=1.2),
            "duration_scale",
            "1 where duration_dim is 0",
        ),
        (lambda: ChunkConfig(latent_frames=4), "sink_latents", "raise latent_frames"),
        (lambda: ChunkConfig(sink_latents=-1), "sink_latents", "between 0 and latent_frames = 8"),
        (lambda: ChunkConfig(motion_latents=1.0), "motion_latents", "a whole number"),
        (lambda: ChunkConfig(reference_latents=0), "reference_latents", "a positive integer"),
        (lambda: ClockConfig(sample_rate=22050, frame_rate=24), "sample_rate", "resample"),
        (lambda: SamplerConfig(sigmas=()), "sigmas", "strictly decreasing from 1"),
        (lambda: SamplerConfig(sigmas=(1.0, 0.5, 0.7)), "sigmas", "strictly decreasing from 1"),
        (lambda: SamplerConfig(sigmas=(1.0, 0.0)), "sigmas", "above 0"),
        (lambda: preset("5b").with_latent_frames(0), "latent_frames", "a positive integer"),
    ],
)
def test_an_impossible_size_is_refused_with_its_remedy(build, argument, remedy):
    with pytest.raises(ConfigError) as error:
        build()
    assert error.value.argument == argument
    assert str(error.value).startswith(f"{argument} must be ")
    assert remedy in str(error.value)


@pytest.mark.parametrize("kind", [DiTConfig, PictureConfig, OrchestratorConfig])
def test_sizes_have_no_hidden_defaults(kind):
    with pytest.raises(TypeError):
        kind()
