"""Sizes of the video and audio codecs."""

from dataclasses import dataclass

from .checks import require, require_positive

# fmt: off
#: Per-channel mean and standard deviation of the Wan2.2 VAE's latents, from its published config.json.
WAN22_LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
WAN22_LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


@dataclass(frozen=True)
class VaeConfig:
    """The causal video VAE; field names follow the published config of the Wan2.2 VAE.

    Attributes:
        base_dim: channels of the encoder at multiplier 1.
        decoder_base_dim: channels of the decoder at multiplier 1.
        z_dim: channels of a latent.
        dim_mult: channel multiplier of each level, finest first. Each level but the last halves height and
            width.
        num_res_blocks: residual blocks per encoder level; a decoder level has one more.
        temporal_downsample: for each level but the last, whether it also halves the frame rate.
        patch_size: pixels per cell of the finest level, along each axis.
        latents_mean: per-channel mean of the posterior, subtracted from latents.
        latents_std: per-channel standard deviation of the posterior; latents are divided by it.
    """

    base_dim: int
    decoder_base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    patch_size: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    def __post_init__(self) -> None:
        require_positive(self, "base_dim", "decoder_base_dim", "z_dim", "num_res_blocks", "patch_size")
        ok = bool(self.dim_mult) and all(isinstance(mult, int) and mult > 0 for mult in self.dim_mult)
        require(ok, "dim_mult", "one positive integer per level", self.dim_mult)
        levels = len(self.dim_mult) - 1
        limit = f"{levels} booleans, one for each level but the last"
        ok = len(self.temporal_downsample) == levels
        require(ok, "temporal_downsample", limit, self.temporal_downsample)
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            require(len(values) == self.z_dim, name, f"z_dim = {self.z_dim} numbers", f"{len(values)}")
        ok = all(value > 0 for value in self.latents_std)
        require(ok, "latents_std", "above 0 in every channel", self.latents_std)
        # The shortcuts average whole groups of channels in the encoder and repeat channels in the decoder.
        down, up = self.encoder_dims, self.decoder_dims[::-1]
        for level in range(levels + 1):
            last = level == levels
            cells = 1 if last else 8 if self.temporal_downsample[level] else 4
            ok = down[level] * cells % down[level + 1] == 0
            ok = ok and (last or up[level + 1] * cells % up[level + 2] == 0)
            limit = f"such that level {level} splits into whole groups of channels"
            require(ok, "dim_mult", limit, self.dim_mult)

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        """Input channels of each encoder level, followed by the output channels of the last."""
        return tuple(self.base_dim * mult for mult in (1, *self.dim_mult))

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Input channels of each decoder level, coarsest first, and the output channels of the last."""
        return tuple(self.decoder_base_dim * mult for mult in (self.dim_mult[-1], *self.dim_mult[::-1]))

    @property
    def patch_channels(self) -> int:
        """Channels of an RGB image whose patches are folded into channels."""
        return 3 * self.patch_size**2

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell, along each axis."""
        return int(self.patch_size * 2 ** (len(self.dim_mult) - 1))

    @property
    def temporal_stride(self) -> int:
        """Video frames per latent frame."""
        return int(2 ** sum(self.temporal_downsample))


@dataclass(frozen=True)
class VocoderConfig:
    """The streaming vocoder, which decodes audio latents to samples.

    Attributes:
        dim: width of a spectral frame.
        layers: ConvNeXt blocks.
        ffn: hidden width of a block's feed-forward network.
        hop: samples between the starts of successive spectral frames.
        n_fft: length of the window in samples, even and at least 3 times ``hop``.
        kernel: spectral frames in the receptive field of a causal depthwise convolution.
        mels: mel bands of the encoder's spectrogram.
    """

    dim: int
    layers: int
    ffn: int
    hop: int = 250
    n_fft: int = 1000
    kernel: int = 7
    mels: int = 80

    def __post_init__(self) -> None:
        require_positive(self, "dim", "layers", "ffn", "hop", "n_fft", "kernel", "mels")
        require(self.n_fft % 2 == 0, "n_fft", "even", self.n_fft, "the last bin is the Nyquist frequency")
        overlap = self.n_fft // self.hop
        ok = self.n_fft % self.hop == 0 and overlap >= 3
        remedy = "otherwise squared Hann windows do not add up to a constant"
        require(ok, "n_fft", f"a multiple of hop = {self.hop}, at least 3 times as long", self.n_fft, remedy)

    @property
    def overlap(self) -> int:
        """Windows that cover one sample."""
        return self.n_fft // self.hop

    @property
    def bins(self) -> int:
        """Frequency bins of one spectral frame, including zero and Nyquist."""
        return self.n_fft // 2 + 1
