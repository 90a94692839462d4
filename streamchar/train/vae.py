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

CONFIG = LoopConfig(steps=2500, lr=2e-3, batch=8, warmup=100)
#: Latents of a clip after its first, and clips that open with the reference image as sessions do.
LATENTS, OPENING = 2, 0.4
KL_WEIGHT, EDGE_WEIGHT = 2e-4, 1.0
#: Identities to train on; evaluation takes others.
IDENTITIES = 1_000_000


class VaeStage(Stage):
    """Frames to latents and back."""

    name = "vae"

    def __init__(self, preset: Preset, corpus: Corpus, device: torch.device, config: LoopConfig = CONFIG) -> None:
        super().__init__(config, {"corpus": corpus.about["key"], "vae": repr(preset.vae)})
        torch.manual_seed(config.seed)
        self.corpus, self.device = corpus, device
        self.size = preset.picture.height, preset.picture.width
        self.frames = LATENTS * preset.picture.temporal_stride
        self.vae = Vae(preset.vae, device)
        self.weights = pixel_weights(*self.size).to(device)
        self.trained = {"vae": Trained(self.vae, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step."""
        frames = self._clips(generator).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            mean, log_variance = self.vae.posterior(frames)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            latents = mean + (0.5 * log_variance).exp() * noise
            made = self.vae.decode_clip(latents)
        made, mean, log_variance = made.float(), mean.float(), log_variance.float()
        difference = (made - frames).abs()
        pixels = (difference * self.weights).mean()
        edges = edge_loss(made, frames, self.weights)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        norm = self.trained["vae"].update(pixels + EDGE_WEIGHT * edges + KL_WEIGHT * kl, step)
        error = (made.detach().clamp(-1, 1) - frames).square().mean() / 4
        return {
            "pixels": float(pixels),
            "edges": float(edges),
            "kl": float(kl),
            "psnr": float(-10 * error.log10()),
            "norm": norm,
        }

    def _clips(self, generator: torch.Generator) -> Tensor:
        clips = []
        for recording in random_recordings(self.corpus, self.config.batch, generator):
            seed, start, chance = torch.randint(2**31, (3,), generator=generator).tolist()
            identity = Identity.sample(seed % IDENTITIES)
            motion = pose(recording, seed)
            first = start % max(recording.frames - self.frames, 1)
            motion = motion[max(first - 1, 0) :][: self.frames + 1]
            if chance < OPENING * 2**31:
                motion = torch.cat((neutral(), motion[1:]))
            clips.append(draw(identity, motion, self.size))
        return torch.stack(clips)


def edge_loss(made: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean distance of differences between neighbouring pixels, along both axes."""
    total = made.new_zeros(())
    for axis in (-1, -2):
        a, b = (each.diff(dim=axis) for each in (made, real))
        total = total + ((a - b).abs() * weights[: a.shape[-2], : a.shape[-1]]).mean()
    return total
