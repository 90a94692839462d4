"""Attention that others ship, each under one signature: q, k, v [batch, tokens, heads, head_dim]."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import eager

Attention = Callable[..., torch.Tensor]

#: Modules under which FlashAttention-3's forward is found: the ``fa3-fwd`` wheel's, and its own build's.
FA3_MODULES = ("fa3_fwd_interface", "flash_attn_interface")


def attention(device: torch.device, compiled: bool) -> dict[str, Attention]:
    """Return the 16-bit implementations that can run on ``device``, by name."""
    if device.type != "cuda":
        return {"sdpa": eager.attention}
    found: dict[str, Attention] = {
        "sdpa flash": _sdpa(SDPBackend.FLASH_ATTENTION),
        # PyTorch does not choose cuDNN by itself on Hopper, where it is the faster of its backends.
        "sdpa cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    }
    if compiled:
        found["flex"] = _flex()
    fa3 = flash_attention_3()
    if fa3 is not None:
        found["fa3"] = lambda q, k, v: _first(fa3.flash_attn_func(q, k, v))
    return found


def attention_fp8(device: torch.device) -> dict[str, Attention]:
    """Return the 8-bit implementations: q, k, v float8_e4m3fn and one scale [batch, heads] for all three."""
    fa3 = flash_attention_3() if device.type == "cuda" else None
    if fa3 is None:
        return {}

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return _first(fa3.flash_attn_func(q, k, v, q_descale=scale, k_descale=scale, v_descale=scale))

    return {"fa3 fp8": run}


def flash_attention_3() -> ModuleType | None:
    """Return FlashAttention-3's module, None where its wheel is not installed or does not load."""
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
