"""Media files: write MP4 and load reference images."""

from .image import ImageError, load_reference
from .mp4 import MediaError, Mp4Writer, require_writable

__all__ = ["ImageError", "MediaError", "Mp4Writer", "load_reference", "require_writable"]
