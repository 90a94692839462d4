"""From the fused QKV projection to a rotated q and a filled KV cache."""

from .fp8 import qkv_prologue_fp8
from .interface import qkv_prologue

__all__ = ["qkv_prologue", "qkv_prologue_fp8"]
