"""Attention from other libraries behind one signature: q, k, v [batch, tokens, heads, head_dim]."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import eager

Attention = Callable[..., torch.Tensor]

#: Modules that hold FlashAttention-3's forward: the ``fa3-fwd`` wheel's, and that of a build from source.
FA3_MODULES = ("fa3_fwd_interface", "flash_attn_interface")


def attention(device: torch.device, compiled: bool) -> dict[str, Attention]:
    """Return, by name, the 16-bit implementations that can run on ``device``."""
    if device.type != "cuda":
        return {"sdpa": eager.attention}
    found: dict[str, Attention] = {
        "sdpa flash": _sdpa(SDPBackend.FLASH_ATTENTION),
        # On Hopper cuDNN is PyTorch's fastest backend, but PyTorch does not choose it on its own.
        "sdpa cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    }
    if compiled:
        found["flex"] = _flex()
    fa3 = flash_attention_3()
    if fa3 is not None:
        found["fa3"] = lambda q, k, v: _first(fa3.flash_attn_func(q, k, v))
    return found


def attention_fp8(device: torch.device) -> dict[str, Attention]:
    """Return, by name, the 8-bit implementations.

    They take q, k and v in float8_e4m3fn and one scale [batch, heads] that applies to all three.
    """
    fa3 = flash_attention_3() if device.type == "cuda" else None
    if fa3 is None:
        return {}

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return _first(fa3.flash_attn_func(q, k, v, q_descale=scale, k_descale=scale, v_descale=scale))

    return {"fa3 fp8": run}


def flash_attention_3() -> ModuleType | None:
    """Return FlashAttention-3's module, or None if it is not installed or does not load."""
    for name in FA3_MODULES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):
            continue
    return None


def _first(result: Any) -> torch.Tensor:
    first: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return first


def _sdpa(backend: SDPBackend) -> Attention:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)

    return run


def _flex() -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = compiled(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)

    return run
