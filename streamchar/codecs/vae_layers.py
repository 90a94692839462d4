"""Layers of the video VAE, following the Wan2.2 VAE.

Activations are [batch, frames, height, width, channels], contiguous. A causal 3 x 3 x 3 convolution runs as a
2-D convolution over three stacked frames: PyTorch's 3-D convolution takes a slow path on a CPU for the few
frames of one latent, and the channel norm is faster with channels last. The past of a stream is a sequence of
buffers at fixed addresses, one per causal convolution, read and overwritten in place. Without it
(``past=None``) a whole clip is computed at once, with zeros before its first frame.

Source: Wan (arXiv 2503.20314), section 4.1; parameter names and shapes of diffusers' AutoencoderKLWan.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Past input frames of each causal convolution, ordered by slot; None for a clip that starts from nothing.
Past = Sequence[Tensor] | None


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D ``layer`` to every frame."""
    images: Tensor = layer(x.flatten(0, 1).permute(0, 3, 1, 2))
    frames: Tensor = images.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return frames


class CausalConv3d(nn.Module):
    """A 3-D convolution that sees the current frame and earlier frames only."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__()
        frames, height, width = kernel
        self.inputs = inputs
        self.history = frames - 1
        self.padding = (height // 2, width // 2)
        self.slot = -1
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def set_memory_format(self) -> None:
        """Permute the weight in memory so that the 2-D weight over stacked frames is a view of it."""
        self.weight.data = self.weight.data.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)

    def forward(self, x: Tensor, past: Past = None) -> Tensor:
        """Convolve all frames of ``x``; read ``past[self.slot]``, then set it to the last input frames."""
        if self.history and past is None:
            x = F.pad(x, (0, 0) * 3 + (self.history, 0))
        elif self.history and past is not None:
            x = torch.cat((past[self.slot], x), 1)
            past[self.slot].copy_(x[:, -self.history :].detach())
        return self.convolve(x)

    def convolve(self, x: Tensor, stride: int = 1) -> Tensor:
        """Convolve with a temporal stride and without temporal padding."""
        offsets = range(self.history + 1)
        last = x.shape[1] - self.history
        # Slices, because the backward pass of unfold takes as long as a convolution.
        stacked = torch.cat([x[:, offset : offset + last : stride] for offset in offsets], -1)
        images = stacked.flatten(0, 1).permute(0, 3, 1, 2)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(images, weight, self.bias, padding=self.padding)
        frames: Tensor = y.permute(0, 2, 3, 1).unflatten(0, stacked.shape[:2])
        return frames


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each cell, with a gain per channel."""

    def __init__(self, channels: int, trailing: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * trailing))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``; a cell of zeros stays zero."""
        return F.rms_norm(x, (x.shape[-1],), self.gamma.flatten().to(x.dtype), 1e-24)


class ResidualBlock(nn.Module):
    """Two causal convolutions with norms and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs)
        self.conv_shortcut = nn.Identity() if inputs == outputs else CausalConv3d(inputs, outputs, (1, 1, 1))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Return [batch, frames, height, width, outputs]."""
        y = self.conv1(F.silu(self.norm1(x)), past)
        y = self.conv2(F.silu(self.norm2(y)), past)
        total: Tensor = self.conv_shortcut(x) + y
        return total


class FrameAttention(nn.Module):
    """Single-head self-attention over the cells of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, trailing=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the attention output, in the shape of ``x``."""
        cells = self.norm(x).flatten(0, 1).flatten(1, 2)
        qkv = F.linear(cells, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        q, k, v = qkv.unsqueeze(1).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + F.linear(y, self.proj.weight.flatten(1), self.proj.bias).view(x.shape)


class MidBlock(nn.Module):
    """Two residual blocks with attention in between, at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Return a tensor shaped like ``x``."""
        x = self.resnets[0](x, past)
        y: Tensor = self.resnets[1](self.attentions[0](x), past)
        return y


class Downsampler(nn.Module):
    """Halve height and width and, with ``temporal``, the frames after the first of a clip."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        # As in the Wan2.2 VAE, only the right and bottom borders are padded.
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, 1 + (frames - 1) / 2 or frames, height / 2, width / 2, channels]."""
        x = _per_frame(self.resample, x)
        if self.time_conv is not None and x.shape[1] > 1:
            x = torch.cat((x[:, :1], self.time_conv.convolve(x, stride=2)), 1)
        return x


class Upsampler(nn.Module):
    """Double height and width and, with ``temporal``, the number of frames."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        nearest = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(nearest, nn.Conv2d(channels, channels, 3, padding=1))
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: Past, first: bool) -> Tensor:
        """Upsample ``x``; with ``first``, its first frame starts a stream and is not doubled in time."""
        if self.time_conv is not None:
            # The first frame bypasses this convolution, which then has zeros as its past.
            head, x = x[:, : int(first)], x[:, int(first) :]
            if x.shape[1]:
                pairs = self.time_conv(x, past).unflatten(-1, (2, -1))
                x = pairs.movedim(-2, 2).flatten(1, 2)
            x = torch.cat((head, x), 1) if first else x
        return _per_frame(self.resample, x)


