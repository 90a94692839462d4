"""Spectral losses and spectrogram discriminators of the vocoder."""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...codecs.spectrogram import mel_bank
from ...config import CLOCK

#: Window lengths of the multi-resolution loss, in samples; a hop is a quarter of a window.
WINDOWS = (256, 512, 1024, 2048)
#: Window lengths of the discriminators, in samples.
DISCRIMINATOR_WINDOWS = (512, 1024, 2048)
#: Added to magnitudes before their logarithm.
FLOOR = 1e-4


@functools.lru_cache(maxsize=8)
def _window(length: int) -> Tensor:
    return torch.hann_window(length)


def spectrum(audio: Tensor, length: int) -> Tensor:
    """Return the complex spectrum of audio; a sine of amplitude 1 has magnitude 1/2.

    Args:
        audio: [batch, samples] fp32.
        length: window length in samples.

    Returns:
        [batch, frames, length / 2 + 1], complex64.
    """
    window = _window(length).to(audio.device)
    frames = audio.unfold(1, length, length // 4) * (window / window.sum())
    transformed: Tensor = torch.fft.rfft(frames)
    return transformed


def spectral_loss(made: Tensor, real: Tensor, sample_rate: int = CLOCK.sample_rate) -> Tensor:
    """Return the multi-resolution spectral loss.

    With magnitudes a of ``made`` and b of ``real``, and the mel filter bank M, it is
    |a - b|_2 / |b|_2 + mean |log a - log b| + 2 mean |log M a - log M b|, averaged over window lengths.

    Args:
        made: [batch, samples] fp32, generated audio.
        real: recorded audio, the same shape.
        sample_rate: samples per second of both.

    Source: multi-resolution STFT loss, arXiv 1910.11480 section 2.2; log-mel distance, Vocos, arXiv
    2306.00814.
    """
    total = made.new_zeros(())
    for length in WINDOWS:
        a, b = (spectrum(each, length).abs() for each in (made, real))
        converged = (a - b).norm() / b.norm().clamp(min=1e-6)
        log = ((a + FLOOR).log() - (b + FLOOR).log()).abs().mean()
        bank = mel_bank(max(20, min(100, length // 16)), length, sample_rate).to(made.device)
        mel = ((a @ bank.T + FLOOR).log() - (b @ bank.T + FLOOR).log()).abs().mean()
        total = total + converged + log + 2 * mel
    return total / len(WINDOWS)


class SpectrumDiscriminator(nn.Module):
    """A patch discriminator of the complex spectrum of one window length.

    Real and imaginary parts are its input channels.

    Source: the multi-scale STFT discriminator of EnCodec, arXiv 2210.13438 section 3.4, made smaller.
    """

    def __init__(self, length: int, channels: int = 16) -> None:
        super().__init__()
        self.length = length
        sizes = (2, channels, channels, 2 * channels, 2 * channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, (3, 8), stride=(1, 1 if index == 0 else 4), padding=(1, 4))
            for index, (a, b) in enumerate(itertools.pairwise(sizes))
        )
        self.out = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Return the features of every layer for [batch, samples], the logits of the patches last."""
        complex_ = spectrum(audio, self.length)
        # Magnitudes are compressed: hearing is logarithmic, and most bins are faint.
        scale = (complex_.abs() + 1e-5).pow(-0.7)
        x = torch.stack((complex_.real * scale, complex_.imag * scale), 1)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        features.append(self.out(x))
        return features


class SpectrumDiscriminators(nn.Module):
    """One :class:`SpectrumDiscriminator` for each of :data:`DISCRIMINATOR_WINDOWS`."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(SpectrumDiscriminator(length) for length in DISCRIMINATOR_WINDOWS)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        """Return, per discriminator, the features of every layer for [batch, samples], the logits last."""
        return [each(audio) for each in self.each]
