"""Simulate a viewer's playback from the times at which chunks arrived.

Playback starts with the first chunk and runs without a break while there is media to play. When the media
runs out, playback stalls until the next chunk arrives.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from streamchar.session import PacingError


@dataclass(frozen=True)
class Viewing:
    """The playback of one viewer.

    Attributes:
        chunks: chunks received.
        first_seconds: time of the first picture on the clock of the arrivals.
        deadlines_met: share of chunks that arrived in time for a broadcast, which starts with the first chunk
            and never waits.
        underruns: stalls of a viewer who waits for late chunks.
        worst_stall_seconds: the longest stall.
        stalled_seconds: all stalls together.
    """

    chunks: int
    first_seconds: float
    deadlines_met: float
    underruns: int
    worst_stall_seconds: float
    stalled_seconds: float


def watch(
    arrivals: Sequence[float], chunk_seconds: float | Sequence[float], *, start_delay: float = 0.0
) -> Viewing:
    """Simulate the playback of chunks that arrive at the given times.

    A chunk that arrives exactly when the previous one ends is in time.

    Args:
        arrivals: arrival time of each chunk in seconds, in order, on any clock.
        chunk_seconds: playback time of every chunk, or one value per chunk.
        start_delay: seconds that the viewer buffers after the first arrival before playback starts.

    Raises:
        PacingError: there are no arrivals, they are not finite or not in order, a duration is not finite and
            above 0, or ``start_delay`` is negative.
    """
    count = len(arrivals)
    PacingError.require(count > 0, "arrivals", "at least one time", "none")
    durations = [float(chunk_seconds)] * count if isinstance(chunk_seconds, (int, float)) else chunk_seconds
    limit = f"one number, or one for each of {count} chunks"
    PacingError.require(len(durations) == count, "chunk_seconds", limit, len(durations))
    ok = all(math.isfinite(length) and length > 0 for length in durations)
    PacingError.require(ok, "chunk_seconds", "finite and above 0", chunk_seconds)
    PacingError.require(all(map(math.isfinite, arrivals)), "arrivals", "finite", list(arrivals))
    ok = all(earlier <= later for earlier, later in itertools.pairwise(arrivals))
    PacingError.require(ok, "arrivals", "in ascending order", list(arrivals))
    PacingError.require(
        math.isfinite(start_delay) and start_delay >= 0, "start_delay", "finite and at least 0", start_delay
    )

    met, stalls = 0, [0.0]
    broadcast = arrivals[0] + start_delay
    stalled = 0.0
    for arrival, length in zip(arrivals, durations):
        met += arrival <= broadcast
        # Kept apart from the broadcast's time, so that without stalls both have exactly the same deadlines.
        if arrival > broadcast + stalled:
            stalls.append(arrival - (broadcast + stalled))
            stalled = arrival - broadcast
        broadcast += length
    return Viewing(count, float(arrivals[0]), met / count, len(stalls) - 1, max(stalls), sum(stalls))