def average_down(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """Fold ``time`` frames of ``space`` x ``space`` cells into channels and average groups of channels.

    Args:
        x: [batch, frames, height, width, inputs]; padded with zero frames at the front to whole groups.
        channels: number of output channels, a divisor of inputs * time * space^2.
        time: frames per group.
        space: cells per group, along each axis.

    Returns:
        [batch, ceil(frames / time), height / space, width / space, channels].
    """
    x = F.pad(x, (0, 0) * 3 + (-x.shape[1] % time, 0))
    x = x.unflatten(3, (-1, space)).unflatten(2, (-1, space)).unflatten(1, (-1, time))
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)
    average: Tensor = x.unflatten(4, (channels, -1)).mean(-1)
    return average


def repeat_up(x: Tensor, channels: int, time: int, space: int, first: bool) -> Tensor:
    """Repeat channels and unfold them into ``time`` frames of ``space`` x ``space`` cells.

    Args:
        x: [batch, frames, height, width, inputs].
        channels: number of output channels; channels * time * space^2 must be a multiple of inputs.
        time: output frames per input frame.
        space: output cells per input cell, along each axis.
        first: whether ``x`` starts a stream; its first frame then gives one output frame.

    Returns:
        [batch, frames * time, height * space, width * space, channels]; with ``first``,
        ``time - 1`` frames fewer.
    """
    x = x.repeat_interleave(channels * time * space * space // x.shape[-1], -1)
    x = x.unflatten(-1, (channels, time, space, space)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return x[:, time - 1 :] if first else x


def _residual_blocks(inputs: int, outputs: int, blocks: int) -> nn.ModuleList:
    widths = [inputs, *(outputs,) * blocks]
    return nn.ModuleList([ResidualBlock(a, b) for a, b in pairwise(widths)])


class DownBlock(nn.Module):
    """One encoder level: residual blocks and a downsampler, with an averaging shortcut."""

    def __init__(self, inputs: int, outputs: int, blocks: int, space: int, temporal: bool) -> None:
        super().__init__()
        self.outputs, self.space, self.time = outputs, space, 2 if temporal else 1
        self.resnets = _residual_blocks(inputs, outputs, blocks)
        self.downsampler = Downsampler(outputs, temporal) if space > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the level for a whole clip."""
        shortcut = average_down(x, self.outputs, self.time, self.space)
        for block in self.resnets:
            x = block(x, None)
        if self.downsampler is not None:
            x = self.downsampler(x)
        return x + shortcut


class UpBlock(nn.Module):
    """One decoder level: residual blocks and an upsampler, with a repeating shortcut."""

    def __init__(self, inputs: int, outputs: int, blocks: int, space: int, temporal: bool) -> None:
        super().__init__()
        self.outputs, self.space, self.time = outputs, space, 2 if temporal else 1
        self.resnets = _residual_blocks(inputs, outputs, blocks)
        self.upsampler = Upsampler(outputs, temporal) if space > 1 else None

    def forward(self, x: Tensor, past: Past, first: bool) -> Tensor:
        """Compute the level for frames of a stream; ``first`` means that they start it."""
        y = x
        for block in self.resnets:
            y = block(y, past)
        if self.upsampler is None:
            return y
        total: Tensor = self.upsampler(y, past, first)
        return total + repeat_up(x, self.outputs, self.time, self.space, first)
