"""The arguments of the sampler kernel, and what is required of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._shared.checks import require, require_contiguous, require_device, require_dtype, require_tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
#: Elements of a program.
BLOCK = 512


class SamplerArgs(NamedTuple):
    """Arguments of one update: ``"renoise"``, ``"euler"``, or ``"noise"``, which reads no velocity.

    ``x_video`` and ``x_audio`` are written.
    """

    x_video: Tensor
    x_audio: Tensor
    v_video: Tensor | None
    v_audio: Tensor | None
    sigmas: Tensor | None
    step: Tensor | None
    seed: Tensor
    chunk: Tensor
    v_video_uncond: Tensor | None = None
    v_audio_uncond: Tensor | None = None
    guidance: Tensor | None = None
    update: str = "renoise"


def check_state(args: SamplerArgs) -> None:
    """Require latents, seeds and chunk indices that fit."""
    x_video = args.x_video
    batch = x_video.shape[0] if x_video.dim() > 0 else None
    for name, x in {"x_video": x_video, "x_audio": args.x_audio}.items():
        require(x.dim() >= 2, name, "[batch, ...] with at least 2 dimensions", list(x.shape))
        require(x.shape[0] == batch, f"{name}.shape[0]", f"{batch} like x_video.shape[0]", x.shape[0])
        require(x.numel() > 0, name, "non-empty", list(x.shape))
        elements = x.numel() // x.shape[0]
        require(elements < 2**31 - BLOCK, name, f"below {2**31 - BLOCK} elements a row", elements)
        require_dtype(name, x, FLOATS)
        require_contiguous(name, x)
        require_device(name, x, x_video.device, "x_video")
    require(batch is None or batch <= 65535, "x_video.shape[0]", "at most 65535 rows", batch)
    _check_row_values("seed", args.seed, (torch.int64,), x_video)
    _check_row_values("chunk", args.chunk, (torch.int64, torch.int32), x_video)


def check_step(args: SamplerArgs) -> None:
    """Require velocities, a schedule and guidance that fit the latents."""
    x_video, x_audio, guidance, sigmas = args.x_video, args.x_audio, args.guidance, args.sigmas
    for name, tensor, x, like in (
        ("v_video", args.v_video, x_video, "x_video"),
        ("v_audio", args.v_audio, x_audio, "x_audio"),
        ("v_video_uncond", args.v_video_uncond, x_video, "x_video"),
        ("v_audio_uncond", args.v_audio_uncond, x_audio, "x_audio"),
    ):
        if tensor is None:
            together = "given together with guidance"
            require(guidance is None, name, together, "None", "pass both unconditional velocities")
            continue
        require_tensor(name, tensor, (x.shape, f"the shape of {like}"), FLOATS, ("x_video", x_video))
        if name.endswith("_uncond"):
            together = f"given together with {name}"
            require(guidance is not None, "guidance", together, "None", "pass a [batch] fp32 scale")
    assert sigmas is not None
    schedule = (None,), "[num_steps + 1]"
    require_tensor("sigmas", sigmas, schedule, (torch.float32,), ("x_video", x_video))
    require(sigmas.shape[0] >= 2, "sigmas.shape[0]", "at least 2 (one step)", sigmas.shape[0])
    _check_row_values("step", args.step, (torch.int32,), x_video)
    if guidance is not None:
        _check_row_values("guidance", guidance, (torch.float32,), x_video)


def _check_row_values(
    name: str, values: Tensor | None, dtypes: tuple[torch.dtype, ...], x_video: Tensor
) -> None:
    require_tensor(name, values, ((x_video.shape[0],), "[batch]"), dtypes, ("x_video", x_video))
