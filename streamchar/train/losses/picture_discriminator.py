"""The picture discriminator that trains the VAE's decoder."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

#: Channels of the layers. The first keeps the resolution; each of the others halves height and width.
WIDTHS = (24, 24, 48, 96, 96)


class PictureDiscriminator(nn.Module):
    """A patch discriminator of two consecutive frames, given as their mean and their difference.

    Source: the patch discriminator of pix2pix, arXiv 1611.07004 section 3.2.2, made smaller, with spectral
    normalisation, arXiv 1802.05957. Without spectral normalisation, or without a layer at full resolution,
    pictures had speckled edges.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([spectral_norm(nn.Conv2d(6, WIDTHS[0], 3, padding=1))])
        self.convs.extend(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in itertools.pairwise(WIDTHS)
        )
        self.out = spectral_norm(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))

    def forward(self, pairs: Tensor) -> list[list[Tensor]]:
        """Return the features of every layer for [batch, 2, 3, height, width], the logits last.

        The result is a list with one discriminator, the form that the losses of
        :mod:`streamchar.train.losses.adversarial` take.
        """
        x = torch.cat((pairs.mean(1), pairs[:, 1] - pairs[:, 0]), 1)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            features.append(x)
        features.append(self.out(x))
        return [features]


def random_pairs(clips: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs of consecutive frames of [clips, frames, ...]: indices [count, 1] and [count, 2]."""
    drawn = torch.randint(2**31, (2, count), generator=generator)
    first = drawn[1] % (clips.shape[1] - 1)
    return (drawn[0] % clips.shape[0])[:, None], torch.stack((first, first + 1), 1)
