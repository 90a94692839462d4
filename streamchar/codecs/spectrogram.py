"""The audio encoder: log-mel frames of each token, projected linearly to a latent.

A token is described by ``samples_per_token / hop`` windows. Each starts where its own hop starts, as in the
vocoder. Their log-mel energies are projected to the leading principal components of speech. The projection
is linear, so nothing has to be trained, latents are smooth, and another linear map inverts it.

Components are scaled by the fourth root of their variance instead of to unit variance. Strong components
keep larger values, so the flow settles them first, while weak ones still stand out from the noise.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.codecs import VocoderConfig

#: Lower bound of mel energies before the logarithm, about the noise floor of 16-bit audio.
FLOOR = 1e-3


class Spectrogram(nn.Module):
    """Log-mel energies of audio tokens and their projection to latents.

    Args:
        config: sizes of the vocoder.
        channels: channels of a latent, at most the number of energies per token.
        samples_per_token: audio samples per latent, a multiple of ``config.hop``.
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
        """Compute log-mel energies; the audio is padded with silence at the end.

        Args:
            audio: [batch, samples], whole tokens, any float dtype.
            sample_rate: samples per second.

        Returns:
            [batch, tokens, frames * mels] fp32, where frames is the number of windows per token.
        """
        config = self.config
        audio = F.pad(audio.float(), (0, config.n_fft - config.hop))
        window = torch.hann_window(config.n_fft, device=audio.device)
        spectrum = torch.fft.rfft(audio.unfold(1, config.n_fft, config.hop) * window).abs()
        bank = mel_bank(config.mels, config.n_fft, sample_rate).to(audio.device)
        energies: Tensor = (spectrum @ bank.T).clamp(min=FLOOR).log()
        return energies.reshape(len(energies), -1, self.frames * config.mels)

    def project(self, log_mel: Tensor) -> Tensor:
        """Map log-mel energies, [..., frames * mels], to latents, [..., channels], in fp32."""
        latents: Tensor = (log_mel - self.mean.float()) @ self.basis.float().T
        return latents

    @torch.no_grad()
    def fit(self, log_mel: Tensor) -> float:
        """Set the projection to the principal components of examples; latents get a mean square of 1.

        Args:
            log_mel: [examples, frames * mels], from :meth:`log_mel`.

        Returns:
            The fraction of the variance that the latents keep.
        """
        wide = log_mel.double()
        mean = wide.mean(0)
        variance, directions = torch.linalg.eigh(torch.cov((wide - mean).T))
        channels = self.basis.shape[0]
        kept, directions = variance.flip(0)[:channels], directions.flip(1)[:, :channels]
        # The sign of an eigenvector depends on the library. Fix it: the sum is positive or, if the sum is
        # close to zero, the entry of largest magnitude is.
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
    """Return triangular mel filters from 0 to half the sample rate, [mels, n_fft / 2 + 1] fp32."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = 700 * (10 ** (torch.linspace(0, mel(sample_rate / 2), mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()
