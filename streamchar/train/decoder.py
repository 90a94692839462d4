"""Train the VAE's decoder on, so that pictures become sharp; latents stay what they are.

What a latent does not say about an edge, a loss on pixels answers with the mean of all that it may be, which
is a blur. A discriminator asks for one of them instead.
"""

import torch

from ..codecs.vae import Vae
from ..config import Preset
from ..data.corpus import Corpus
from .adversarial import adversarial_losses
from .loop import LoopConfig, Trained
from .pictures import PictureDiscriminator, random_pairs
from .vae import EDGE_WEIGHT, LATENTS, LONG_EVERY, LONG_LATENTS, SQUARE_WEIGHT, VaeStage

CONFIG = LoopConfig(steps=2400, lr=1e-3, batch=14, matrix_lr=0.01, warmup=50)
#: Pairs of frames of a step that are judged.
JUDGED = 12
#: 0.003 and 0.5 did as well: 600 steps of either took faces from 0.16 to 0.5 of the reference's sharpness and
#: cost no PSNR.
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 0.01, 0.2


class DecoderStage(VaeStage):
    """Latents to frames that a discriminator takes for drawn ones.

    Args:
        preset: sizes.
        corpus: speech to draw characters to.
        codec: the trained VAE, of which the encoder stays as it is.
        device: where to train.
        config: of the loop.

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
        self.trained = {
            "vae": Trained(self.vae, config),
            "discriminator": Trained(self.discriminator, config, lr_scale=0.5, betas=(0.5, 0.98)),
        }

    def latents(self, step: int) -> int:
        """Return how many latents the clips of a step have after their first."""
        return LONG_LATENTS if step % LONG_EVERY == 0 else LATENTS

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step of the decoder and one of the discriminator."""
        frames = self._clips(self.latents(step), generator)
        _, made = self._round_trip(frames, generator)
        pixels, squares, edges = self._distances(made, frames)
        rows, columns = random_pairs(frames, JUDGED, generator)
        judged = frames[rows, columns], made[rows, columns]
        fooled, features, logged = adversarial_losses(
            self.discriminator, self.trained["discriminator"], *judged, step
        )
        loss = pixels + SQUARE_WEIGHT * squares + EDGE_WEIGHT * edges
        loss = loss + ADVERSARIAL_WEIGHT * fooled + FEATURE_WEIGHT * features
        norm = self.trained["vae"].update(loss, step)
        return logged | self._logged(made, frames, pixels, edges, norm)
