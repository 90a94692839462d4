"""The streaming causal video VAE: encodes images and clips, decodes unbounded streams of latents to frames.

All presets share the architecture of the Wan2.2 VAE and load its ``diffusers`` checkpoints unchanged. The
first latent of a stream encodes one frame, the reference image; :meth:`Vae.prime` decodes it. Each later
latent gives ``temporal_stride`` frames through :meth:`Vae.decode`, a fixed sequence of operations on fixed
addresses that a CUDA graph can capture.

Source: Wan (arXiv 2503.20314), section 4.1; the Wan2.2 release for residual levels and patches.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_foreign
from ..config import ConfigError, VaeConfig
from ..profiling import span
from .vae_layers import CausalConv3d, ChannelNorm, DownBlock, MidBlock, Past, UpBlock


@dataclass(frozen=True)
class VaeState:
    """Decoder state of ``batch`` streams: the last input frames of each causal convolution.

    Attributes:
        past: one [batch, frames, height, width, channels] buffer per convolution, at a fixed address.
    """

    past: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        """Number of streams."""
        return self.past[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the buffers of all streams, in bytes."""
        return sum(buffer.nbytes for buffer in self.past)

    def row(self, index: int) -> "VaeState":
        """Return the state of one stream, with batch 1, as a view.

        Raises:
            ValueError: ``index`` is out of range.
        """
        if not 0 <= index < self.batch:
            raise ValueError(f"index must be between 0 and {self.batch - 1}, got {index}")
        return VaeState(tuple(buffer[index : index + 1] for buffer in self.past))

    def reset(self, row: int | None = None) -> None:
        """Clear one stream, or all by default. :meth:`Vae.prime` calls this itself.

        Raises:
            ValueError: ``row`` is out of range.
        """
        for buffer in self.past if row is None else self.row(row).past:
            buffer.zero_()


class Encoder(nn.Module):
    """Encode whole clips of patches to posterior statistics."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = config.encoder_dims
        spaces, temporal = _levels(config)
        self.conv_in = CausalConv3d(config.patch_channels, dims[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(*sizes)
            for sizes in zip(dims[:-1], dims[1:], (config.num_res_blocks,) * len(spaces), spaces, temporal)
        )
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = ChannelNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], 2 * config.z_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1 + 4 n, height, width, patch channels] to [batch, 1 + n, h, w, 2 * z_dim]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x, None)
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return y


class Decoder(nn.Module):
    """Decode latents of a stream to patches."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = config.decoder_dims
        spaces, temporal = _levels(config)
        # Each upsampler reverses one downsampler; the finest level, which comes last, has none.
        spaces, temporal = (*spaces[-2::-1], 1), (*temporal[-2::-1], False)
        self.conv_in = CausalConv3d(config.z_dim, dims[0])
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(*sizes)
            for sizes in zip(
                dims[:-1], dims[1:], (config.num_res_blocks + 1,) * len(spaces), spaces, temporal
            )
        )
        self.norm_out = ChannelNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], config.patch_channels)
        #: Per state buffer: channels, and cells per latent cell along each spatial axis.
        self.buffer_sizes: list[tuple[int, int]] = []
        scale = 1
        for part, space in zip(
            (self.conv_in, self.mid_block, *self.up_blocks, self.conv_out), (1, 1, *spaces, 1)
        ):
            for conv in part.modules():
                if isinstance(conv, CausalConv3d) and conv.history:
                    conv.slot = len(self.buffer_sizes)
                    self.buffer_sizes.append((conv.inputs, scale))
            scale *= space

    def forward(self, x: Tensor, past: Past, first: bool) -> Tensor:
        """Map [batch, n, h, w, z_dim] to [batch, frames, height, width, patch channels].

        There are 4 n frames, or 4 n - 3 with ``first``.
        """
        x = self.mid_block(self.conv_in(x, past), past)
        for index, block in enumerate(self.up_blocks):
            with span("block", index):
                x = block(x, past, first)
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)), past)
        return y


