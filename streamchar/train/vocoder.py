"""Train the vocoder: spectral losses first, then discriminators on top of them."""

import numpy as np
import torch
from torch import Tensor

from ..codecs.vocoder import Vocoder
from ..config import Preset
from ..data.corpus import Corpus
from .adversarial import adversarial_losses
from .batches import audio_of, random_audio
from .loop import LoopConfig, Stage, Trained
from .spectral import Discriminators, spectral_loss

CONFIG = LoopConfig(steps=2000, lr=8e-4, batch=16, matrix_lr=0.01, warmup=50)
TOKENS = 28
#: Share of the run after which discriminators join; before, there is nothing to tell apart.
ADVERSARIAL_FROM = 0.5
#: Excerpts of a step that discriminators judge: of all of them, a step would take twice as long.
JUDGED = 8
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 0.1, 1.0


class VocoderStage(Stage):
    """Latents to samples. The encoder is fitted in closed form before the first step."""

    name = "vocoder"

    def __init__(
        self, preset: Preset, corpus: Corpus, device: torch.device, config: LoopConfig = CONFIG
    ) -> None:
        super().__init__(config, {"corpus": corpus.digest, "vocoder": repr(preset.vocoder)})
        torch.manual_seed(config.seed)
        self.corpus, self.device = corpus, device
        self.vocoder = Vocoder.from_preset(preset).to(device)
        fit_encoder(self.vocoder, corpus)
        self.discriminators = Discriminators().to(device)
        self.trained = {
            "vocoder": Trained(self.vocoder, config, betas=(0.8, 0.98)),
            "discriminators": Trained(self.discriminators, config, lr_scale=0.5, betas=(0.8, 0.98)),
        }

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step of the vocoder and, in the later part of the run, one of the discriminators."""
        real = random_audio(self.corpus, self.config.batch, TOKENS, generator).to(self.device)
        made = self._decode(self.vocoder.encode(real))
        spectral = spectral_loss(made, real)
        logged = {"spectral": spectral.item()}
        loss = spectral
        if step >= ADVERSARIAL_FROM * self.config.steps:
            real, made = real[:JUDGED], made[:JUDGED]
            fooled, features, told = adversarial_losses(
                self.discriminators, self.trained["discriminators"], real, made, step
            )
            loss = loss + ADVERSARIAL_WEIGHT * fooled + FEATURE_WEIGHT * features
            logged |= told
        logged["norm"] = self.trained["vocoder"].update(loss, step)
        return logged

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.vocoder.decode(self.vocoder.new_state(len(latents)), latents).float()


def fit_encoder(vocoder: Vocoder, corpus: Corpus, recordings: int = 400) -> float:
    """Fit the linear encoder on recordings spread over the corpus; return the share of variance kept."""
    chosen = np.linspace(0, len(corpus) - 1, min(recordings, len(corpus))).astype(int)
    device = vocoder.head.weight.device
    examples = [
        vocoder.spectrogram.log_mel(audio_of(corpus, int(index))[None].to(device), 24000)[0]
        for index in chosen
    ]
    return vocoder.spectrogram.fit(torch.cat(examples))
