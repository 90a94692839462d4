"""Train the video VAE on short clips of drawn characters."""

import torch
from torch import Tensor

from ..codecs.vae import Vae
from ..config import Preset
from ..data.character import Identity, neutral
from ..data.corpus import Corpus
from .batches import random_recordings
from .clips import draw, pixel_weights, pose
from .loop import LoopConfig, Stage, Trained
from .parallel import randn, share, world

CONFIG = LoopConfig(steps=3900, lr=2e-3, batch=14, matrix_lr=0.02, warmup=50)
#: Latents of a clip after its first. Short clips show more faces for the same work; in the later part of the
#: run every second step takes a longer one, whose convolutions see their whole past: with none above 4,
#: pictures lost 8 dB within 10; with long ones from the start, 5000 steps ended 1.7 dB below 3900 that had
#: them late.
LATENTS, LONG_LATENTS, LONG_EVERY, LONG_FROM = 1, 12, 2, 0.6
#: Clips that open with the reference image, as sessions do.
OPENING = 0.5
#: Noise on the latents, so that those near one another decode alike: a flow never hits one exactly. A learned
#: variance, as of a true VAE, starts so wide that little was learned under it for hundreds of steps.
LATENT_NOISE = 0.1
SIZE_WEIGHT, SQUARE_WEIGHT, EDGE_WEIGHT = 1e-3, 2.0, 0.3
#: Share of the run after which edges count: where they are not yet in place, the least error is to have none,
#: and a network that was asked for them from the start learned to draw blurs.
EDGES_FROM = 0.75
#: Identities to train on; evaluation takes others.
IDENTITIES = 1_000_000


class VaeStage(Stage):
    """Frames to latents and back.

    Args:
        preset: sizes.
        corpus: speech to draw characters to.
        device: where to train.
        config: of the loop.

    Source: the VAE of arXiv 1312.6114 with a variance of its latents that is fixed, so that of its divergence
    from the normal distribution their squares are left; distances of pixels for the likelihood.
    """

    name = "vae"

    def __init__(
        self, preset: Preset, corpus: Corpus, device: torch.device, config: LoopConfig = CONFIG
    ) -> None:
        super().__init__(config, {"corpus": corpus.digest, "vae": repr(preset.vae)})
        torch.manual_seed(config.seed)
        self.corpus, self.device = corpus, device
        self.size = preset.picture.height, preset.picture.width
        self.stride = preset.picture.temporal_stride
        self.vae = Vae(preset.vae, device)
        self.weights = pixel_weights(*self.size).to(device)
        self.trained = {"vae": Trained(self.vae, config)}

    def latents(self, step: int) -> int:
        """Return how many latents the clips of a step have after their first."""
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
        norm = self.trained["vae"].update(loss, step)
        return self._logged(made, frames, pixels, edges, norm) | {"size": size.item()}

    def _round_trip(self, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the latents of frames, and the frames that they give with noise on them."""
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.vae.encode(frames)
            noise = randn(latents.shape, generator).to(latents)
            made = self.vae.decode_clip(latents + LATENT_NOISE * noise)
        return latents, made.float()

    def _distances(self, made: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean distance of pixels, its square, and that of edges, where faces weigh more."""
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
        # As many frames of either length.
        count = max(1, self.config.batch * (1 + LATENTS * self.stride) // (1 + frames))
        for row, recording in enumerate(random_recordings(self.corpus, count * world(), generator, frames)):
            seed, start, chance = torch.randint(2**31, (3,), generator=generator).tolist()
            if row not in share(count):
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
    """Return the weighted mean distance of differences between neighbouring pixels, summed over both axes.

    Args:
        made: [..., height, width].
        real: the same shape.
        weights: [height, width]; a difference has that of its left or upper pixel.

    Source: the gradient difference loss of arXiv 1511.05440 with exponent 1, here of signed differences, so
    that shading the wrong way round costs too.
    """
    total = made.new_zeros(())
    for axis in (-1, -2):
        a, b = (each.diff(dim=axis) for each in (made, real))
        total = total + ((a - b).abs() * weights[: a.shape[-2], : a.shape[-1]]).mean()
    return total
