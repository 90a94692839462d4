"""Argument checks of the expert FFN, shared by its 16-bit and its fp8 functions."""

import torch

from ._checks import (
    require,
    require_contiguous,
    require_device,
    require_dtype,
    require_last_contiguous,
    require_shape,
)
from ._compat import FP8

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
#: Weight and bias of the video expert, then of the audio expert.
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def check_up(
    a_name: str,
    a: torch.Tensor,
    weights: Weights,
    num_video: int,
    bias_dtypes: tuple[torch.dtype, ...] | None = None,
) -> None:
    """Check the operands of an up projection; without ``bias_dtypes`` biases have a's dtype."""
    require_shape(a_name, a, (None, None, None), "[batch, tokens, dim]")
    require(a.numel() > 0, a_name, "non-empty", list(a.shape))
    _check_rows(a_name, a)
    limit = f"between 0 and {a.shape[1]} (tokens of {a_name})"
    require(0 <= num_video <= a.shape[1], "num_video", limit, num_video)
    for expert in ("video", "audio"):
        weight = _check_weights(expert, weights, a, (None, a.shape[2]), "[hidden, dim]", a_name, bias_dtypes)
        # The next projection reads these columns as its rows.
        width = weight.shape[0] * weight.element_size()
        _require_16_bytes(f"w_{expert}.shape[0]", width, "pad the hidden width with rows of zeros")


def check_down(
    a_name: str,
    h_video: torch.Tensor,
    h_audio: torch.Tensor,
    weights: Weights,
    residual: torch.Tensor,
    gate: torch.Tensor,
    row_index: torch.Tensor,
    bias_dtypes: tuple[torch.dtype, ...] | None = None,
) -> None:
    """Check the operands of a down projection; ``a_name`` begins the hidden tensors' names."""
    like = f"{a_name}_video"
    require_shape("residual", residual, (None, None, None), "[batch, tokens, dim]")
    require(residual.numel() > 0, "residual", "non-empty", list(residual.shape))
    batch, tokens, dim = residual.shape
    _require_16_bytes("residual.shape[2]", dim * h_video.element_size(), "pad dim with zeros")
    for expert, hidden in (("video", h_video), ("audio", h_audio)):
        name = f"{a_name}_{expert}"
        require_shape(name, hidden, (batch, None, None), "[batch, tokens, hidden]")
        require_dtype(name, hidden, (h_video.dtype,))
        require_device(name, hidden, h_video.device, like)
        _check_rows(name, hidden)
        _check_weights(expert, weights, hidden, (dim, hidden.shape[2]), "[dim, hidden]", name, bias_dtypes)
    count = h_video.shape[1] + h_audio.shape[1]
    require(tokens == count, "residual.shape[1]", f"{count}, the tokens of both experts", tokens)
    require_shape("gate", gate, (batch, None, dim), "[batch, rows, dim]")
    require(gate.shape[1] > 0, "gate.shape[1]", "at least 1 modulation row", gate.shape[1])
    require_dtype("gate", gate, FLOATS)
    require_last_contiguous("gate", gate)
    require_shape("row_index", row_index, (batch, tokens), "[batch, tokens]")
    require_dtype("row_index", row_index, (torch.int32,))
    require_contiguous("row_index", row_index)
    require_contiguous("residual", residual)
    for name, tensor in {"residual": residual, "gate": gate, "row_index": row_index}.items():
        require_device(name, tensor, h_video.device, like)


def _check_weights(
    expert: str,
    weights: Weights,
    like: torch.Tensor,
    shape: tuple[int | None, int],
    spelled: str,
    like_name: str,
    bias_dtypes: tuple[torch.dtype, ...] | None,
) -> torch.Tensor:
    weight, bias = weights[:2] if expert == "video" else weights[2:]
    name = f"w8_{expert}" if like.dtype == FP8 else f"w_{expert}"
    require_shape(name, weight, shape, spelled)
    require_dtype(name, weight, (like.dtype,))
    require_contiguous(name, weight)
    require_device(name, weight, like.device, like_name)
    require_shape(f"b_{expert}", bias, (weight.shape[0],), "[out]")
    require_dtype(f"b_{expert}", bias, bias_dtypes or (like.dtype,))
    require_contiguous(f"b_{expert}", bias)
    require_device(f"b_{expert}", bias, like.device, like_name)
    return weight


def _check_rows(name: str, tensor: torch.Tensor) -> None:
    require_contiguous(name, tensor)
    width = tensor.shape[-1] * tensor.element_size()
    _require_16_bytes(f"{name}.shape[-1]", width, "pad the width of both operands with zeros")


def _require_16_bytes(name: str, width: int, remedy: str) -> None:
    # The copy engine addresses rows in units of 16 bytes.
    require(width > 0 and width % 16 == 0, name, "a positive multiple of 16 bytes", f"{width} bytes", remedy)
