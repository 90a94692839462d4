"""Few-step sampler: one update of the video and audio latents in a single launch.

Fused: classifier-free guidance ``v = v_uncond + guidance (v - v_uncond)``; the update, ``x0 = x - sigma v``
and ``x' = (1 - sigma') x0 + sigma' eps`` of a few-step student or ``x' = x + (sigma' - sigma) v`` of its
teacher; and the noise eps, drawn in registers (see ``philox.py``). Every row reads its own step, seed and
chunk on the device, so a captured graph replays with new values and batch rows may be at different steps.

Bytes that must move for N elements of e_x bytes and velocities of e_v bytes: N (2 e_x + e_v), with guidance
N (2 e_x + 2 e_v); the initial noise N e_x. About 60 FLOP and 40 integer operations an element when noise is
drawn.
"""

import torch

from .._shared.compat import tl, triton
from .._shared.dispatch import Launch
from .._shared.philox import AUDIO, VIDEO, philox_normal
from .arguments import BLOCK, SamplerArgs


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
            x_video_ptr, v_video_ptr, v_video_uncond_ptr, block, video_elements, row, sigma, sigma_next,
            guidance, seed, chunk, draw, VIDEO, UPDATE, GUIDED, BLOCK,
        )  # fmt: skip
    else:
        _update(
            x_audio_ptr, v_audio_ptr, v_audio_uncond_ptr, block - video_blocks, audio_elements, row, sigma,
            sigma_next, guidance, seed, chunk, draw, AUDIO, UPDATE, GUIDED, BLOCK,
        )  # fmt: skip


def launch(args: SamplerArgs) -> Launch:
    """Build the launch that updates ``args.x_video`` and ``args.x_audio``."""
    batch = args.x_video.shape[0]
    video, audio = args.x_video.numel() // batch, args.x_audio.numel() // batch
    kernel_args = {
        "x_video_ptr": args.x_video,
        "x_audio_ptr": args.x_audio,
        "v_video_ptr": args.v_video,
        "v_audio_ptr": args.v_audio,
        "v_video_uncond_ptr": args.v_video_uncond,
        "v_audio_uncond_ptr": args.v_audio_uncond,
        "sigmas_ptr": args.sigmas,
        "step_ptr": args.step,
        "seed_ptr": args.seed,
        "chunk_ptr": args.chunk,
        "guidance_ptr": args.guidance,
        "num_steps": args.sigmas.shape[0] - 1 if args.sigmas is not None else 1,
        "video_elements": video,
        "audio_elements": audio,
        "UPDATE": args.update,
        "GUIDED": args.guidance is not None,
        "BLOCK": BLOCK,
    }
    grid = (triton.cdiv(video, BLOCK) + triton.cdiv(audio, BLOCK), batch)
    # 4 elements a thread: one counter each, and the widest vector that x in fp32 and v in bf16 can share.
    return Launch(_sampler_kernel, grid, kernel_args, num_warps=BLOCK // 128, device=args.x_video.device)


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""

    def meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = meta((1, 8, 48, 32, 32), torch.float32), meta((1, 32, 64), torch.float32)
    v = meta((1, 8, 48, 32, 32), torch.bfloat16), meta((1, 32, 64), torch.bfloat16)
    sigmas, guidance = meta((5,), torch.float32), meta((1,), torch.float32)
    step, seed = meta((1,), torch.int32), meta((1,), torch.int64)
    plain = SamplerArgs(*x, *v, sigmas, step, seed, seed)
    guided = plain._replace(v_video_uncond=v[0], v_audio_uncond=v[1], guidance=guidance)
    noise = SamplerArgs(*x, None, None, None, None, seed, seed, update="noise")
    return {
        "sampler/renoise fp32": launch(plain),
        "sampler/renoise guided fp32": launch(guided),
        "sampler/euler fp32": launch(plain._replace(update="euler")),
        "sampler/euler guided fp32": launch(guided._replace(update="euler")),
        "sampler/noise fp32": launch(noise),
    }
