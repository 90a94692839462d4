"""The arguments of an expert projection, and what is required of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._shared.checks import require, require_contiguous, require_dtype, require_shape, require_tensor
from .._shared.compat import FP8

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
#: Dtypes of outputs, biases and residuals beside fp8 operands.
WIDE = FLOATS[:3]


class ExpertArgs(NamedTuple):
    """Arguments of one projection: up without ``a_audio``, down with it; fp8 if it has scales.

    Going up, ``a_video`` is the joint sequence, of which the first ``num_video`` tokens are video, and both
    outputs are written. Going down, ``out_video`` is the joint sequence and the only output.
    """

    a_video: Tensor
    a_audio: Tensor | None
    w_video: Tensor
    b_video: Tensor
    w_audio: Tensor
    b_audio: Tensor
    num_video: int
    a_scale_video: Tensor | None = None
    a_scale_audio: Tensor | None = None
    w_scale_video: Tensor | None = None
    w_scale_audio: Tensor | None = None
    residual: Tensor | None = None
    gate: Tensor | None = None
    row_index: Tensor | None = None
    out_video: Tensor | None = None
    out_audio: Tensor | None = None


def check_up(args: ExpertArgs) -> None:
    """Require operands of an up projection that fit."""
    fp8 = args.w_scale_video is not None
    a, name = args.a_video, "x8" if fp8 else "x"
    require_dtype(name, a, (FP8,) if fp8 else FLOATS)
    require_shape(name, a, (None, None, None), "[batch, tokens, dim]")
    require(a.numel() > 0, name, "non-empty", list(a.shape))
    require_contiguous(name, a)
    _require_16_byte_rows(name, a)
    limit = f"between 0 and {a.shape[1]} (tokens of {name})"
    require(0 <= args.num_video <= a.shape[1], "num_video", limit, args.num_video)
    for expert in ("video", "audio"):
        weight = _check_weights(args, expert, ((None, a.shape[2]), "[hidden, dim]"), (name, a))
        # The next projection reads these columns as its rows.
        width = weight.shape[0] * weight.element_size()
        _require_16_bytes(f"w_{expert}.shape[0]", width, "pad the hidden width with rows of zeros")
    if fp8:
        _check_scale("x_scale", args.a_scale_video, (a.shape[:2], "[batch, tokens]"), a)
        _check_weight_scales(args, "[hidden]")


def check_down(args: ExpertArgs) -> None:
    """Require operands of a down projection that fit."""
    h_video, h_audio, residual, gate = args.a_video, args.a_audio, args.residual, args.gate
    assert h_audio is not None
    assert residual is not None
    assert gate is not None
    fp8 = args.w_scale_video is not None
    prefix = "h8" if fp8 else "h"
    like = f"{prefix}_video", h_video
    require_dtype(*like, (FP8,) if fp8 else FLOATS)
    require_shape("residual", residual, (None, None, None), "[batch, tokens, dim]")
    require(residual.numel() > 0, "residual", "non-empty", list(residual.shape))
    batch, tokens, dim = residual.shape
    _require_16_bytes("residual.shape[2]", dim * h_video.element_size(), "pad dim with zeros")
    for expert, hidden in (("video", h_video), ("audio", h_audio)):
        name = f"{prefix}_{expert}"
        shape = (batch, None, None), "[batch, tokens, hidden]"
        require_tensor(name, hidden, shape, (h_video.dtype,), like)
        _require_16_byte_rows(name, hidden)
        _check_weights(args, expert, ((dim, hidden.shape[2]), "[dim, hidden]"), (name, hidden))
    count = h_video.shape[1] + h_audio.shape[1]
    require(tokens == count, "residual.shape[1]", f"{count}, the tokens of both experts", tokens)
    of_rows, of_tokens = ((batch, None, dim), "[batch, rows, dim]"), ((batch, tokens), "[batch, tokens]")
    require_tensor("gate", gate, of_rows, FLOATS, like, contiguous="last")
    require(gate.shape[1] > 0, "gate.shape[1]", "at least 1 modulation row", gate.shape[1])
    require_tensor("row_index", args.row_index, of_tokens, (torch.int32,), like)
    residual_dtypes = WIDE if fp8 else (h_video.dtype,)
    of_residual = (batch, tokens, dim), "[batch, tokens, dim]"
    require_tensor("residual", residual, of_residual, residual_dtypes, like)
    if fp8:
        _check_scale("hs_video", args.a_scale_video, (h_video.shape[:2], "[batch, num_video]"), h_video)
        _check_scale("hs_audio", args.a_scale_audio, (h_audio.shape[:2], "[batch, num_audio]"), h_video)
        _check_weight_scales(args, "[dim]")


def _check_weights(
    args: ExpertArgs, expert: str, shape: tuple[tuple[int | None, int], str], like: tuple[str, Tensor]
) -> Tensor:
    weight, bias = (args.w_video, args.b_video) if expert == "video" else (args.w_audio, args.b_audio)
    dtype = like[1].dtype
    fp8 = dtype == FP8
    require_tensor(f"{'w8' if fp8 else 'w'}_{expert}", weight, shape, (dtype,), like)
    bias_dtypes = WIDE if fp8 else (dtype,)
    require_tensor(f"b_{expert}", bias, ((weight.shape[0],), "[out]"), bias_dtypes, like)
    return weight


def _check_weight_scales(args: ExpertArgs, spelled: str) -> None:
    _check_scale("ws_video", args.w_scale_video, (args.w_video.shape[:1], spelled), args.a_video)
    _check_scale("ws_audio", args.w_scale_audio, (args.w_audio.shape[:1], spelled), args.a_video)


def _check_scale(name: str, scale: Tensor | None, shape: tuple[torch.Size, str], values: Tensor) -> None:
    require_tensor(name, scale, shape, (torch.float32,), ("the quantised values", values))


def _require_16_byte_rows(name: str, tensor: Tensor) -> None:
    width = tensor.shape[-1] * tensor.element_size()
    _require_16_bytes(f"{name}.shape[-1]", width, "pad the width of both operands with zeros")


def _require_16_bytes(name: str, width: int, remedy: str) -> None:
    # The copy engine addresses rows in units of 16 bytes.
    require(width > 0 and width % 16 == 0, name, "a positive multiple of 16 bytes", f"{width} bytes", remedy)
