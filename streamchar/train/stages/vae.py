"""Train the video VAE on short clips of drawn characters."""

import torch
from torch import Tensor

from ...codecs.vae import Vae
from ...config import Preset
from ...data.corpus import Corpus
from ...data.renderer.character import Identity, neutral
from ..batches import random_recordings
from ..clips import draw, pixel_weights, pose
from ..distributed.parallel import local_range, randn, world_size
from ..loop import LoopConfig, Trainable
from .base import CorpusStage

CONFIG = LoopConfig(steps=3900, lr=2e-3, batch=14, matrix_lr=0.02, warmup=50)
#: Latents of a clip after the first. Short clips show more faces for the same work. Late in the run, every
#: second step takes longer clips, in which convolutions see their whole past. Without clips of more than 4
#: latents, pictures lost 8 dB within 10 latents; with long clips from the start, 5000 steps ended 1.7 dB
#: below 3900 steps with long clips late.
LATENTS, LONG_LATENTS, LONG_EVERY, LONG_FROM = 1, 12, 2, 0.6
#: Share of clips that open with the reference image, as sessions do.
OPENING = 0.5
#: Noise on the latents, so that nearby latents decode alike: a flow never reaches a latent exactly. A learned
#: variance, as in a true VAE, started so high that little was learned for hundreds of steps.
LATENT_NOISE = 0.1
SIZE_WEIGHT, SQUARE_WEIGHT, EDGE_WEIGHT = 1e-3, 2.0, 0.3
#: Share of the run after which the edge loss is added. While edges are misplaced, the edge loss is lowest
#: without any; a network trained with it from the start learned to draw blurs.
EDGES_FROM = 0.75
#: Identities to train on; evaluation uses others.
IDENTITIES = 1_000_000


class VaeStage(CorpusStage):
    """Trains the encoder and decoder of the VAE.

    Args:
        preset: sizes.
        corpus: speech that the drawn characters speak.
        device: device to train on.
        config: settings of the loop.

    Source: the VAE of arXiv 1312.6114 with a fixed variance of the latents, so the divergence from the normal
    distribution reduces to the square of the latents; pixel distances take the place of the likelihood.
    """

    name = "vae"

    def __init__(
        self, preset: Preset, corpus: Corpus, device: torch.device, config: LoopConfig = CONFIG
    ) -> None:
        super().__init__(corpus, device, config, vae=repr(preset.vae))
        self.size = preset.picture.height, preset.picture.width
        self.stride = preset.picture.temporal_stride
        self.vae = Vae(preset.vae, device)
        self.weights = pixel_weights(*self.size).to(device)
        self.trainables = {"vae": Trainable(self.vae, config)}

    def latents(self, step: int) -> int:
        """Return the number of latents after the first in the clips of a step."""
        long = step >= LONG_FROM * self.config.steps and step % LONG_EVERY == 0
        return LONG_LATENTS if long else LATENTS

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step."""
        frames = self._clips(self.latents(step), generator)
        latents, made = self._round_trip(frames, generator)
        pixels, squares, edges = self._distances(made, frames)
        size = latents.float().square().mean()
        loss = pixels + SQUARE_WEIGHT * squares + SIZE_WEIGHT * size
        if step >= EDGES_FROM * self.config.steps:
            loss = loss + EDGE_WEIGHT * edges
        norm = self.trainables["vae"].update(loss, step)
        return self._logged(made, frames, pixels, edges, norm) | {"size": size.item()}

    def _round_trip(self, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the latents of frames, and the frames decoded from the latents with noise."""
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.vae.encode(frames)
            noise = randn(latents.shape, generator).to(latents)
            made = self.vae.decode_clip(latents + LATENT_NOISE * noise)
        return latents, made.float()

    def _distances(self, made: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the absolute, the squared and the edge distance of pixels, weighted towards the face."""
        pixels = ((made - frames).abs() * self.weights).mean()
        squares = ((made - frames).square() * self.weights).mean()
        return pixels, squares, edge_loss(made, frames, self.weights)

    @staticmethod
    def _logged(made: Tensor, frames: Tensor, pixels: Tensor, edges: Tensor, norm: float) -> dict[str, float]:
        error = (made.detach().clamp(-1, 1) - frames).square().mean() / 4
        psnr = float(-10 * error.log10())
        return {"pixels": pixels.item(), "edges": edges.item(), "psnr": psnr, "norm": norm}

    def _clips(self, latents: int, generator: torch.Generator) -> Tensor:
        clips = []
        frames = latents * self.stride
        # Steps of long and short clips have about the same number of frames.
        count = max(1, self.config.batch * (1 + LATENTS * self.stride) // (1 + frames))
        for row, recording in enumerate(
            random_recordings(self.corpus, count * world_size(), generator, frames)
        ):
            seed, start, chance = torch.randint(2**31, (3,), generator=generator).tolist()
            if row not in local_range(count):
                continue
            identity = Identity.sample(seed % IDENTITIES)
            motion = pose(recording, seed)
            first = start % (recording.frames - frames)
            motion = motion[max(first - 1, 0) :][: frames + 1]
            if chance < OPENING * 2**31:
                motion = torch.cat((neutral(), motion[1:]))
            clips.append(draw(identity, motion, self.size, self.device))
        return torch.stack(clips)


def edge_loss(made: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean distance of the differences of neighbouring pixels, summed over both axes.

    Args:
        made: [..., height, width], generated pictures.
        real: original pictures, the same shape.
        weights: [height, width]; a difference has the weight of its left or upper pixel.

    Source: the gradient difference loss of arXiv 1511.05440 with exponent 1, here of signed differences, so
    that a gradient of the wrong sign costs too.
    """
    total = made.new_zeros(())
    for axis in (-1, -2):
        a, b = (each.diff(dim=axis) for each in (made, real))
        total = total + ((a - b).abs() * weights[: a.shape[-2], : a.shape[-1]]).mean()
    return total
