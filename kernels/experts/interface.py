"""The expert projections in 16 bits or wider, and the parts that they share with the fp8 forms."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from .._shared.configs import Measured, measured, pick
from .._shared.dispatch import Backend, use_triton
from .._shared.operator import Operator
from .arguments import ExpertArgs, check_down, check_up
from .forward import launch
from .reference import gated_residual

operator = Operator("experts", ExpertArgs, launch, mutates=("out_video", "out_audio"))


def expert_up(
    x: Tensor,
    w_video: Tensor,
    b_video: Tensor,
    w_audio: Tensor,
    b_audio: Tensor,
    *,
    num_video: int,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Apply each modality's up projection and GELU: ``gelu_tanh(x W^T + b)``.

    Args:
        x: [batch, tokens, dim], bf16, fp16 or fp32 (fp64 on the PyTorch path), contiguous.
        w_video: [hidden_video, dim] in x.dtype, contiguous.
        b_video: [hidden_video] in x.dtype.
        w_audio: [hidden_audio, dim], as ``w_video``.
        b_audio: [hidden_audio], as ``b_video``.
        num_video: tokens [0, num_video) are video and the others audio; either may have no tokens.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``. On CUDA ``"auto"`` chooses the Triton kernel where
            ``_shared/choices.json`` records that it was measured to be faster than cuBLAS, and cuBLAS
            otherwise.

    Returns:
        h_video [batch, num_video, hidden_video] and h_audio [batch, tokens - num_video, hidden_audio], in
        x.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not match, or a row is not a multiple of 16
            bytes.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: feed-forward of arXiv 1706.03762 equation 2 with the GELU of arXiv 1606.08415 section 2.
    """
    args = ExpertArgs(x, None, w_video, b_video, w_audio, b_audio, num_video)
    check_up(args)
    if not runs_triton("expert_up", backend, args, x, w_video, b_video, w_audio, b_audio):
        return (
            gelu(linear(x[:, :num_video], w_video, b_video), approximate="tanh"),
            gelu(linear(x[:, num_video:], w_audio, b_audio), approximate="tanh"),
        )
    return run_up(args, x.dtype)


def expert_down(
    h_video: Tensor,
    h_audio: Tensor,
    w_video: Tensor,
    b_video: Tensor,
    w_audio: Tensor,
    b_audio: Tensor,
    residual: Tensor,
    gate: Tensor,
    row_index: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Apply each modality's down projection and add it, gated: ``residual + gate[row] * (h W^T + b)``.

    Args:
        h_video: [batch, num_video, hidden_video], bf16, fp16 or fp32 (fp64 on the PyTorch path), contiguous.
        h_audio: [batch, num_audio, hidden_audio] in the same dtype; either may have no tokens.
        w_video: [dim, hidden_video] in h_video.dtype, contiguous.
        b_video: [dim] in h_video.dtype.
        w_audio: [dim, hidden_audio], as ``w_video``.
        b_audio: [dim], as ``b_video``.
        residual: [batch, num_video + num_audio, dim] in h_video.dtype, contiguous.
        gate: [batch, rows, dim], modulation rows, any float dtype, last dimension contiguous.
        row_index: [batch, num_video + num_audio] int32, the modulation row of each token; clamped to
            [0, rows).
        backend: see :func:`expert_up`.

    Returns:
        [batch, num_video + num_audio, dim] in residual.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not match, or a row is not a multiple of 16
            bytes.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: arXiv 1706.03762 equation 2; gate of adaLN-Zero, arXiv 2212.09748 section 3.2.
    """
    weights = (w_video, b_video, w_audio, b_audio)
    args = ExpertArgs(h_video, h_audio, *weights, num_tokens(h_video))
    args = args._replace(residual=residual, gate=gate, row_index=row_index)
    check_down(args)
    if not runs_triton("expert_down", backend, args, h_video, h_audio, *weights, residual, gate):
        branch = (linear(h_video, w_video, b_video), linear(h_audio, w_audio, b_audio))
        return gated_residual(residual, gate, row_index, torch.cat(branch, 1))
    return run_down(args)


def num_tokens(hidden: Tensor) -> int:
    """Return the tokens of [batch, tokens, hidden], or 0 for a shape that the check will refuse."""
    return hidden.shape[1] if hidden.dim() > 1 else 0


def run_up(args: ExpertArgs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Launch an up projection into new tensors of ``dtype``."""
    x, num_video = args.a_video, args.num_video
    batch, tokens, _ = x.shape
    h_video = torch.empty((batch, num_video, args.w_video.shape[0]), dtype=dtype, device=x.device)
    h_audio = torch.empty((batch, tokens - num_video, args.w_audio.shape[0]), dtype=dtype, device=x.device)
    operator(args._replace(out_video=h_video, out_audio=h_audio))
    return h_video, h_audio


def run_down(args: ExpertArgs) -> Tensor:
    """Launch a down projection into a new tensor like the residual."""
    residual = args.residual
    assert residual is not None
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    operator(args._replace(out_video=out))
    return out


def runs_triton(
    op: Literal["expert_up", "expert_down"], backend: Backend, args: ExpertArgs, *tensors: Tensor
) -> bool:
    """Return whether the Triton kernel serves a call that reads ``tensors``."""
    weight, a_audio = args.w_video, args.a_audio
    if not use_triton(backend, weight, *tensors):
        return False
    if backend == "triton":
        return True
    batch, tokens = args.a_video.shape[:2]
    num_audio = tokens - args.num_video if a_audio is None else a_audio.shape[1]
    n, k = weight.shape
    entries = _measured(op, weight.dtype, n, k, weight.device.index)
    return pick(entries, batch * args.num_video, batch * num_audio) == "triton"


# A graph that torch.compile traces keeps the table as it was when traced and does not read the file again.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _measured(op: str, dtype: torch.dtype, n: int, k: int, device: int | None) -> tuple[Measured, ...]:
    return measured(op, dtype, n, k, torch.cuda.get_device_properties(device).name)
