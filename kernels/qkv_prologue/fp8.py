"""The QKV prologue with fp8 e4m3 results, through the same kernel."""

from torch import Tensor

from .._shared.dispatch import Backend
from .arguments import QkvPrologueArgs
from .interface import run


def qkv_prologue_fp8(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> Tensor:
    """Do :func:`.qkv_prologue` with q, k and v in fp8 e4m3: ``clamp(x / scale, -448, 448)``.

    The scales are inputs and are not measured: rows written at different times share one scale, and the range
    of normalised heads is known beforehand. Only these arguments differ from :func:`.qkv_prologue`:

    Args:
        k_cache: [batch, capacity, kv_heads, head_dim] float8_e4m3fn, updated in place.
        v_cache: [batch, kv_heads, head_dim, capacity] float8_e4m3fn, transposed, updated in place. Stores are
            16 bytes wide where capacity and the start of a run of slots are multiples of 16, and single bytes
            elsewhere.
        q_scale: [batch, num_heads] fp32, above 0.
        k_scale: [batch, kv_heads] fp32, above 0.
        v_scale: [batch, kv_heads] fp32, above 0.

    Returns:
        q: [batch, tokens, num_heads, head_dim] float8_e4m3fn.

    Raises the errors of :func:`.qkv_prologue`.
    """
    args = QkvPrologueArgs(qkv, q_norm, k_norm, cos, sin, slots, k_cache, v_cache, num_heads, eps)
    return run(args._replace(q_scale=q_scale, k_scale=k_scale, v_scale=v_scale), backend)
