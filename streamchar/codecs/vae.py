"""The streaming causal video VAE: an image or a clip to latents, an endless stream of latents to frames.

One network for every preset, in the form of the Wan2.2 VAE, whose ``diffusers`` checkpoints load as they
are. The first latent of a stream stands for one frame, the reference image, and :meth:`Vae.prime` decodes it;
every later latent gives ``temporal_stride`` frames through :meth:`Vae.decode`, which is one fixed sequence of
operations on fixed addresses and can be captured in a CUDA graph.

Source: Wan (arXiv 2503.20314), section 4.1; the Wan2.2 release for residual levels and patches.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..checkpoint import CheckpointError
from ..config import ConfigError, VaeConfig
from ..ranges import span
from .vae_layers import CausalConv3d, ChannelNorm, DownBlock, MidBlock, Past, UpBlock


@dataclass(frozen=True)
class VaeState:
    """What decoding remembers of its streams, one a row: the last frames that each causal convolution saw.

    Attributes:
        past: a buffer [batch, frames, height, width, channels] a convolution, never reallocated.
    """

    past: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        """Number of streams."""
        return self.past[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of all streams."""
        return sum(buffer.nbytes for buffer in self.past)

    def row(self, index: int) -> "VaeState":
        """Return the state of one stream, a batch of 1 in the same memory."""
        if not 0 <= index < self.batch:
            raise ValueError(f"index must be a row below batch = {self.batch}, got {index}")
        return VaeState(tuple(buffer[index : index + 1] for buffer in self.past))

    def reset(self, row: int | None = None) -> None:
        """Forget one stream, or all of them; :meth:`Vae.prime` does so before it starts one."""
        for buffer in self.past if row is None else self.row(row).past:
            buffer.zero_()


