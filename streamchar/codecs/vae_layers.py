"""Layers of the video VAE, in the layout of the Wan2.2 VAE.

Activations are [batch, frames, height, width, channels], contiguous. A causal 3 x 3 x 3 convolution is a 2-D
one over three stacked frames: PyTorch's 3-D one on a CPU falls back to a slow path for the few frames of one
latent, and the norm over channels is faster where they are innermost. A stream's past is a sequence of
fixed-address buffers, one a causal convolution, read and overwritten in place; without it (``past=None``) a
whole clip is computed in one go, with zeros before its first frame.

Source: Wan (arXiv 2503.20314), section 4.1; names and shapes of parameters as in diffusers' AutoencoderKLWan.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Past frames of every causal convolution, in the order of the slots; None for a clip that starts here.
Past = Sequence[Tensor] | None


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D ``layer`` to every frame."""
    images: Tensor = layer(x.flatten(0, 1).permute(0, 3, 1, 2))
    frames: Tensor = images.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return frames


class CausalConv3d(nn.Module):
    """Convolve over the current frame and those before it."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__()
        frames, height, width = kernel
        self.inputs = inputs
        self.history = frames - 1
        self.padding = (height // 2, width // 2)
        self.slot = -1
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def lay_out(self) -> None:
        """Lay the weight out in memory so that the 2-D weight of stacked frames is a view of it."""
        self.weight.data = self.weight.data.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)

    def forward(self, x: Tensor, past: Past = None) -> Tensor:
        """Return as many frames as ``x`` has; read the past from its slot and leave the last frames there."""
        if self.history and past is None:
            x = F.pad(x, (0, 0) * 3 + (self.history, 0))
        elif self.history and past is not None:
            x = torch.cat((past[self.slot], x), 1)
            past[self.slot].copy_(x[:, -self.history :].detach())
        return self.slide(x)

    def slide(self, x: Tensor, stride: int = 1) -> Tensor:
        """Convolve wherever the kernel fits in time, every ``stride`` frames."""
        places = range(self.history + 1)
        last = x.shape[1] - self.history
        # Slices and not an unfold, whose backward pass takes as long as a convolution.
        stacked = torch.cat([x[:, place : place + last : stride] for place in places], -1)
        images = stacked.flatten(0, 1).permute(0, 3, 1, 2)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(images, weight, self.bias, padding=self.padding)
        frames: Tensor = y.permute(0, 2, 3, 1).unflatten(0, stacked.shape[:2])
        return frames


class ChannelNorm(nn.Module):
    """Scale every cell to unit mean square over its channels, then by a gain a channel."""

    def __init__(self, channels: int, trailing: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * trailing))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` normalised; a cell of zeros stays zero."""
        return F.rms_norm(x, (x.shape[-1],), self.gamma.flatten().to(x.dtype), 1e-24)


class ResidualBlock(nn.Module):
    """Two normalised causal convolutions beside a shortcut."""

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
    """One head of attention over the cells of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, trailing=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus what its cells gather within their frame."""
        cells = self.norm(x).flatten(0, 1).flatten(1, 2)
        qkv = F.linear(cells, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        q, k, v = qkv.unsqueeze(1).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + F.linear(y, self.proj.weight.flatten(1), self.proj.bias).view(x.shape)


class MidBlock(nn.Module):
    """Attention between two residual blocks, at the coarsest level."""

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
        # Odd kernels over even sizes need a border on one side only.
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, 1 + (frames - 1) / 2 or frames, height / 2, width / 2, channels]."""
        x = _per_frame(self.resample, x)
        if self.time_conv is not None and x.shape[1] > 1:
            x = torch.cat((x[:, :1], self.time_conv.slide(x, stride=2)), 1)
        return x


class Upsampler(nn.Module):
    """Double height and width and, with ``temporal``, the frames."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        nearest = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(nearest, nn.Conv2d(channels, channels, 3, padding=1))
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: Past, first: bool) -> Tensor:
        """Return twice the frames of ``x``; with ``first``, its first frame opens a stream and stays one."""
        if self.time_conv is not None:
            # The opening frame is never seen by this convolution: zeros stand for it in its past.
            head, x = x[:, : int(first)], x[:, int(first) :]
            if x.shape[1]:
                pairs = self.time_conv(x, past).unflatten(-1, (2, -1))
                x = pairs.movedim(-2, 2).flatten(1, 2)
            x = torch.cat((head, x), 1) if first else x
        return _per_frame(self.resample, x)


def average_down(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """Fold ``time`` frames of ``space`` x ``space`` cells into channels, and average down to ``channels``.

    Args:
        x: [batch, frames, height, width, inputs]; frames that do not fill a group get zeros before them.
        channels: channels to return, a divisor of inputs * time * space^2.
        time: frames of a group.
        space: cells of a group, along either axis.
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
        channels: channels to return; channels * time * space^2 is a multiple of inputs.
        time: frames that one becomes; with ``first`` the first of ``x`` becomes one.
        space: cells that one becomes, along either axis.
        first: whether ``x`` opens a stream.
    """
    x = x.repeat_interleave(channels * time * space * space // x.shape[-1], -1)
    x = x.unflatten(-1, (channels, time, space, space)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return x[:, time - 1 :] if first else x


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks and a step down, beside a shortcut that averages."""

    def __init__(self, inputs: int, outputs: int, blocks: int, space: int, temporal: bool) -> None:
        super().__init__()
        self.outputs, self.space, self.time = outputs, space, 2 if temporal else 1
        widths = [inputs, *(outputs,) * blocks]
        self.resnets = nn.ModuleList([ResidualBlock(a, b) for a, b in pairwise(widths)])
        self.downsampler = Downsampler(outputs, temporal) if space > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the level's output for a whole clip."""
        shortcut = average_down(x, self.outputs, self.time, self.space)
        for block in self.resnets:
            x = block(x, None)
        if self.downsampler is not None:
            x = self.downsampler(x)
        return x + shortcut


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks and a step up, beside a shortcut that repeats."""

    def __init__(self, inputs: int, outputs: int, blocks: int, space: int, temporal: bool) -> None:
        super().__init__()
        self.outputs, self.space, self.time = outputs, space, 2 if temporal else 1
        widths = [inputs, *(outputs,) * blocks]
        self.resnets = nn.ModuleList([ResidualBlock(a, b) for a, b in pairwise(widths)])
        self.upsampler = Upsampler(outputs, temporal) if space > 1 else None

    def forward(self, x: Tensor, past: Past, first: bool) -> Tensor:
        """Return the level's output for frames of a stream; with ``first`` they open it."""
        y = x
        for block in self.resnets:
            y = block(y, past)
        if self.upsampler is None:
            return y
        total: Tensor = self.upsampler(y, past, first)
        return total + repeat_up(x, self.outputs, self.time, self.space, first)
