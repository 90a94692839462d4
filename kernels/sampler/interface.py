"""The sampler: checks, choice of the backend, and the registered operator."""

from typing import Literal

from torch import Tensor

from .._shared.checks import require
from .._shared.dispatch import Backend, use_triton
from .._shared.operator import Operator
from .arguments import SamplerArgs, check_state, check_step
from .forward import launch
from .reference import sampler_noise_reference, sampler_step_reference

Mode = Literal["renoise", "euler"]

operator = Operator("sampler", SamplerArgs, launch, mutates=("x_video", "x_audio"))


def sampler_step(
    x_video: Tensor,
    x_audio: Tensor,
    v_video: Tensor,
    v_audio: Tensor,
    sigmas: Tensor,
    step: Tensor,
    seed: Tensor,
    chunk: Tensor,
    *,
    mode: Mode = "renoise",
    v_video_uncond: Tensor | None = None,
    v_audio_uncond: Tensor | None = None,
    guidance: Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """Advance the latents of every batch row by one sampler step, in place.

    Row b goes from ``sigma = sigmas[step[b]]`` to ``sigma' = sigmas[step[b] + 1]``. Its noise depends only on
    (seed[b], chunk[b], step[b]), the modality and the element, not on the batch.

    Args:
        x_video: [batch, ...], contiguous, bf16, fp16 or fp32, video latent; updated in place.
        x_audio: [batch, ...], contiguous, bf16, fp16 or fp32, audio latent; updated in place.
        v_video: velocity in the shape of ``x_video``, contiguous, bf16, fp16 or fp32.
        v_audio: velocity in the shape of ``x_audio``, contiguous, bf16, fp16 or fp32.
        sigmas: [num_steps + 1] fp32, falling noise levels in [0, 1], the last one 0.
        step: [batch] int32, the current step of each row; clamped to [0, num_steps).
        seed: [batch] int64.
        chunk: [batch] int64 or int32, index of the generated chunk.
        mode: ``"renoise"`` predicts x0 and adds fresh noise at sigma'; ``"euler"`` follows the velocity.
        v_video_uncond: unconditional velocity in the shape of ``v_video``, for guidance.
        v_audio_uncond: unconditional velocity in the shape of ``v_audio``, for guidance.
        guidance: [batch] fp32, guidance scale; given together with both unconditional velocities.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not match, or only a part of the guidance
            is given.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: renoising, consistency sampling of arXiv 2303.01469 algorithm 1 for the interpolation
    ``x = (1 - sigma) x0 + sigma eps`` of arXiv 2210.02747; guidance, arXiv 2207.12598 equation 6.
    """
    require(mode in ("renoise", "euler"), "mode", "'renoise' or 'euler'", repr(mode))
    args = SamplerArgs(x_video, x_audio, v_video, v_audio, sigmas, step, seed, chunk)
    args = args._replace(v_video_uncond=v_video_uncond, v_audio_uncond=v_audio_uncond, guidance=guidance)
    args = args._replace(update=mode)
    check_state(args)
    check_step(args)
    if use_triton(backend, x_video, x_audio, v_video, v_audio, v_video_uncond, v_audio_uncond):
        operator(args)
    else:
        video, audio = sampler_step_reference(args)
        x_video.copy_(video)
        x_audio.copy_(audio)


def sampler_noise(
    x_video: Tensor, x_audio: Tensor, seed: Tensor, chunk: Tensor, *, backend: Backend = "auto"
) -> None:
    """Fill the latents with the initial noise of a chunk, in place.

    Args:
        x_video: [batch, ...], contiguous, bf16, fp16 or fp32; overwritten.
        x_audio: [batch, ...], contiguous, bf16, fp16 or fp32; overwritten.
        seed: [batch] int64.
        chunk: [batch] int64 or int32, index of the generated chunk.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not match.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    args = SamplerArgs(x_video, x_audio, None, None, None, None, seed, chunk, update="noise")
    check_state(args)
    if use_triton(backend, x_video, x_audio):
        operator(args)
    else:
        video, audio = sampler_noise_reference(args)
        x_video.copy_(video)
        x_audio.copy_(audio)
