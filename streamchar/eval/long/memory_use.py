"""Memory in use by the process that speaks."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ...config import CLOCK
from .streams import StreamPiece

#: Frames between two measurements, each of which delays the next chunk a little.
MEMORY_EVERY = 10 * CLOCK.frame_rate
_STATM = Path("/proc/self/statm")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def with_memory(pieces: Iterable[StreamPiece]) -> Iterator[StreamPiece]:
    """Add this process's memory to pieces that were computed here, every :data:`MEMORY_EVERY` frames."""
    frames = due = 0
    for piece in pieces:
        if piece.compute_seconds is not None and frames >= due:
            piece = replace(piece, memory_megabytes=resident_megabytes())
            due = frames + MEMORY_EVERY
        frames += len(piece.video)
        yield piece


def resident_megabytes() -> float:
    """Return the resident memory of this process in megabytes.

    With glibc, freed blocks that the allocator still keeps are returned to the system first. Their size
    depends on the order of large allocations and says nothing about growth.
    """
    if _TRIM is not None:
        _TRIM(0)
    pages = int(_STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
