"""Decoder output packed into RGB and YUV bytes."""

from .interface import pack_frames

__all__ = ["pack_frames"]