class Vae(nn.Module):
    """The video VAE. Frames are RGB in [-1, 1]; each latent channel is normalised to mean 0 and variance 1.

    Args:
        config: sizes.
        device: device of the parameters.
        dtype: dtype of parameters, states and results.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(
        self,
        config: VaeConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        # Build without storage, so that parameters are allocated and initialised only once, on their device.
        with torch.device("meta"):
            self.encoder = Encoder(config)
            self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
            self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
            self.decoder = Decoder(config)
        self.to(dtype)
        self.to_empty(device=device if device is not None else torch.get_default_device())
        self._prepare_weights()
        # A loaded state dict may change the memory format or the device.
        hook = self.register_load_state_dict_post_hook
        hook(lambda vae, _: vae._prepare_weights())  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def _prepare_weights(self) -> None:
        """Move the latent statistics to the parameters' device, and set the memory format of all weights."""
        for name in ("latents_mean", "latents_std"):
            values = torch.tensor(getattr(self.config, name)).to(self.quant_conv.weight)
            self.register_buffer(name, values[:, None, None], persistent=False)
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.set_memory_format()
            elif isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_diffusers(
        cls,
        directory: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load an ``AutoencoderKLWan`` with the Wan2.2 architecture that ``diffusers`` saved.

        Args:
            directory: holds config.json and one or several safetensors files.
            device: device of the parameters.
            dtype: dtype of the parameters; by default PyTorch's.

        Raises:
            CheckpointError: config.json is missing, has invalid sizes or describes another architecture; or a
                tensor or file does not fit, see :func:`streamchar.checkpoint.load_foreign`.
        """
        directory = Path(directory)
        vae = cls(_read_config(directory / "config.json"), device, dtype)
        load_foreign(vae, directory, "diffusion_pytorch_model.safetensors")
        return vae

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Reinitialise all parameters with random weights that keep activations near unit variance.

        Args:
            generator: on the parameters' device; by default PyTorch's global generator.
        """
        for module in self.modules():
            if isinstance(module, CausalConv3d | nn.Conv2d):
                fan_in = math.prod(module.weight.shape[1:])
                module.weight.normal_(std=fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, ChannelNorm):
                module.gamma.fill_(1.0)

    def new_state(self, batch: int, latent_size: tuple[int, int]) -> VaeState:
        """Allocate the state of ``batch`` streams; each must be primed before it is decoded.

        Args:
            batch: number of streams.
            latent_size: height and width of a latent, in cells.

        Raises:
            ValueError: a size is not positive.
        """
        height, width = latent_size
        if min(batch, height, width) < 1:
            raise ValueError(f"batch and latent_size must be positive, got {batch} and {height} x {width}")
        weight = self.post_quant_conv.weight
        return VaeState(
            tuple(
                torch.zeros(
                    batch,
                    2,
                    height * scale,
                    width * scale,
                    channels,
                    dtype=weight.dtype,
                    device=weight.device,
                )
                for channels, scale in self.decoder.buffer_sizes
            )
        )

    def prime(self, state: VaeState, first_latent: Tensor) -> Tensor:
        """Reset every stream of ``state`` and decode its first latent.

        Args:
            state: from :meth:`new_state`, or one row of it.
            first_latent: [batch, z_dim, h, w], as :meth:`encode_image` returns.

        Returns:
            The first frame, [batch, 3, height, width] in [-1, 1].

        Raises:
            ValueError: the latent does not have the state's shape.
        """
        self._check_latents("first_latent", first_latent.unsqueeze(1), state)
        state.reset()
        frames = self._decode(first_latent.unsqueeze(1), state.past, first=True)
        return frames.clamp(-1, 1).squeeze(1)

    def decode(self, state: VaeState, latents: Tensor) -> Tensor:
        """Decode the next latents of every stream of ``state``.

        Latents are decoded one at a time, so the result is bit-identical however a stream is split into
        calls, and activations take the memory of one latent.

        Args:
            state: a state after :meth:`prime`; updated in place.
            latents: [batch, n, z_dim, h, w], n at least 1.

        Returns:
            Frames [batch, n * temporal_stride, 3, height, width] in [-1, 1], contiguous.

        Raises:
            ValueError: the latents do not have the state's shape.
        """
        self._check_latents("latents", latents, state)
        frames = [self._decode(latent, state.past, first=False) for latent in latents.split(1, 1)]
        return torch.cat(frames, 1).clamp_(-1, 1)

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Decode whole clips in one pass without state and with gradients, for training.

        Args:
            latents: [batch, 1 + n, z_dim, h, w].

        Returns:
            Frames [batch, 1 + n * temporal_stride, 3, height, width], equal to those of :meth:`prime` and
            :meth:`decode` but not clamped, so that saturated pixels still have a gradient.

        Raises:
            ValueError: ``latents`` has the wrong shape.
        """
        self._check_latents("latents", latents, None)
        return self._decode(latents, None, first=True)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode clips to the normalised posterior means.

        Args:
            frames: [batch, 1 + n * temporal_stride, 3, height, width] in [-1, 1].

        Returns:
            Latents [batch, 1 + n, z_dim, h, w].

        Raises:
            ValueError: ``frames`` has the wrong shape or does not fill whole latents.
        """
        space, time = self.config.spatial_stride, self.config.temporal_stride
        shape = list(frames.shape)
        if len(shape) != 5 or shape[2] != 3:
            raise ValueError(f"frames must have shape [batch, frames, 3, height, width], got {shape}")
        if shape[1] % time != 1 % time:
            raise ValueError(f"frames must hold 1 + {time} n frames, got {shape[1]}; drop the last frames")
        if min(shape) < 1 or shape[3] % space or shape[4] % space:
            raise ValueError(
                f"frames must have height and width in multiples of {space}, got {shape[3]} x {shape[4]}"
            )
        patch = self.config.patch_size
        x = frames.to(self.latents_mean.dtype)
        x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
        # Within a patch, the column index varies more slowly than the row index.
        x = x.permute(0, 1, 3, 5, 2, 6, 4).flatten(4)
        mean, _ = self.quant_conv(self.encoder(x)).permute(0, 1, 4, 2, 3).chunk(2, 2)
        latents: Tensor = (mean - self.latents_mean) / self.latents_std
        return latents

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images as first frames of streams.

        Args:
            images: [batch, 3, height, width] in [-1, 1].

        Returns:
            Latents [batch, z_dim, h, w].

        Raises:
            ValueError: ``images`` has the wrong shape or does not fill whole latent cells.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape [batch, 3, height, width], got {list(images.shape)}")
        return self.encode(images.unsqueeze(1)).squeeze(1)

    def _decode(self, latents: Tensor, past: Past, first: bool) -> Tensor:
        x = latents.to(self.latents_mean.dtype) * self.latents_std + self.latents_mean
        x = self.post_quant_conv(x.permute(0, 1, 3, 4, 2))
        x = self.decoder(x, past, first)
        patch = self.config.patch_size
        x = x.unflatten(-1, (3, patch, patch)).permute(0, 1, 4, 2, 6, 3, 5)
        frames: Tensor = x.flatten(5, 6).flatten(3, 4)
        return frames

    def _check_latents(self, argument: str, latents: Tensor, state: VaeState | None) -> None:
        want: list[int | None] = [None, None, self.config.z_dim, None, None]
        if state is not None:
            batch, _, height, width, _ = state.past[0].shape
            want = [batch, None, self.config.z_dim, height, width]
        have = list(latents.shape)
        fits = len(have) == 5 and all(w in (None, h) for w, h in zip(want, have)) and min(have) > 0
        if not fits:
            spelled = ", ".join("any" if size is None else str(size) for size in want)
            raise ValueError(f"{argument} must have shape [batch, n, z_dim, h, w] = [{spelled}], got {have}")


def _levels(config: VaeConfig) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return, per encoder level, the spatial stride and whether it halves the frame rate."""
    return (2,) * (len(config.dim_mult) - 1) + (1,), (*config.temporal_downsample, False)


def _read_config(file: Path) -> VaeConfig:
    try:
        raw: Any = json.loads(file.read_text())
        if not isinstance(raw, dict):
            raise CheckpointError(file, f"must hold an object, got {type(raw).__name__}")
        patch = raw.get("patch_size") or 1
        built = {
            "_class_name": "AutoencoderKLWan",
            "is_residual": True,
            "attn_scales": [],
            "in_channels": 3 * patch**2,
            "out_channels": 3 * patch**2,
        }
        for name, value in built.items():
            if raw.get(name) != value:
                raise CheckpointError(file, f"{name} must be {value!r}, got {raw.get(name)!r}")
        return VaeConfig(
            base_dim=raw["base_dim"],
            decoder_base_dim=raw.get("decoder_base_dim") or raw["base_dim"],
            z_dim=raw["z_dim"],
            dim_mult=tuple(raw["dim_mult"]),
            num_res_blocks=raw["num_res_blocks"],
            temporal_downsample=tuple(raw["temperal_downsample"]),
            patch_size=patch,
            latents_mean=tuple(raw["latents_mean"]),
            latents_std=tuple(raw["latents_std"]),
        )
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(file, f"must have {error}") from error
    except ConfigError as error:
        raise CheckpointError(file, str(error)) from error
    except (OSError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(file, f"must be the config.json of an AutoencoderKLWan: {error}") from error
