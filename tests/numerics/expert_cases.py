"""Random inputs of the expert projections, with the results of kernel and reference."""

from typing import Any

import torch

from streamchar.kernels import expert_down, expert_down_fp8, expert_up, expert_up_fp8
from streamchar.kernels.experts.arguments import ExpertArgs
from streamchar.kernels.experts.reference import expert_down_reference, expert_up_reference
from streamchar.kernels.modulation.reference import quantize_fp8_reference

NARROW_WIDTHS = (40, 104, 56)  # dim, hidden of video, hidden of audio: multiples of 8, of no tile


class Case:
    """Inputs of both projections; summed terms have unit variance."""

    def __init__(
        self,
        rng: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
        *,
        batch: int = 2,
        video: int = 21,
        audio: int = 18,
        widths: tuple[int, int, int] = NARROW_WIDTHS,
        rows: int = 3,
    ) -> None:
        def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> torch.Tensor:
            values = torch.randn(shape, generator=rng, dtype=torch.float64) * scale
            return values.to(dtype).to(device)

        dim, wide, narrow = widths
        tokens = video + audio
        self.num_video = video
        self.x = normal(batch, tokens, dim)
        self.h = (normal(batch, video, wide), normal(batch, audio, narrow))
        self.up = (
            *(normal(wide, dim, scale=dim**-0.5), normal(wide)),
            *(normal(narrow, dim, scale=dim**-0.5), normal(narrow)),
        )
        self.down = (
            *(normal(dim, wide, scale=wide**-0.5), normal(dim)),
            *(normal(dim, narrow, scale=narrow**-0.5), normal(dim)),
        )
        self.residual = normal(batch, tokens, dim)
        self.gate = normal(batch, rows, dim, dtype=torch.float32)
        # Rows outside [0, rows) must be clamped.
        self.row_index = torch.randint(-2, rows + 2, (batch, tokens), generator=rng).int().to(device)

    def run_up(self, backend: Any = "triton") -> tuple[torch.Tensor, torch.Tensor]:
        return expert_up(self.x, *self.up, num_video=self.num_video, backend=backend)

    @property
    def gating(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.residual, self.gate, self.row_index

    @property
    def up_args(self) -> ExpertArgs:
        return ExpertArgs(self.x, None, *self.up, self.num_video)

    @property
    def down_args(self) -> ExpertArgs:
        scales = (None, None, None, None)
        return ExpertArgs(*self.h, *self.down, self.num_video, *scales, *self.gating)

    def up_reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        return expert_up_reference(self.up_args, torch.float64)

    def run_down(self, backend: Any = "triton") -> torch.Tensor:
        return expert_down(*self.h, *self.down, *self.gating, backend=backend)

    def down_reference(self) -> torch.Tensor:
        return expert_down_reference(self.down_args, torch.float64)


def quantized_weights(weights: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Quantise (w, b, w, b) into (w8, scale, b, w8, scale, b)."""
    w_video, b_video, w_audio, b_audio = weights
    (v8, vs), (a8, as_) = (quantize_fp8_reference(w[None]) for w in (w_video, w_audio))
    return v8[0], vs[0], b_video, a8[0], as_[0], b_audio


class Fp8Case(Case):
    """The same inputs quantised per token and channel; residual and biases stay in bf16."""

    def __init__(self, rng: torch.Generator, device: torch.device, **sizes: Any) -> None:
        super().__init__(rng, device, torch.bfloat16, widths=(48, 112, 64), **sizes)
        # Tokens and channels differ in magnitude, so that a scale applied to the wrong one is noticed.
        spread = torch.logspace(-2, 2, self.x.shape[1], dtype=torch.float64, device=device)[:, None]
        self.x8 = quantize_fp8_reference(self.x.double() * spread)
        self.h8 = tuple(
            part
            for h, s in zip(self.h, spread.split([self.num_video, self.x.shape[1] - self.num_video]))
            for part in quantize_fp8_reference(h.double() * s)
        )
        self.up8, self.down8 = quantized_weights(self.up), quantized_weights(self.down)

    def run_up8(self, backend: Any = "triton", **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return expert_up_fp8(*self.x8, *self.up8, num_video=self.num_video, backend=backend, **options)

    def up8_reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        (x8, x_scale), (wv, sv, bv, wa, sa, ba) = self.x8, self.up8
        args = ExpertArgs(x8, None, wv, bv, wa, ba, self.num_video, x_scale, None, sv, sa)
        return expert_up_reference(args, torch.float64)

    def run_down8(self, backend: Any = "triton") -> torch.Tensor:
        return expert_down_fp8(*self.h8, *self.down8, *self.gating, backend=backend)

    def down8_reference(self) -> torch.Tensor:
        (hv, hsv, ha, hsa), (wv, sv, bv, wa, sa, ba) = self.h8, self.down8
        scales = (hsv, hsa, sv, sa)
        args = ExpertArgs(hv, ha, wv, bv, wa, ba, self.num_video, *scales, *self.gating)
        return expert_down_reference(args, torch.float64)
