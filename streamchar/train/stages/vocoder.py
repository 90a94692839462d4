"""Train the vocoder: spectral losses first, then discriminators as well."""

import numpy as np
import torch
from torch import Tensor

from ...codecs.vocoder import Vocoder
from ...config import CLOCK, Preset
from ...data.corpus import Corpus
from ..batches import random_audio, recording_audio
from ..loop import LoopConfig, Trainable
from ..losses.adversarial import adversarial_losses
from ..losses.spectral import SpectrumDiscriminators, spectral_loss
from .base import CorpusStage

CONFIG = LoopConfig(steps=2000, lr=8e-4, batch=16, matrix_lr=0.01, warmup=50)
#: Audio tokens of an excerpt.
TOKENS = 28
#: Share of the run after which the discriminators join; earlier, they have nothing useful to compare.
ADVERSARIAL_FROM = 0.5
#: Excerpts per step that the discriminators see; with all of them, a step would take twice as long.
DISCRIMINATOR_EXCERPTS = 8
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 0.1, 1.0


class VocoderStage(CorpusStage):
    """Trains the decoder of the vocoder. The encoder is fitted in closed form before the first step."""

    name = "vocoder"

    def __init__(
        self, preset: Preset, corpus: Corpus, device: torch.device, config: LoopConfig = CONFIG
    ) -> None:
        super().__init__(corpus, device, config, vocoder=repr(preset.vocoder))
        self.vocoder = Vocoder.from_preset(preset).to(device)
        fit_encoder(self.vocoder, corpus)
        self.discriminators = SpectrumDiscriminators().to(device)
        self.trainables = {
            "vocoder": Trainable(self.vocoder, config, betas=(0.8, 0.98)),
            "discriminators": Trainable(self.discriminators, config, lr_scale=0.5, betas=(0.8, 0.98)),
        }

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step of the vocoder and, later in the run, one of the discriminators."""
        real = random_audio(self.corpus, self.config.batch, TOKENS, generator).to(self.device)
        made = self._decode(self.vocoder.encode(real))
        spectral = spectral_loss(made, real)
        logged = {"spectral": spectral.item()}
        loss = spectral
        if step >= ADVERSARIAL_FROM * self.config.steps:
            real, made = real[:DISCRIMINATOR_EXCERPTS], made[:DISCRIMINATOR_EXCERPTS]
            fooled, features, adversarial = adversarial_losses(
                self.discriminators, self.trainables["discriminators"], real, made, step
            )
            loss = loss + ADVERSARIAL_WEIGHT * fooled + FEATURE_WEIGHT * features
            logged |= adversarial
        logged["norm"] = self.trainables["vocoder"].update(loss, step)
        return logged

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.vocoder.decode(self.vocoder.new_state(len(latents)), latents).float()


def fit_encoder(vocoder: Vocoder, corpus: Corpus, recordings: int = 400) -> float:
    """Fit the linear encoder to recordings spread over the corpus; return the share of variance it keeps."""
    chosen = np.linspace(0, len(corpus) - 1, min(recordings, len(corpus))).astype(int)
    device = vocoder.head.weight.device
    examples = [
        vocoder.spectrogram.log_mel(recording_audio(corpus, int(index))[None].to(device), CLOCK.sample_rate)[
            0
        ]
        for index in chosen
    ]
    return vocoder.spectrogram.fit(torch.cat(examples))
