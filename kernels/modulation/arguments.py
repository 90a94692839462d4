"""The arguments of the modulation kernel, and what is required of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._shared.checks import require, require_dtype, require_last_contiguous, require_shape, require_tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
#: The widest row that one program holds in registers.
MAX_DIM = 16384


class ModulationArgs(NamedTuple):
    """Arguments of one call. ``residual``, ``out`` and ``token_scale`` are written.

    With ``branch`` and ``gate`` the gated residual is added first; with ``scale`` and ``shift`` the result is
    modulated; with ``token_scale`` it is quantised to fp8.
    """

    x: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    row_index: Tensor | None = None
    norm: str = "rms"
    eps: float = 1e-6
    residual: Tensor | None = None
    out: Tensor | None = None
    token_scale: Tensor | None = None


def check(args: ModulationArgs) -> None:
    """Require arguments that fit, with or without a gated residual."""
    x, scale = args.x, args.scale
    assert scale is not None
    check_stream(x)
    batch, tokens, dim = x.shape
    require(args.norm in ("rms", "layer", "none"), "norm", "'rms', 'layer' or 'none'", repr(args.norm))
    if args.branch is not None:
        shape = x.shape, "the shape of x"
        require_tensor("branch", args.branch, shape, (x.dtype,), ("x", x), contiguous="last")
    rows = scale.shape[1] if scale.dim() == 3 else None
    for name, tensor in {"scale": scale, "shift": args.shift, "gate": args.gate}.items():
        if tensor is not None:
            of_rows = (batch, rows, dim), "[batch, rows, dim]"
            require_tensor(name, tensor, of_rows, FLOATS, ("x", x), contiguous="last")
    require(scale.shape[1] > 0, "scale.shape[1]", "at least 1 modulation row", scale.shape[1])
    of_tokens = (batch, tokens), "[batch, tokens]"
    require_tensor("row_index", args.row_index, of_tokens, (torch.int32,), ("x", x))


def check_stream(x: Tensor) -> None:
    """Require a residual stream that fits."""
    require_shape("x", x, (None, None, None), "[batch, tokens, dim]")
    require(x.numel() > 0, "x", "non-empty", list(x.shape))
    require_dtype("x", x, FLOATS)
    require_last_contiguous("x", x)
    require(x.shape[2] <= MAX_DIM, "x.shape[2]", f"at most {MAX_DIM}", x.shape[2])
