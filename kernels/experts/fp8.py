"""The expert projections on fp8 e4m3 operands, through the same kernel.

Each token and each output channel has a scale, so a product is ``(a8 @ w8^T) * a_scale * w_scale``; both
scales are applied in fp32 to the accumulator. Between the two projections :func:`.quantize_fp8` quantises the
hidden activations per token.

FLOP are those of :mod:`.forward` at twice the rate; operands move half the bytes, outputs the same.
"""

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from .._shared.checks import require
from .._shared.configs import promotes
from .._shared.dispatch import MIN_CAPABILITY, Backend
from .arguments import WIDE, ExpertArgs, check_down, check_up
from .interface import num_tokens, run_down, run_up, runs_triton
from .reference import gated_residual


def expert_up_fp8(
    x8: Tensor,
    x_scale: Tensor,
    w8_video: Tensor,
    ws_video: Tensor,
    b_video: Tensor,
    w8_audio: Tensor,
    ws_audio: Tensor,
    b_audio: Tensor,
    *,
    num_video: int,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Apply each modality's up projection and GELU to fp8 tokens and weights.

    Args:
        x8: [batch, tokens, dim] float8_e4m3fn, contiguous.
        x_scale: [batch, tokens] fp32; token values are ``x8 * x_scale``.
        w8_video: [hidden_video, dim] float8_e4m3fn, contiguous.
        ws_video: [hidden_video] fp32; weights are ``w8 * ws`` for each output channel.
        b_video: [hidden_video], bf16, fp16 or fp32.
        w8_audio: [hidden_audio, dim], as ``w8_video``.
        ws_audio: [hidden_audio], as ``ws_video``.
        b_audio: [hidden_audio], as ``b_video``.
        num_video: tokens [0, num_video) are video and the others audio; either may have no tokens.
        out_dtype: dtype of the result: bf16, fp16 or fp32.
        backend: see :func:`.expert_up`.

    Returns:
        h_video [batch, num_video, hidden_video] and h_audio [batch, tokens - num_video, hidden_audio], in
        ``out_dtype``.

    Errors are those of :func:`.expert_up`.

    Source: scales per token and channel as in arXiv 2211.10438 section 3 (table 2).
    """
    weights = (w8_video, b_video, w8_audio, b_audio)
    args = ExpertArgs(x8, None, *weights, num_video, x_scale, None, ws_video, ws_audio)
    check_up(args)
    require(out_dtype in WIDE, "out_dtype", "bfloat16 or float16 or float32", out_dtype)
    if not runs_triton("expert_up", backend, args, x8, x_scale, *weights):
        k = w8_video.shape[1]
        video = _linear(x8[:, :num_video], x_scale[:, :num_video], w8_video, ws_video, b_video, k)
        audio = _linear(x8[:, num_video:], x_scale[:, num_video:], w8_audio, ws_audio, b_audio, k)
        return (
            gelu(video, approximate="tanh").to(out_dtype),
            gelu(audio, approximate="tanh").to(out_dtype),
        )
    return run_up(args, out_dtype)


def expert_down_fp8(
    h8_video: Tensor,
    hs_video: Tensor,
    h8_audio: Tensor,
    hs_audio: Tensor,
    w8_video: Tensor,
    ws_video: Tensor,
    b_video: Tensor,
    w8_audio: Tensor,
    ws_audio: Tensor,
    b_audio: Tensor,
    residual: Tensor,
    gate: Tensor,
    row_index: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Apply each modality's down projection to fp8 hidden tokens and add it, gated, to the residual.

    Args:
        h8_video: [batch, num_video, hidden_video] float8_e4m3fn, contiguous.
        hs_video: [batch, num_video] fp32; hidden values are ``h8 * hs``.
        h8_audio: [batch, num_audio, hidden_audio], as ``h8_video``; either may have no tokens.
        hs_audio: [batch, num_audio], as ``hs_video``.
        w8_video: [dim, hidden_video] float8_e4m3fn, contiguous.
        ws_video: [dim] fp32, scale of each output channel.
        b_video: [dim], bf16, fp16 or fp32.
        w8_audio: [dim, hidden_audio], as ``w8_video``.
        ws_audio: [dim], as ``ws_video``.
        b_audio: [dim], as ``b_video``.
        residual: [batch, num_video + num_audio, dim], bf16, fp16 or fp32, contiguous.
        gate: see :func:`.expert_down`.
        row_index: see :func:`.expert_down`.
        backend: see :func:`.expert_up`.

    Returns:
        [batch, num_video + num_audio, dim] in residual.dtype.

    Errors are those of :func:`.expert_down`; sources, those of :func:`expert_up_fp8` and
    :func:`.expert_down`.
    """
    scales = (hs_video, hs_audio, ws_video, ws_audio)
    weights = (w8_video, b_video, w8_audio, b_audio)
    args = ExpertArgs(h8_video, h8_audio, *weights, num_tokens(h8_video), *scales, residual, gate, row_index)
    check_down(args)
    if not runs_triton("expert_down", backend, args, h8_video, h8_audio, residual, gate):
        k = w8_video.shape[1]
        video = _linear(h8_video, hs_video, w8_video, ws_video, b_video, k)
        audio = _linear(h8_audio, hs_audio, w8_audio, ws_audio, b_audio, k)
        return gated_residual(residual, gate, row_index, torch.cat((video, audio), 1).to(residual.dtype))
    return run_down(args)


def _linear(a8: Tensor, a_scale: Tensor, w8: Tensor, w_scale: Tensor, bias: Tensor, k_video: int) -> Tensor:
    """Multiply with the library's fp8 product if there is one, else dequantised in fp32; add the bias."""
    if a8.is_cuda and a8.shape[1] > 0 and torch.cuda.get_device_capability(a8.device) >= MIN_CAPABILITY:
        # With scales of rows and columns every supported PyTorch gives bf16 results and takes bf16 biases.
        y = torch._scaled_mm(
            a8.reshape(-1, a8.shape[2]),
            w8.t(),
            scale_a=a_scale.reshape(-1, 1),
            scale_b=w_scale.reshape(1, -1),
            bias=bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            # As exact as the sums of the Triton kernel, which depend on the video expert's depth.
            use_fast_accum=not promotes(k_video),
        )
        return y.reshape(*a8.shape[:2], -1)
    product = linear(a8.float(), w8.float()) * a_scale[..., None] * w_scale
    return product + bias.float()