class Encoder(nn.Module):
    """Whole clips of patches to posterior statistics."""

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
    """Latents of a stream to patches."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = config.decoder_dims
        spaces, temporal = _levels(config)
        # A step up undoes the step down to its level, so the finest level, which comes last, has none.
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
        #: Channels and cells per latent cell along an axis of every buffer of past frames, by slot.
        self.buffers_of_past: list[tuple[int, int]] = []
        scale = 1
        for part, space in zip(
            (self.conv_in, self.mid_block, *self.up_blocks, self.conv_out), (1, 1, *spaces, 1)
        ):
            for conv in part.modules():
                if isinstance(conv, CausalConv3d) and conv.history:
                    conv.slot = len(self.buffers_of_past)
                    self.buffers_of_past.append((conv.inputs, scale))
            scale *= space

    def forward(self, x: Tensor, past: Past, first: bool) -> Tensor:
        """Map [batch, n, h, w, z_dim] to [batch, 4 n or 4 n - 3 if first, height, width, patch channels]."""
        x = self.mid_block(self.conv_in(x, past), past)
        for index, block in enumerate(self.up_blocks):
            with span("block", index):
                x = block(x, past, first)
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)), past)
        return y


class Vae(nn.Module):
    """The video VAE. Pictures are RGB in [-1, 1]; latents are normalised to mean 0 and variance 1 a channel.

    Args:
        config: its sizes.
        device: where its parameters lie.
        dtype: of parameters, states and everything returned.
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
        # Built without storage: a checkpoint or reset_parameters fills each value once, where it is to lie.
        with torch.device("meta"):
            self.encoder = Encoder(config)
            self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
            self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
            self.decoder = Decoder(config)
        self.to(dtype)
        self.to_empty(device=device if device is not None else torch.get_default_device())
        self._settle()
        # Weights may come in any layout and onto any device.
        hook = self.register_load_state_dict_post_hook
        hook(lambda vae, _: vae._settle())  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def _settle(self) -> None:
        """Put statistics where the parameters are, and parameters into the layout that convolutions read."""
        for name in ("latents_mean", "latents_std"):
            values = torch.tensor(getattr(self.config, name)).to(self.quant_conv.weight)
            self.register_buffer(name, values[:, None, None], persistent=False)
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.lay_out()
            elif isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_diffusers(
        cls,
        directory: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load an ``AutoencoderKLWan`` of Wan2.2's form that ``diffusers`` saved.

        Args:
            directory: holds config.json and the safetensors, in one file or in shards.
            device: where to put it.
            dtype: to cast its tensors to; None for PyTorch's default.

        Raises:
            CheckpointError: config.json is missing, of another form or has impossible sizes; or a tensor
                is missing, unexpected, mis-shaped, not finite, or its file truncated.
        """
        directory = Path(directory)
        vae = cls(_read_config(directory / "config.json"), device, dtype)
        wanted = dict(vae.named_parameters())
        for name, tensor in _tensors(directory):
            parameter = wanted.pop(name, None)
            if parameter is None:
                raise CheckpointError(directory, "is unexpected", tensor=name)
            if parameter.shape != tensor.shape:
                want, have = list(parameter.shape), list(tensor.shape)
                raise CheckpointError(directory, f"must have shape {want}, got {have}", tensor=name)
            if not torch.isfinite(tensor).all():
                raise CheckpointError(directory, "must be finite, got NaN or infinity", tensor=name)
            parameter.data.copy_(tensor)
        if wanted:
            raise CheckpointError(directory, f"is missing, as one of {len(wanted)}", tensor=min(wanted))
        return vae

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights that keep activations near unit variance, every parameter anew.

        Args:
            generator: of the parameters' device; None for the default one.
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
        """Allocate the memory of ``batch`` streams; each must be primed before it is decoded.

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
                for channels, scale in self.decoder.buffers_of_past
            )
        )

    def prime(self, state: VaeState, first_latent: Tensor) -> Tensor:
        """Open every stream of ``state`` with its first latent, whatever the state held before.

        Args:
            state: from :meth:`new_state`, or one row of it.
            first_latent: [batch, z_dim, h, w], such as :meth:`encode_image` returns.

        Returns:
            The frame that it stands for, [batch, 3, height, width] in [-1, 1].

        Raises:
            ValueError: the latent does not have the state's shape.
        """
        self._check_latents("first_latent", first_latent.unsqueeze(1), state)
        state.reset()
        frames = self._decode(first_latent.unsqueeze(1), state.past, first=True)
        return frames.clamp(-1, 1).squeeze(1)

    def decode(self, state: VaeState, latents: Tensor) -> Tensor:
        """Decode the next latents of every stream of ``state`` and remember them.

        One latent goes through at a time: however a stream is cut into calls, the same operations run on the
        same shapes and give the same bits, and activations take the memory of one latent.

        Args:
            state: primed; updated in place.
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
        """Decode whole clips in one pass without state, for training: gradients flow through all of it.

        Args:
            latents: [batch, 1 + n, z_dim, h, w].

        Returns:
            Frames [batch, 1 + n * temporal_stride, 3, height, width], the same as a primed stream's but not
            clamped, so that saturated pixels still have a gradient.

        Raises:
            ValueError: the latents have another shape.
        """
        self._check_latents("latents", latents, None)
        return self._decode(latents, None, first=True)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode clips to the normalised means of their posteriors.

        Args:
            frames: [batch, 1 + n * temporal_stride, 3, height, width] in [-1, 1].

        Returns:
            Latents [batch, 1 + n, z_dim, h, w].

        Raises:
            ValueError: the frames have another shape, or do not fill whole latents.
        """
        space, time = self.config.spatial_stride, self.config.temporal_stride
        shape = list(frames.shape)
        if len(shape) != 5 or shape[2] != 3:
            raise ValueError(f"frames must have shape [batch, frames, 3, height, width], got {shape}")
        if shape[1] % time != 1 % time:
            raise ValueError(f"frames must hold 1 + {time} n frames, got {shape[1]}; drop the last few")
        if min(shape) < 1 or shape[3] % space or shape[4] % space:
            raise ValueError(
                f"frames must have height and width in multiples of {space}, got {shape[3]} x {shape[4]}"
            )
        patch = self.config.patch_size
        x = frames.to(self.latents_mean.dtype)
        x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
        # Within a patch, columns vary slower than rows.
        x = x.permute(0, 1, 3, 5, 2, 6, 4).flatten(4)
        mean, _ = self.quant_conv(self.encoder(x)).permute(0, 1, 4, 2, 3).chunk(2, 2)
        latents: Tensor = (mean - self.latents_mean) / self.latents_std
        return latents

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images, each as the first frame of a stream.

        Args:
            images: [batch, 3, height, width] in [-1, 1].

        Returns:
            Latents [batch, z_dim, h, w].

        Raises:
            ValueError: the images have another shape, or do not fill whole latent cells.
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
    """Return, for every level of the encoder, how far it shrinks space and whether it shrinks time."""
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


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield names and memory-mapped tensors of a checkpoint, whole or in shards."""
    whole = "diffusion_pytorch_model.safetensors"
    index = directory / f"{whole}.index.json"
    try:
        names = {whole}
        if index.is_file():
            names = set(json.loads(index.read_text())["weight_map"].values())
        for name in sorted(names):
            with safe_open(directory / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    yield key, file.get_tensor(key)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(directory, f"must hold whole safetensors files: {error}") from error
