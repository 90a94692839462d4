"""Continue the training of the VAE's decoder with a discriminator, for sharper pictures of the same latents.

A latent does not determine an edge exactly. A pixel loss then favours the mean of all possible edges, which
is a blur; a discriminator favours one of them.
"""

import torch

from ...codecs.vae import Vae
from ...config import Preset
from ...data.corpus import Corpus
from ..loop import LoopConfig, Trainable
from ..losses.adversarial import adversarial_losses
from ..losses.picture_discriminator import PictureDiscriminator, random_pairs
from .vae import EDGE_WEIGHT, LATENTS, LONG_EVERY, LONG_LATENTS, SQUARE_WEIGHT, VaeStage

CONFIG = LoopConfig(steps=2400, lr=1e-3, batch=14, matrix_lr=0.01, warmup=50)
#: Pairs of frames per step that the discriminator sees.
DISCRIMINATOR_PAIRS = 12
#: 0.003 and 0.5 worked equally well: after 600 steps with either pair of weights, the sharpness of faces rose
#: from 0.16 to 0.5 of the reference's, at no loss of PSNR.
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 0.01, 0.2


class DecoderStage(VaeStage):
    """Trains the decoder with an adversarial loss.

    Args:
        preset: sizes.
        corpus: speech that the drawn characters speak.
        codec: the trained VAE; its encoder is frozen.
        device: device to train on.
        config: settings of the loop.

    Source: the adversarial decoder of VQGAN, arXiv 2012.09841 section 3.1.
    """

    name = "decoder"

    def __init__(
        self, preset: Preset, corpus: Corpus, codec: Vae, device: torch.device, config: LoopConfig = CONFIG
    ) -> None:
        super().__init__(preset, corpus, device, config)
        self.vae = codec.to(device)
        for part in (codec.encoder, codec.quant_conv):
            part.requires_grad_(False)
        self.discriminator = PictureDiscriminator().to(device)
        self.trainables = {
            "vae": Trainable(self.vae, config),
            "discriminator": Trainable(self.discriminator, config, lr_scale=0.5, betas=(0.5, 0.98)),
        }

    def latents(self, step: int) -> int:
        """Return the number of latents after the first in the clips of a step."""
        return LONG_LATENTS if step % LONG_EVERY == 0 else LATENTS

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step of the decoder and one of the discriminator."""
        frames = self._clips(self.latents(step), generator)
        _, made = self._round_trip(frames, generator)
        pixels, squares, edges = self._distances(made, frames)
        rows, columns = random_pairs(frames, DISCRIMINATOR_PAIRS, generator)
        pairs = frames[rows, columns], made[rows, columns]
        fooled, features, logged = adversarial_losses(
            self.discriminator, self.trainables["discriminator"], *pairs, step
        )
        loss = pixels + SQUARE_WEIGHT * squares + EDGE_WEIGHT * edges
        loss = loss + ADVERSARIAL_WEIGHT * fooled + FEATURE_WEIGHT * features
        norm = self.trainables["vae"].update(loss, step)
        return logged | self._logged(made, frames, pixels, edges, norm)
