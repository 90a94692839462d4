"""Few-step sampler: one update of the video and audio latents in a single launch.

Fused: classifier-free guidance ``v = v_uncond + guidance (v - v_uncond)``; the update, ``x0 = x - sigma v``
and ``x' = (1 - sigma') x0 + sigma' eps`` of a few-step student or ``x' = x + (sigma' - sigma) v`` of its
teacher; and the noise eps, drawn in registers (see ``philox.py``). Every row reads its own step, seed and
chunk on the device, so a captured graph replays with new values and batch rows may be at different steps.

Bytes that must move for N elements of e_x bytes and velocities of e_v bytes: N (2 e_x + e_v), with guidance
N (2 e_x + 2 e_v); the initial noise N e_x. About 60 FLOP and 40 integer operations an element when noise is
drawn.
"""

from typing import Literal

import torch

from ._checks import require, require_contiguous, require_device, require_dtype, require_shape
from ._compat import tl, triton
from ._dispatch import Backend, Launch, use_triton
from .philox import AUDIO, VIDEO, philox_normal, philox_normal_reference

Mode = Literal["renoise", "euler"]
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_BLOCK = 512


@triton.jit
def _update(
    x_ptr,
    v_ptr,
    v_uncond_ptr,
    block,
    elements,
    row,
    sigma,
    sigma_next,
    guidance,
    seed,
    chunk,
    draw,
    MODALITY: tl.constexpr,
    UPDATE: tl.constexpr,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = block * BLOCK
    cols = start + tl.arange(0, BLOCK)
    mask = cols < elements
    base = row * elements
    if UPDATE != "noise":
        x = tl.load(x_ptr + base + cols, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + base + cols, mask=mask, other=0.0).to(tl.float32)
        if GUIDED:
            uncond = tl.load(v_uncond_ptr + base + cols, mask=mask, other=0.0).to(tl.float32)
            v = uncond + guidance * (v - uncond)
    if UPDATE == "euler":
        x += (sigma_next - sigma) * v
    else:
        group = start // 4 + tl.arange(0, BLOCK // 4)
        noise = philox_normal(seed, chunk, draw, MODALITY, group, BLOCK)
        if UPDATE == "renoise":
            x = (1.0 - sigma_next) * (x - sigma * v) + sigma_next * noise
        else:
            x = noise
    tl.store(x_ptr + base + cols, x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _sampler_kernel(
    x_video_ptr,
    x_audio_ptr,
    v_video_ptr,
    v_audio_ptr,
    v_video_uncond_ptr,
    v_audio_uncond_ptr,
    sigmas_ptr,
    step_ptr,
    seed_ptr,
    chunk_ptr,
    guidance_ptr,
    num_steps,
    video_elements,
    audio_elements,
    UPDATE: tl.constexpr,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    sigma = 0.0
    sigma_next = 0.0
    guidance = 1.0
    seed = tl.zeros((), tl.int64)
    chunk = tl.zeros((), tl.int64)
    draw = tl.zeros((), tl.int32)
    if UPDATE != "noise":
        step = tl.minimum(tl.maximum(tl.load(step_ptr + row), 0), num_steps - 1)
        sigma = tl.load(sigmas_ptr + step)
        sigma_next = tl.load(sigmas_ptr + step + 1)
        draw = step + 1
        if GUIDED:
            guidance = tl.load(guidance_ptr + row)
    if UPDATE != "euler":
        seed = tl.load(seed_ptr + row)
        chunk = tl.load(chunk_ptr + row).to(tl.int64)

    video_blocks = tl.cdiv(video_elements, BLOCK)
    if block < video_blocks:
        _update(
            x_video_ptr,
            v_video_ptr,
            v_video_uncond_ptr,
            block,
            video_elements,
            row,
            sigma,
            sigma_next,
            guidance,
            seed,
            chunk,
            draw,
            VIDEO,
            UPDATE,
            GUIDED,
            BLOCK,
        )
    else:
        _update(
            x_audio_ptr,
            v_audio_ptr,
            v_audio_uncond_ptr,
            block - video_blocks,
            audio_elements,
            row,
            sigma,
            sigma_next,
            guidance,
            seed,
            chunk,
            draw,
            AUDIO,
            UPDATE,
            GUIDED,
            BLOCK,
        )


def sampler_step(
    x_video: torch.Tensor,
    x_audio: torch.Tensor,
    v_video: torch.Tensor,
    v_audio: torch.Tensor,
    sigmas: torch.Tensor,
    step: torch.Tensor,
    seed: torch.Tensor,
    chunk: torch.Tensor,
    *,
    mode: Mode = "renoise",
    v_video_uncond: torch.Tensor | None = None,
    v_audio_uncond: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """Advance the latents of every batch row by one sampler step, in place.

    Row b goes from ``sigma = sigmas[step[b]]`` to ``sigma' = sigmas[step[b] + 1]``. Its noise depends only on
    (seed[b], chunk[b], step[b]), the modality and the element, not on the batch.

    Args:
        x_video: [batch, ...], contiguous, bf16, fp16 or fp32, video latent; updated in place.
        x_audio: [batch, ...], likewise for audio.
        v_video: velocity in the shape of ``x_video``, contiguous, any of these dtypes.
        v_audio: velocity in the shape of ``x_audio``, contiguous, any of these dtypes.
        sigmas: [num_steps + 1] fp32, falling noise levels in [0, 1], the last one 0.
        step: [batch] int32, the step each row is at; clamped to [0, num_steps).
        seed: [batch] int64.
        chunk: [batch] int64 or int32, index of the chunk that is generated.
        mode: ``"renoise"`` predicts x0 and adds fresh noise at sigma'; ``"euler"`` follows the velocity.
        v_video_uncond: unconditional velocity in the shape and dtype of ``v_video``, for guidance.
        v_audio_uncond: unconditional velocity in the shape and dtype of ``v_audio``, for guidance.
        guidance: [batch] fp32, guidance scale; given together with both unconditional velocities.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit, or guidance is given in part.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: renoising, consistency sampling of arXiv 2303.01469 algorithm 1 for the interpolation
    ``x = (1 - sigma) x0 + sigma eps`` of arXiv 2210.02747; guidance, arXiv 2207.12598 equation 6.
    """
    require(mode in ("renoise", "euler"), "mode", "'renoise' or 'euler'", repr(mode))
    _check_state(x_video, x_audio, seed, chunk)
    _check_step(x_video, x_audio, v_video, v_audio, sigmas, step, v_video_uncond, v_audio_uncond, guidance)
    tensors = (x_video, x_audio, v_video, v_audio, v_video_uncond, v_audio_uncond)
    if use_triton(backend, *tensors):
        _sampler_op(*tensors, sigmas, step, seed, chunk, guidance, mode)
        return
    video, audio = sampler_step_reference(
        x_video,
        x_audio,
        v_video,
        v_audio,
        sigmas,
        step,
        seed,
        chunk,
        mode=mode,
        v_video_uncond=v_video_uncond,
        v_audio_uncond=v_audio_uncond,
        guidance=guidance,
    )
    x_video.copy_(video)
    x_audio.copy_(audio)


def sampler_noise(
    x_video: torch.Tensor,
    x_audio: torch.Tensor,
    seed: torch.Tensor,
    chunk: torch.Tensor,
    *,
    backend: Backend = "auto",
) -> None:
    """Fill the latents with the initial noise of a chunk, in place.

    Args:
        x_video: [batch, ...], contiguous, bf16, fp16 or fp32; overwritten.
        x_audio: [batch, ...], likewise.
        seed: [batch] int64.
        chunk: [batch] int64 or int32, index of the chunk that is generated.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
    """
    _check_state(x_video, x_audio, seed, chunk)
    if use_triton(backend, x_video, x_audio):
        _sampler_op(x_video, x_audio, None, None, None, None, None, None, seed, chunk, None, "noise")
        return
    draw = torch.zeros_like(seed)
    for modality, x in enumerate((x_video, x_audio)):
        x.copy_(philox_normal_reference(seed, chunk, draw, modality, x[0].numel()).view(x.shape))


def sampler_step_reference(
    x_video: torch.Tensor,
    x_audio: torch.Tensor,
    v_video: torch.Tensor,
    v_audio: torch.Tensor,
    sigmas: torch.Tensor,
    step: torch.Tensor,
    seed: torch.Tensor,
    chunk: torch.Tensor,
    *,
    mode: Mode = "renoise",
    v_video_uncond: torch.Tensor | None = None,
    v_audio_uncond: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the advanced (x_video, x_audio) in plain PyTorch, in fp32 or, for fp64 latents, in fp64.

    Arguments as in :func:`sampler_step`; the inputs are left as they are, the results unrounded.
    """
    at = step.long().clamp(0, sigmas.shape[0] - 2)

    def advance(modality: int, x: torch.Tensor, v: torch.Tensor, uncond: torch.Tensor | None) -> torch.Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        row = (x.shape[0], *(1 for _ in x.shape[1:]))
        sigma, sigma_next = sigmas.to(wide)[at].view(row), sigmas.to(wide)[at + 1].view(row)
        x, v = x.to(wide), v.to(wide)
        if uncond is not None and guidance is not None:
            v = uncond.to(wide) + guidance.to(wide).view(row) * (v - uncond.to(wide))
        if mode == "euler":
            return x + (sigma_next - sigma) * v
        noise = philox_normal_reference(seed, chunk, at + 1, modality, x[0].numel(), wide).view(x.shape)
        return (1 - sigma_next) * (x - sigma * v) + sigma_next * noise

    return advance(0, x_video, v_video, v_video_uncond), advance(1, x_audio, v_audio, v_audio_uncond)


def _launch(
    x_video: torch.Tensor,
    x_audio: torch.Tensor,
    v_video: torch.Tensor | None,
    v_audio: torch.Tensor | None,
    v_video_uncond: torch.Tensor | None,
    v_audio_uncond: torch.Tensor | None,
    sigmas: torch.Tensor | None,
    step: torch.Tensor | None,
    seed: torch.Tensor,
    chunk: torch.Tensor,
    guidance: torch.Tensor | None,
    update: str,
) -> Launch:
    batch = x_video.shape[0]
    video, audio = x_video.numel() // batch, x_audio.numel() // batch
    args = {
        "x_video_ptr": x_video,
        "x_audio_ptr": x_audio,
        "v_video_ptr": v_video,
        "v_audio_ptr": v_audio,
        "v_video_uncond_ptr": v_video_uncond,
        "v_audio_uncond_ptr": v_audio_uncond,
        "sigmas_ptr": sigmas,
        "step_ptr": step,
        "seed_ptr": seed,
        "chunk_ptr": chunk,
        "guidance_ptr": guidance,
        "num_steps": sigmas.shape[0] - 1 if sigmas is not None else 1,
        "video_elements": video,
        "audio_elements": audio,
        "UPDATE": update,
        "GUIDED": guidance is not None,
        "BLOCK": _BLOCK,
    }
    grid = (triton.cdiv(video, _BLOCK) + triton.cdiv(audio, _BLOCK), batch)
    # 4 elements a thread: one counter each, and the widest vector that x in fp32 and v in bf16 can share.
    return Launch(_sampler_kernel, grid, args, num_warps=_BLOCK // 128, device=x_video.device)


@torch.library.custom_op("streamchar::sampler", mutates_args=("x_video", "x_audio"))
def _sampler_op(
    x_video: torch.Tensor,
    x_audio: torch.Tensor,
    v_video: torch.Tensor | None,
    v_audio: torch.Tensor | None,
    v_video_uncond: torch.Tensor | None,
    v_audio_uncond: torch.Tensor | None,
    sigmas: torch.Tensor | None,
    step: torch.Tensor | None,
    seed: torch.Tensor,
    chunk: torch.Tensor,
    guidance: torch.Tensor | None,
    update: str,
) -> None:
    _launch(
        x_video,
        x_audio,
        v_video,
        v_audio,
        v_video_uncond,
        v_audio_uncond,
        sigmas,
        step,
        seed,
        chunk,
        guidance,
        update,
    ).run()


@_sampler_op.register_fake
def _(*args: object) -> None:
    return None


def _check_state(
    x_video: torch.Tensor, x_audio: torch.Tensor, seed: torch.Tensor, chunk: torch.Tensor
) -> None:
    batch = x_video.shape[0] if x_video.dim() > 0 else None
    for name, x in {"x_video": x_video, "x_audio": x_audio}.items():
        require(x.dim() >= 2, name, "[batch, ...] with at least 2 dimensions", list(x.shape))
        require(x.shape[0] == batch, f"{name}.shape[0]", f"{batch} like x_video.shape[0]", x.shape[0])
        require(x.numel() > 0, name, "non-empty", list(x.shape))
        elements = x.numel() // x.shape[0]
        require(elements < 2**31 - _BLOCK, name, f"below {2**31 - _BLOCK} elements a row", elements)
        require_dtype(name, x, _FLOATS)
        require_contiguous(name, x)
        require_device(name, x, x_video.device, "x_video")
    require(batch is None or batch <= 65535, "x_video.shape[0]", "at most 65535 rows", batch)
    _check_row_values("seed", seed, (torch.int64,), x_video)
    _check_row_values("chunk", chunk, (torch.int64, torch.int32), x_video)


def _check_row_values(
    name: str, values: torch.Tensor, dtypes: tuple[torch.dtype, ...], x_video: torch.Tensor
) -> None:
    require_shape(name, values, (x_video.shape[0],), "[batch]")
    require_dtype(name, values, dtypes)
    require_contiguous(name, values)
    require_device(name, values, x_video.device, "x_video")


def _check_step(
    x_video: torch.Tensor,
    x_audio: torch.Tensor,
    v_video: torch.Tensor,
    v_audio: torch.Tensor,
    sigmas: torch.Tensor,
    step: torch.Tensor,
    v_video_uncond: torch.Tensor | None,
    v_audio_uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
) -> None:
    for name, tensor, x, like in (
        ("v_video", v_video, x_video, "x_video"),
        ("v_audio", v_audio, x_audio, "x_audio"),
        ("v_video_uncond", v_video_uncond, x_video, "x_video"),
        ("v_audio_uncond", v_audio_uncond, x_audio, "x_audio"),
    ):
        if tensor is None:
            together = "given together with guidance"
            require(guidance is None, name, together, "None", "pass both unconditional velocities")
            continue
        require_shape(name, tensor, x.shape, f"the shape of {like}")
        require_dtype(name, tensor, _FLOATS)
        require_contiguous(name, tensor)
        require_device(name, tensor, x_video.device, "x_video")
        if name.endswith("_uncond"):
            together = f"given together with {name}"
            require(guidance is not None, "guidance", together, "None", "pass a [batch] fp32 scale")
    require_shape("sigmas", sigmas, (None,), "[num_steps + 1]")
    require(sigmas.shape[0] >= 2, "sigmas.shape[0]", "at least 2 (one step)", sigmas.shape[0])
    require_dtype("sigmas", sigmas, (torch.float32,))
    require_contiguous("sigmas", sigmas)
    require_device("sigmas", sigmas, x_video.device, "x_video")
    _check_row_values("step", step, (torch.int32,), x_video)
    if guidance is not None:
        _check_row_values("guidance", guidance, (torch.float32,), x_video)


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""

    def meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = meta((1, 8, 48, 32, 32), torch.float32), meta((1, 32, 64), torch.float32)
    v = meta((1, 8, 48, 32, 32), torch.bfloat16), meta((1, 32, 64), torch.bfloat16)
    sigmas, guidance = meta((5,), torch.float32), meta((1,), torch.float32)
    step, seed = meta((1,), torch.int32), meta((1,), torch.int64)
    none = (None, None)
    return {
        "sampler/renoise fp32": _launch(*x, *v, *none, sigmas, step, seed, seed, None, "renoise"),
        "sampler/renoise guided fp32": _launch(*x, *v, *v, sigmas, step, seed, seed, guidance, "renoise"),
        "sampler/euler fp32": _launch(*x, *v, *none, sigmas, step, seed, seed, None, "euler"),
        "sampler/euler guided fp32": _launch(*x, *v, *v, sigmas, step, seed, seed, guidance, "euler"),
        "sampler/noise fp32": _launch(*x, *none, *none, None, None, seed, seed, None, "noise"),
    }
