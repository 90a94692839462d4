"""The expert FFN of :mod:`.experts` on fp8 e4m3 operands, through the same kernel.

Each token and each output channel has a scale, so a product is ``(a8 @ w8^T) * a_scale * w_scale``; both are
applied in fp32 to the accumulator. The hidden activations are quantised per token by
:func:`.modulation.quantize_fp8` between the two projections.

FLOP are those of :mod:`.experts` at twice the rate; operands move half the bytes, outputs the same.
"""

import torch
from torch.nn.functional import gelu, linear

from ._checks import require, require_contiguous, require_device, require_dtype, require_shape
from ._compat import FP8
from ._dispatch import MIN_CAPABILITY, Backend
from ._expert_checks import check_down, check_up
from .configs import promotes
from .experts import (
    empty_hidden,
    expert_down_reference,
    expert_up_reference,
    experts_op,
    gated_residual,
    runs_triton,
)

_OUT = (torch.bfloat16, torch.float16, torch.float32)


def expert_up_fp8(
    x8: torch.Tensor,
    x_scale: torch.Tensor,
    w8_video: torch.Tensor,
    ws_video: torch.Tensor,
    b_video: torch.Tensor,
    w8_audio: torch.Tensor,
    ws_audio: torch.Tensor,
    b_audio: torch.Tensor,
    *,
    num_video: int,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
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
        num_video: tokens [0, num_video) are video, the rest audio; either may be none.
        out_dtype: of the result, bf16, fp16 or fp32.
        backend: see :func:`.experts.expert_up`.

    Returns:
        h_video [batch, num_video, hidden_video] and h_audio [batch, tokens - num_video, hidden_audio], in
        ``out_dtype``.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit, or a row is not a multiple of 16
            bytes.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: scales per token and channel as in arXiv 2211.10438 section 3 (table 2).
    """
    require_dtype("x8", x8, (FP8,))
    weights = (w8_video, b_video, w8_audio, b_audio)
    check_up("x8", x8, weights, num_video, _OUT)
    batch, tokens, _ = x8.shape
    _check_scale("x_scale", x_scale, (batch, tokens), "[batch, tokens]", x8)
    _check_scale("ws_video", ws_video, w8_video.shape[:1], "[hidden]", x8)
    _check_scale("ws_audio", ws_audio, w8_audio.shape[:1], "[hidden]", x8)
    require(out_dtype in _OUT, "out_dtype", "bfloat16 or float16 or float32", out_dtype)
    rows = (batch * num_video, batch * (tokens - num_video))
    if not runs_triton("expert_up", backend, w8_video, *rows, x8, x_scale, *weights):
        k = w8_video.shape[1]
        video = _linear(x8[:, :num_video], x_scale[:, :num_video], w8_video, ws_video, b_video, k)
        audio = _linear(x8[:, num_video:], x_scale[:, num_video:], w8_audio, ws_audio, b_audio, k)
        return (
            gelu(video, approximate="tanh").to(out_dtype),
            gelu(audio, approximate="tanh").to(out_dtype),
        )
    h_video, h_audio = empty_hidden(x8, w8_video, w8_audio, num_video, out_dtype)
    experts_op(h_video, h_audio, x8, None, *weights, x_scale, None, ws_video, ws_audio)
    return h_video, h_audio


def expert_down_fp8(
    h8_video: torch.Tensor,
    hs_video: torch.Tensor,
    h8_audio: torch.Tensor,
    hs_audio: torch.Tensor,
    w8_video: torch.Tensor,
    ws_video: torch.Tensor,
    b_video: torch.Tensor,
    w8_audio: torch.Tensor,
    ws_audio: torch.Tensor,
    b_audio: torch.Tensor,
    residual: torch.Tensor,
    gate: torch.Tensor,
    row_index: torch.Tensor,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
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
        gate: see :func:`.experts.expert_down`.
        row_index: see :func:`.experts.expert_down`.
        backend: see :func:`.experts.expert_up`.

    Returns:
        [batch, num_video + num_audio, dim] in residual.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit, or a row is not a multiple of 16
            bytes.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: as :func:`expert_up_fp8` and :func:`.experts.expert_down`.
    """
    require_dtype("h8_video", h8_video, (FP8,))
    weights = (w8_video, b_video, w8_audio, b_audio)
    check_down("h8", h8_video, h8_audio, weights, residual, gate, row_index, _OUT)
    require_dtype("residual", residual, _OUT)
    _check_scale("hs_video", hs_video, h8_video.shape[:2], "[batch, num_video]", h8_video)
    _check_scale("hs_audio", hs_audio, h8_audio.shape[:2], "[batch, num_audio]", h8_video)
    _check_scale("ws_video", ws_video, w8_video.shape[:1], "[dim]", h8_video)
    _check_scale("ws_audio", ws_audio, w8_audio.shape[:1], "[dim]", h8_video)
    batch = residual.shape[0]
    rows = (batch * h8_video.shape[1], batch * h8_audio.shape[1])
    if not runs_triton("expert_down", backend, w8_video, *rows, h8_video, h8_audio, residual, gate):
        k = w8_video.shape[1]
        video = _linear(h8_video, hs_video, w8_video, ws_video, b_video, k)
        audio = _linear(h8_audio, hs_audio, w8_audio, ws_audio, b_audio, k)
        return gated_residual(residual, gate, row_index, torch.cat((video, audio), 1).to(residual.dtype))
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    scales = (hs_video, hs_audio, ws_video, ws_audio)
    experts_op(out, None, h8_video, h8_audio, *weights, *scales, residual, gate, row_index)
    return out


def expert_up_fp8_reference(
    x8: torch.Tensor,
    x_scale: torch.Tensor,
    w8_video: torch.Tensor,
    ws_video: torch.Tensor,
    b_video: torch.Tensor,
    w8_audio: torch.Tensor,
    ws_audio: torch.Tensor,
    b_audio: torch.Tensor,
    *,
    num_video: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute :func:`expert_up_fp8` in plain PyTorch, unrounded, in ``dtype`` (fp32 or fp64)."""
    w_video, w_audio = _dequantized(w8_video, ws_video, dtype), _dequantized(w8_audio, ws_audio, dtype)
    x = _dequantized(x8, x_scale, dtype)
    return expert_up_reference(x, w_video, b_video, w_audio, b_audio, num_video=num_video)


def expert_down_fp8_reference(
    h8_video: torch.Tensor,
    hs_video: torch.Tensor,
    h8_audio: torch.Tensor,
    hs_audio: torch.Tensor,
    w8_video: torch.Tensor,
    ws_video: torch.Tensor,
    b_video: torch.Tensor,
    w8_audio: torch.Tensor,
    ws_audio: torch.Tensor,
    b_audio: torch.Tensor,
    residual: torch.Tensor,
    gate: torch.Tensor,
    row_index: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Compute :func:`expert_down_fp8` in plain PyTorch, unrounded, in ``dtype`` (fp32 or fp64)."""
    video, audio = _dequantized(h8_video, hs_video, dtype), _dequantized(h8_audio, hs_audio, dtype)
    w_video, w_audio = _dequantized(w8_video, ws_video, dtype), _dequantized(w8_audio, ws_audio, dtype)
    return expert_down_reference(video, audio, w_video, b_video, w_audio, b_audio, residual, gate, row_index)


def _dequantized(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.to(dtype) * scale.to(dtype)[..., None]


def _linear(
    a8: torch.Tensor,
    a_scale: torch.Tensor,
    w8: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
    k_video: int,
) -> torch.Tensor:
    """Multiply with the library's fp8 product where there is one, else dequantised in fp32; add the bias."""
    if a8.is_cuda and a8.shape[1] > 0 and torch.cuda.get_device_capability(a8.device) >= MIN_CAPABILITY:
        # With scales of rows and columns every supported PyTorch gives bf16 results and takes bf16 biases.
        y = torch._scaled_mm(
            a8.reshape(-1, a8.shape[2]),
            w8.t(),
            scale_a=a_scale.reshape(-1, 1),
            scale_b=w_scale.reshape(1, -1),
            bias=bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            # As exact as the Triton kernel's own sums, which the video expert decides on, and no more.
            use_fast_accum=not promotes(k_video),
        )
        return y.reshape(*a8.shape[:2], -1)
    product = linear(a8.float(), w8.float()) * a_scale[..., None] * w_scale
    return product + bias.float()


def _check_scale(
    name: str, scale: torch.Tensor, shape: tuple[int, ...], spelled: str, like: torch.Tensor
) -> None:
    require_shape(name, scale, shape, spelled)
    require_dtype(name, scale, (torch.float32,))
    require_contiguous(name, scale)
    require_device(name, scale, like.device, "the quantised values")
