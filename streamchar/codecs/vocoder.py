"""The streaming vocoder: decodes audio latents to samples without delay and without seams.

Latents are expanded to spectral frames and pass causal ConvNeXt blocks. A head predicts magnitude and phase
of each frame's spectrum; an inverse transform and overlap-add give the samples.

The placement of windows keeps audio and video aligned. Frame f covers samples [hop * f, hop * f + n_fft): it
starts where its own hop starts. All later windows start after hop f, so this hop is complete as soon as
frame f is known. The samples of a token are therefore available together with the token, and its sample 0 is
the start of its video frame: there is no skew, and nothing to trim at either end. In exchange, the windows of
token j, with n samples per token, reach from sample n * j to n * (j + 1) + n_fft - hop. A token thus also
describes the onset of the next one, and an encoder for this decoder must place its windows in the same way.
Only the start of a stream differs: its first n_fft - hop samples lack the earlier windows and fade in.

Source: Vocos, arXiv 2306.00814, section 3 (frame-rate ConvNeXt, inverse transform as the only upsampling);
ConvNeXt, arXiv 2201.03545; overlap-add normalised by the squared windows, Griffin and Lim 1984.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..config import CLOCK, Preset, VocoderConfig
from ..errors import ArgumentError
from .spectrogram import Spectrogram


class VocoderError(ArgumentError):
    """An argument of the vocoder has the wrong shape or device."""


@dataclass(frozen=True)
class VocoderState:
    """State that a batch of streams carries from chunk to chunk, in buffers at fixed addresses.

    Attributes:
        context: [layers, batch, kernel - 1, dim], last input frames of each depthwise convolution.
        tail: [batch, overlap - 1, hop], contribution of past windows to samples that are not yet complete.
        window: [n_fft], synthesis window divided by the sum of squared windows; constant.
    """

    context: torch.Tensor
    tail: torch.Tensor
    window: torch.Tensor

    def reset(self, row: int | None = None) -> None:
        """Reset the stream of one row, or all streams by default."""
        rows = slice(None) if row is None else row
        self.context[:, rows].zero_()
        self.tail[rows].zero_()


class ConvNeXtBlock(nn.Module):
    """A residual block: causal depthwise convolution over frames, norm and feed-forward network."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(config.dim, config.dim, config.kernel, groups=config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.up = nn.Linear(config.dim, config.ffn)
        self.down = nn.Linear(config.ffn, config.dim)
        self.scale = nn.Parameter(torch.full((config.dim,), 1 / config.layers))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map frames, [batch, frames, dim]; ``context``, [batch, kernel - 1, dim], is updated in place."""
        seen = torch.cat((context, x), 1)
        context.copy_(seen[:, x.shape[1] :].detach())
        y = self.depthwise(seen.transpose(1, 2)).transpose(1, 2)
        change: torch.Tensor = self.scale * self.down(F.gelu(self.up(self.norm(y))))
        return x + change


class Vocoder(nn.Module):
    """Decode audio latents to samples, one chunk at a time.

    Weights may have any floating-point dtype; spectrum and samples are fp32, or fp64 for fp64 weights.

    Args:
        config: sizes.
        channels: channels of an audio latent.
        samples_per_token: samples per latent, a multiple of ``config.hop``.
    """

    def __init__(self, config: VocoderConfig, channels: int, samples_per_token: int) -> None:
        super().__init__()
        self.config, self.channels, self.samples_per_token = config, channels, samples_per_token
        self.spectrogram = Spectrogram(config, channels, samples_per_token)
        self.embed = nn.Linear(channels, samples_per_token // config.hop * config.dim)
        self.embed_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, 2 * config.bins)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                # Preserves unit variance.
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_preset(cls, preset: Preset) -> "Vocoder":
        """Build the vocoder of ``preset``, with random weights."""
        return cls(preset.vocoder, preset.dit.audio_channels, preset.clock.samples_per_frame)

    def new_state(self, batch: int, device: torch.device | str | None = None) -> VocoderState:
        """Return the state of ``batch`` new streams.

        Args:
            batch: number of streams that are decoded together.
            device: device of the state; by default that of the weights.
        """
        config, weight = self.config, self.head.weight
        device = weight.device if device is None else torch.device(device)
        wide = _wide(weight.dtype)
        # In fp64, so that after rounding the squared windows add up to 1 within one rounding.
        window = torch.hann_window(config.n_fft, dtype=torch.float64)
        return VocoderState(
            torch.zeros(
                config.layers, batch, config.kernel - 1, config.dim, dtype=weight.dtype, device=device
            ),
            torch.zeros(batch, config.overlap - 1, config.hop, dtype=wide, device=device),
            (window / (0.375 * config.overlap)).to(device, wide),
        )

    def encode(self, audio: torch.Tensor, sample_rate: int = CLOCK.sample_rate) -> torch.Tensor:
        """Encode whole recordings to latents.

        Args:
            audio: [batch, samples], a whole number of tokens.
            sample_rate: samples per second.

        Returns:
            [batch, tokens, channels] fp32.

        Raises:
            VocoderError: ``audio`` has the wrong shape or not a whole number of tokens.
        """
        limit = f"[batch, a multiple of {self.samples_per_token}]"
        if audio.dim() != 2 or audio.shape[1] % self.samples_per_token or not audio.shape[1]:
            raise VocoderError("audio", limit, list(audio.shape))
        return self.spectrogram.project(self.spectrogram.log_mel(audio, sample_rate))

    def decode(self, state: VocoderState, latents: torch.Tensor) -> torch.Tensor:
        """Decode the next tokens of every stream and update ``state`` in place.

        A stream may be split into calls anywhere; the result differs from a single call only by the rounding
        of matrix products of different sizes. No value is read back from the device and the buffers of
        ``state`` do not move, so a call can be captured and replayed.

        Args:
            state: from :meth:`new_state`, with as many rows as ``latents``.
            latents: [batch, tokens, channels], at least one token; cast to the weights' dtype.

        Returns:
            [batch, samples_per_token * tokens] samples, fp32 (fp64 for fp64 weights). Sample 0 is the
            start of the first token.

        Raises:
            VocoderError: a shape or device does not fit.
        """
        self._check(state, latents)
        x = self.embed(latents.to(self.embed.weight.dtype))
        x = self.embed_norm(x.reshape(x.shape[0], -1, self.config.dim))
        for block, context in zip(self.blocks, state.context):
            x = block(x, context)
        magnitude, phase = self.head(self.norm(x)).chunk(2, -1)
        return self.synthesise(state, magnitude, phase)

    def synthesise(
        self, state: VocoderState, log_magnitude: torch.Tensor, phase: torch.Tensor
    ) -> torch.Tensor:
        """Convert spectral frames to samples by inverse transform and overlap-add.

        Args:
            state: its ``tail`` is added to the samples and replaced in place.
            log_magnitude: [batch, frames, bins], natural logarithm of the windowed transform's magnitude,
                clamped to log(n_fft / 2), the largest value for samples in [-1, 1] under a Hann window.
            phase: [batch, frames, bins], in radians.

        Returns:
            [batch, hop * frames] samples.
        """
        config = self.config
        count = phase.shape[1]
        wide = state.tail.dtype
        magnitude = log_magnitude.to(wide).clamp(max=math.log(config.n_fft / 2)).exp()
        phase = phase.to(wide)
        imaginary = magnitude * phase.sin()
        # A real signal has no imaginary part at zero and Nyquist; FFT libraries handle others differently.
        imaginary = F.pad(imaginary[..., 1:-1], (1, 1))
        frames = torch.fft.irfft(torch.complex(magnitude * phase.cos(), imaginary), config.n_fft)
        pieces = (frames * state.window).unflatten(-1, (config.overlap, config.hop))
        samples = F.pad(state.tail, (0, 0, 0, count))
        # Add the oldest window first, as in the tail: the order of additions, and thus their rounding, does
        # not depend on how the stream is split.
        for piece in reversed(range(config.overlap)):
            samples[:, piece : piece + count] += pieces[:, :, piece]
        state.tail.copy_(samples[:, count:].detach())
        return samples[:, :count].flatten(1)

    def _check(self, state: VocoderState, latents: torch.Tensor) -> None:
        rows = state.tail.shape[0]
        limit = f"[batch, tokens, channels] = [{rows}, any, {self.channels}], with at least one token"
        ok = latents.dim() == 3 and latents.shape[0] == rows and latents.shape[2] == self.channels
        if not (ok and latents.shape[1] > 0):
            raise VocoderError("latents", limit, list(latents.shape))
        for name, tensor in (("latents", latents), ("state", state.tail)):
            if tensor.device != self.head.weight.device:
                limit = f"on {self.head.weight.device}, like the weights"
                raise VocoderError(name, limit, f"a tensor on {tensor.device}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
