"""Attention of a chunk's tokens over the segments of the KV cache."""

from .fp8 import joint_attention_fp8
from .interface import joint_attention

__all__ = ["joint_attention", "joint_attention_fp8"]
