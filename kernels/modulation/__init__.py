"""Norm, adaptive modulation, gated residual and fp8 quantisation in one pass."""

from .fp8 import gated_norm_modulate_fp8, norm_modulate_fp8, quantize_fp8
from .interface import gated_norm_modulate, norm_modulate

__all__ = [
    "gated_norm_modulate",
    "gated_norm_modulate_fp8",
    "norm_modulate",
    "norm_modulate_fp8",
    "quantize_fp8",
]
