"""The smallest preset that every training stage runs on, and stand-ins for what the stages train with."""

from dataclasses import replace

import torch

from streamchar.config import VocoderConfig
from streamchar.train.joint import JointData, VideoLatents
from tests.engine.small import SMALL

MINIATURE = replace(
    SMALL,
    vocoder=VocoderConfig(dim=16, layers=1, ffn=32),
    orchestrator=replace(
        SMALL.orchestrator,
        vocabulary=192,
        history_seconds=2.0,
        transcript_tokens=48,
        tokenizer="phonemes",
        duration_dim=16,
    ),
)


class SilenceListener(torch.nn.Module):
    """An aligner that recognises silence, token 0, in any latents."""

    def __init__(self, vocabulary=MINIATURE.orchestrator.vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, latents):
        log_probs = torch.full((*latents.shape[:2], self.vocabulary), -20.0)
        log_probs[..., 0] = 0.0
        return log_probs


def random_data(preset, corpus, generator):
    """Return random latents of the right sizes for all recordings of a corpus, normalised."""
    audio = torch.randn(int(corpus.frames.sum()), preset.dit.audio_channels, generator=generator)
    bounds = [0]
    for recording in corpus:
        bounds.append(bounds[-1] + recording.frames // preset.picture.temporal_stride + 1)
    channels = preset.picture.channels
    latents = torch.randn(bounds[-1], channels, *preset.picture.latent_size, generator=generator).half()
    video = VideoLatents(latents, bounds, torch.zeros(channels), torch.ones(channels))
    return JointData(corpus, audio, video)
