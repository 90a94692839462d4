"""A discriminator of pictures, for the VAE's decoder."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

#: Channels of its layers; the first sees every pixel, each of the others halves height and width.
WIDTHS = (24, 24, 48, 96, 96)


class PictureDiscriminator(nn.Module):
    """Judge patches of two frames that follow one another, by their mean and their difference.

    Source: the patch discriminator of pix2pix, arXiv 1611.07004 section 3.2.2, made small, with spectral
    normalisation, arXiv 1802.05957: without it, and without a layer that sees every pixel, pictures came out
    speckled along their edges.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([spectral_norm(nn.Conv2d(6, WIDTHS[0], 3, padding=1))])
        self.convs.extend(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in itertools.pairwise(WIDTHS)
        )
        self.out = spectral_norm(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))

    def forward(self, pairs: Tensor) -> list[list[Tensor]]:
        """Return the features of every layer for [batch, 2, 3, height, width], the verdicts last.

        In a list of its one discriminator, as the losses of :mod:`.adversarial` take them.
        """
        x = torch.cat((pairs.mean(1), pairs[:, 1] - pairs[:, 0]), 1)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            features.append(x)
        features.append(self.out(x))
        return [features]


def random_pairs(clips: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs of neighbouring frames of [clips, frames, ...], as indices [count, 1] and [count, 2]."""
    drawn = torch.randint(2**31, (2, count), generator=generator)
    first = drawn[1] % (clips.shape[1] - 1)
    return (drawn[0] % clips.shape[0])[:, None], torch.stack((first, first + 1), 1)
