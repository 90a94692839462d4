"""The QKV prologue: checks, choice of the backend, and the registered operator."""

import torch
from torch import Tensor

from .._shared.compat import FP8
from .._shared.dispatch import Backend, use_triton
from .._shared.operator import Operator
from .arguments import FLOATS, QkvPrologueArgs, check
from .forward import launch
from .reference import qkv_prologue_reference

operator = Operator("qkv_prologue", QkvPrologueArgs, launch, mutates=("k_cache", "v_cache", "q"))


def qkv_prologue(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> Tensor:
    """Normalise and rotate q and k, return q, and write k and v to their slots of the KV cache.

    Args:
        qkv: [batch, tokens, (num_heads + 2 * kv_heads) * head_dim], the projection's q, k and v heads;
            bf16, fp16 or fp32 (fp64 on the PyTorch path).
        q_norm: [head_dim], RMSNorm weight of q, any float dtype.
        k_norm: [head_dim], RMSNorm weight of k, any float dtype.
        cos: [tokens, head_dim / 2] fp32, see :func:`rope_tables`; the pairs are (i, i + head_dim / 2).
        sin: as ``cos``.
        slots: [batch, tokens] int32, the slot of each token's k and v. A token whose slot is outside
            [0, capacity) is not stored. If tokens share a slot, any of them may win, in k and v
            independently.
        k_cache: [batch, capacity, kv_heads, head_dim] in qkv.dtype, updated in place; other slots keep their
            values.
        v_cache: as ``k_cache``.
        num_heads: query heads; a multiple of kv_heads.
        eps: added to the mean square.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        q: [batch, tokens, num_heads, head_dim] in qkv.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not match.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: RMSNorm, arXiv 1910.07467 equation 4; rotary embedding, arXiv 2104.09864 section 3.4.2.
    """
    args = QkvPrologueArgs(qkv, q_norm, k_norm, cos, sin, slots, k_cache, v_cache, num_heads, eps)
    return run(args, backend)


def run(args: QkvPrologueArgs, backend: Backend) -> Tensor:
    """Check the arguments and run the form, 16-bit or fp8, that the scales select."""
    check(args, FLOATS[:3] if backend == "triton" else FLOATS)
    qkv, k_cache = args.qkv, args.k_cache
    floats = (qkv, args.q_norm, args.k_norm, args.cos, args.sin, k_cache, args.v_cache)
    if not use_triton(backend, *floats):
        return qkv_prologue_reference(args)
    shape = (*qkv.shape[:2], args.num_heads, k_cache.shape[3])
    q = torch.empty(shape, dtype=qkv.dtype if args.q_scale is None else FP8, device=qkv.device)
    operator(args._replace(q=q))
    return q
