"""The sampler in plain PyTorch: the reference of the kernel, and the path used without Triton."""

import torch
from torch import Tensor

from .._shared.philox import philox_normal_reference
from .arguments import SamplerArgs


def sampler_step_reference(args: SamplerArgs) -> tuple[Tensor, Tensor]:
    """Return the advanced (x_video, x_audio), in fp32 or, for fp64 latents, in fp64.

    Does not change its inputs and does not round its results.
    """
    sigmas, guidance = args.sigmas, args.guidance
    assert sigmas is not None
    assert args.step is not None
    at = args.step.long().clamp(0, sigmas.shape[0] - 2)

    def advance(modality: int, x: Tensor, v: Tensor | None, uncond: Tensor | None) -> Tensor:
        assert v is not None
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        row = (x.shape[0], *(1 for _ in x.shape[1:]))
        sigma, sigma_next = sigmas.to(wide)[at].view(row), sigmas.to(wide)[at + 1].view(row)
        x, v = x.to(wide), v.to(wide)
        if uncond is not None and guidance is not None:
            v = uncond.to(wide) + guidance.to(wide).view(row) * (v - uncond.to(wide))
        if args.update == "euler":
            return x + (sigma_next - sigma) * v
        noise = philox_normal_reference(args.seed, args.chunk, at + 1, modality, x[0].numel(), wide)
        return (1 - sigma_next) * (x - sigma * v) + sigma_next * noise.view(x.shape)

    video = advance(0, args.x_video, args.v_video, args.v_video_uncond)
    return video, advance(1, args.x_audio, args.v_audio, args.v_audio_uncond)


def sampler_noise_reference(args: SamplerArgs) -> tuple[Tensor, Tensor]:
    """Return the initial noise of (x_video, x_audio) in fp32."""
    draw = torch.zeros_like(args.seed)

    def noise(modality: int, x: Tensor) -> Tensor:
        return philox_normal_reference(args.seed, args.chunk, draw, modality, x[0].numel()).view(x.shape)

    return noise(0, args.x_video), noise(1, args.x_audio)
