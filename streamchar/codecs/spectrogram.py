"""The audio encoder: log-mel frames of a token, projected linearly to its latent.

A token is described by ``samples_per_token / hop`` windows, each starting where its own hop starts, as the
vocoder lays its windows. Their log-mel energies are projected on the leading principal components of speech.
A linear map leaves nothing to train, gives smooth latents, and its inverse is a projection back.

Components are scaled to the fourth root of their variance, not to unit variance: the loud ones stay louder
than the faint ones, so that a flow decides them first, and the faint ones are not drowned either.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import VocoderConfig

#: Energies below are as good as silence; 16-bit audio has its own floor near it.
FLOOR = 1e-3


class Spectrogram(nn.Module):
    """Log-mel energies of tokens and their projection.

    Args:
        config: sizes of the vocoder.
        channels: of a latent, at most the energies of a token.
        samples_per_token: samples that one latent stands for.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, config: VocoderConfig, channels: int, samples_per_token: int) -> None:
        super().__init__()
        self.config, self.frames = config, samples_per_token // config.hop
        size = self.frames * config.mels
        self.register_buffer("mean", torch.zeros(size))
        basis = torch.empty(channels, size)
        nn.init.orthogonal_(basis)
        self.register_buffer("basis", basis)

    def log_mel(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Return [batch, tokens, frames * mels] fp32 of [batch, samples], silence after the end assumed."""
        config = self.config
        audio = F.pad(audio.float(), (0, config.n_fft - config.hop))
        window = torch.hann_window(config.n_fft, device=audio.device)
        spectrum = torch.fft.rfft(audio.unfold(1, config.n_fft, config.hop) * window).abs()
        bank = mel_bank(config.mels, config.n_fft, sample_rate).to(audio.device)
        energies: Tensor = (spectrum @ bank.T).clamp(min=FLOOR).log()
        return energies.reshape(len(energies), -1, self.frames * config.mels)

    def project(self, log_mel: Tensor) -> Tensor:
        """Return the latents of log-mel energies, [..., frames * mels] to [..., channels]."""
        latents: Tensor = (log_mel - self.mean.float()) @ self.basis.float().T
        return latents

    @torch.no_grad()
    def fit(self, log_mel: Tensor) -> float:
        """Take the principal components of examples, [examples, frames * mels]; latents get mean square 1.

        Returns:
            The share of the variance that the latents keep.
        """
        wide = log_mel.double()
        mean = wide.mean(0)
        variance, directions = torch.linalg.eigh(torch.cov((wide - mean).T))
        channels = self.basis.shape[0]
        kept, directions = variance.flip(0)[:channels], directions.flip(1)[:, :channels]
        # Either direction of an axis is right, and which comes out is the library's choice: ours is that the
        # sum points up, or where it is next to nothing the largest entry.
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))[0]
        total = directions.sum(0)
        directions = directions * torch.where(total.abs() > 1e-6, total, largest).sign()
        scale = kept.clamp(min=1e-12) ** -0.25
        scale = scale / (scale.square() * kept).mean().sqrt()
        self.mean.copy_(mean)
        self.basis.copy_((directions * scale).T)
        return float(kept.sum() / variance.sum())


@functools.lru_cache(maxsize=4)
def mel_bank(mels: int, n_fft: int, sample_rate: int) -> Tensor:
    """Return triangular filters on the mel scale up to half the sample rate, [mels, n_fft / 2 + 1]."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = 700 * (10 ** (torch.linspace(0, mel(sample_rate / 2), mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()
