"""Streaming vocoder: audio latents to samples, with no delay and no seam.

Latents are widened to spectral frames, pass ConvNeXt blocks that look back and never ahead, and a head reads
off magnitude and phase of each frame's spectrum; an inverse transform and overlap-add give the samples.

Where a window lies decides whether sound and picture stay together. Frame f is put at samples
[hop * f, hop * f + n_fft): it starts where its own hop starts, so hop f is complete as soon as frame f is
known, for every later window starts after it. The n samples of a token therefore come out with that token
and sample 0 of a token is where its video frame starts: zero skew, and nothing to trim at either end. What a
centred transform pays as delay is paid here as reach: the windows of token j cover the samples from
n * j up to n * (j + 1) + n_fft - hop, so a token also describes the onset of what comes next, and an encoder
that is trained with this decoder must cut its windows at the same places. Only the start of a stream is
special: its first n_fft - hop samples lack the windows that would have started before, and fade in.

Source: Vocos, arXiv 2306.00814, section 3 (frame-rate ConvNeXt, inverse transform as the only upsampling);
ConvNeXt, arXiv 2201.03545; overlap-add normalised by the squared windows, Griffin and Lim 1984.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..config import Preset, VocoderConfig
from .spectrogram import Spectrogram


class VocoderError(ValueError):
    """Latents or state that the vocoder cannot decode.

    Attributes:
        argument: name of the offending argument.
        limit: what is accepted.
        value: what was given.
    """

    def __init__(self, argument: str, limit: str, value: object) -> None:
        self.argument, self.limit, self.value = argument, limit, value
        super().__init__(f"{argument} must be {limit}, got {value}")


@dataclass(frozen=True)
class VocoderState:
    """What one batch of streams carries from chunk to chunk, in buffers that never move.

    Attributes:
        context: [layers, batch, kernel - 1, dim], the frames before the next one, as convolutions saw them.
        tail: [batch, overlap - 1, hop], what windows so far add to samples not yet emitted.
        window: [n_fft], the synthesis window divided by the sum of squared windows; constant.
    """

    context: torch.Tensor
    tail: torch.Tensor
    window: torch.Tensor

    def reset(self, row: int | None = None) -> None:
        """Start the stream of ``row`` afresh, or all of them; other rows are not touched."""
        rows = slice(None) if row is None else row
        self.context[:, rows].zero_()
        self.tail[rows].zero_()


class ConvNeXtBlock(nn.Module):
    """A causal depthwise convolution over frames, then a feed-forward network, around a scaled shortcut."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(config.dim, config.dim, config.kernel, groups=config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.up = nn.Linear(config.dim, config.ffn)
        self.down = nn.Linear(config.ffn, config.dim)
        self.scale = nn.Parameter(torch.full((config.dim,), 1 / config.layers))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map frames [batch, frames, dim]; ``context`` [batch, kernel - 1, dim], those before, moves on."""
        seen = torch.cat((context, x), 1)
        context.copy_(seen[:, x.shape[1] :].detach())
        y = self.depthwise(seen.transpose(1, 2)).transpose(1, 2)
        change: torch.Tensor = self.scale * self.down(F.gelu(self.up(self.norm(y))))
        return x + change


class Vocoder(nn.Module):
    """Decode audio latents to samples, a chunk at a time.

    Args:
        config: sizes.
        channels: channels of an audio latent.
        samples_per_token: samples that one latent stands for, a multiple of ``config.hop``.

    Weights may be of any floating type; spectrum and samples are in fp32, or in fp64 for fp64 weights.
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
                # The spread that keeps a unit-variance input at unit variance.
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_preset(cls, preset: Preset) -> "Vocoder":
        """Build the vocoder of ``preset``, with random weights."""
        return cls(preset.vocoder, preset.dit.audio_channels, preset.clock.samples_per_frame)

    def new_state(self, batch: int, device: torch.device | str | None = None) -> VocoderState:
        """Return the state of ``batch`` streams about to start.

        Args:
            batch: streams that are decoded together.
            device: where the state lives; by default where the weights do.
        """
        config, weight = self.config, self.head.weight
        device = weight.device if device is None else torch.device(device)
        wide = _wide(weight.dtype)
        # In fp64, so that the squares add up to 1 to the last bit of what the window is rounded to.
        window = torch.hann_window(config.n_fft, dtype=torch.float64)
        return VocoderState(
            torch.zeros(
                config.layers, batch, config.kernel - 1, config.dim, dtype=weight.dtype, device=device
            ),
            torch.zeros(batch, config.overlap - 1, config.hop, dtype=wide, device=device),
            (window / (0.375 * config.overlap)).to(device, wide),
        )

    def encode(self, audio: torch.Tensor, sample_rate: int = 24000) -> torch.Tensor:
        """Return the latents of whole recordings, [batch, samples] fp32 to [batch, tokens, channels] fp32.

        Raises:
            VocoderError: the recordings are no matrix of whole tokens.
        """
        limit = f"[batch, a multiple of {self.samples_per_token}]"
        if audio.dim() != 2 or audio.shape[1] % self.samples_per_token or not audio.shape[1]:
            raise VocoderError("audio", limit, list(audio.shape))
        return self.spectrogram.project(self.spectrogram.log_mel(audio, sample_rate))

    def decode(self, state: VocoderState, latents: torch.Tensor) -> torch.Tensor:
        """Decode the next tokens of every stream; ``state`` moves on in place.

        A stream may be cut into calls anywhere: the samples are those of one call over all of it, but for the
        rounding of matrix products of other heights. Nothing is read back from the device and no buffer of
        ``state`` moves, so a call can be captured and replayed.

        Args:
            state: from :meth:`new_state`, with as many rows as ``latents``.
            latents: [batch, tokens, channels], at least one token; cast to the weights' type.

        Returns:
            [batch, samples_per_token * tokens] samples, fp32 (fp64 for fp64 weights). Sample 0 belongs to the
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
        """Turn spectral frames into samples by inverse transform and overlap-add.

        Args:
            state: whose ``tail`` is added and replaced.
            log_magnitude: [batch, frames, bins], natural logarithm of the windowed transform's magnitude;
                held below log n_fft / 2, which no samples within [-1, 1] exceed under a Hann window.
            phase: [batch, frames, bins], radians.

        Returns:
            [batch, hop * frames] samples.
        """
        config = self.config
        count = phase.shape[1]
        wide = state.tail.dtype
        magnitude = log_magnitude.to(wide).clamp(max=math.log(config.n_fft / 2)).exp()
        phase = phase.to(wide)
        imaginary = magnitude * phase.sin()
        # A real signal has none at zero and at Nyquist; transforms differ in what they make of one.
        imaginary = F.pad(imaginary[..., 1:-1], (1, 1))
        frames = torch.fft.irfft(torch.complex(magnitude * phase.cos(), imaginary), config.n_fft)
        pieces = (frames * state.window).unflatten(-1, (config.overlap, config.hop))
        samples = F.pad(state.tail, (0, 0, 0, count))
        # Oldest window first, as the tail holds them: so the additions keep their order, and with it their
        # rounding, wherever the stream is cut.
        for piece in reversed(range(config.overlap)):
            samples[:, piece : piece + count] += pieces[:, :, piece]
        state.tail.copy_(samples[:, count:].detach())
        return samples[:, :count].flatten(1)

    def _check(self, state: VocoderState, latents: torch.Tensor) -> None:
        rows = state.tail.shape[0]
        limit = f"[batch, tokens, channels] = [{rows}, any, {self.channels}], one token at least"
        ok = latents.dim() == 3 and latents.shape[0] == rows and latents.shape[2] == self.channels
        if not (ok and latents.shape[1] > 0):
            raise VocoderError("latents", limit, list(latents.shape))
        for name, tensor in (("latents", latents), ("state", state.tail)):
            if tensor.device != self.head.weight.device:
                limit = f"on {self.head.weight.device} like the weights"
                raise VocoderError(name, limit, f"a tensor on {tensor.device}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
