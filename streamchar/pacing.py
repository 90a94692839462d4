"""Generation against playback: a pacer that holds generation back, and a viewer that judges what it got.

Both rest on one rule. Playback starts with the first chunk and runs without a break while there are media;
where they run out it stalls, and goes on with the chunk that comes. So all that has to be known is the moment
at which the media delivered so far run out.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: The shortest wait, in seconds; below it none is made, so that rounding and early timers are not spun on.
SHORTEST_WAIT = 1e-3


class PacingError(ValueError):
    """A time or duration that makes no sense.

    Attributes:
        argument: name of the offending argument.
        limit: what is accepted.
        value: what was given.
    """

    def __init__(self, argument: str, limit: str, value: object) -> None:
        self.argument, self.limit, self.value = argument, limit, value
        super().__init__(f"{argument} must be {limit}, got {value}")


def _require(ok: bool, argument: str, limit: str, value: object) -> None:
    if not ok:
        raise PacingError(argument, limit, value)


@dataclass(frozen=True)
class Viewing:
    """What a viewer lived through.

    Attributes:
        chunks: chunks received.
        first_seconds: from the start of the clock to the first picture.
        deadlines_met: share of the chunks in time for a broadcast that starts with the first and never waits.
        underruns: chunks that came after a viewer who does wait had run out of media.
        worst_stall_seconds: the longest of those waits.
        stalled_seconds: all of them together.
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
    """Simulate a viewer of chunks that arrive at given times.

    Playback starts ``start_delay`` after the first arrival. A chunk that arrives at the very moment at which
    the one before it ends is in time.

    Args:
        arrivals: seconds on any one clock that starts with the request, not falling, one a chunk.
        chunk_seconds: playback time of a chunk, the budget; or one for each.
        start_delay: seconds that the viewer buffers before it starts.

    Raises:
        PacingError: no arrivals, times that fall or are not finite, or durations that are not above 0.
    """
    count = len(arrivals)
    _require(count > 0, "arrivals", "one time a chunk, one chunk at least", "none")
    durations = [float(chunk_seconds)] * count if isinstance(chunk_seconds, (int, float)) else chunk_seconds
    limit = f"one number, or one for each of {count} chunks"
    _require(len(durations) == count, "chunk_seconds", limit, len(durations))
    ok = all(math.isfinite(length) and length > 0 for length in durations)
    _require(ok, "chunk_seconds", "finite and above 0", chunk_seconds)
    _require(all(map(math.isfinite, arrivals)), "arrivals", "finite", list(arrivals))
    ok = all(earlier <= later for earlier, later in itertools.pairwise(arrivals))
    _require(ok, "arrivals", "in order of time", list(arrivals))
    _require(math.isfinite(start_delay) and start_delay >= 0, "start_delay", "0 or more", start_delay)

    met, stalls = 0, [0.0]
    broadcast = arrivals[0] + start_delay
    waited = 0.0
    for arrival, length in zip(arrivals, durations):
        met += arrival <= broadcast
        # Kept apart from the broadcast's time, so that a viewer who never waits has exactly its deadlines.
        if arrival > broadcast + waited:
            stalls.append(arrival - (broadcast + waited))
            waited = arrival - broadcast
        broadcast += length
    return Viewing(count, float(arrivals[0]), met / count, len(stalls) - 1, max(stalls), sum(stalls))


class Pacer:
    """Hold generation back to a given lead over playback.

    Tell it of each chunk with :meth:`delivered`; call :meth:`wait` before generating the next: it returns
    when at most ``max_lead_seconds`` of media (and a millisecond) are left to play.

    Args:
        max_lead_seconds: media that may be left to play when generation goes on, 0 or more: one chunk's
            duration keeps generation one chunk ahead. Infinity never waits.
        clock: seconds that never run backwards.
        sleep: wait so many seconds; may come back early, and cuts the wait short by returning True, as
            ``threading.Event.wait`` does when the event is set. By default real time passes.
    """

    def __init__(
        self,
        max_lead_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        _require(max_lead_seconds >= 0, "max_lead_seconds", "0 or more", max_lead_seconds)
        self.max_lead_seconds = max_lead_seconds
        self._clock, self._sleep = clock, sleep
        self._runs_out: float | None = None
        self.underruns = 0
        self.worst_stall_seconds = 0.0

    @property
    def lead(self) -> float:
        """Seconds of media delivered and not yet played; 0 before the first chunk and while stalled."""
        # Read once: another thread may restart meanwhile.
        runs_out = self._runs_out
        return 0.0 if runs_out is None else max(0.0, runs_out - self._clock())

    @property
    def delay(self) -> float:
        """Seconds until generation may go on; 0 when it may now."""
        excess = self.lead - self.max_lead_seconds
        return excess if excess >= SHORTEST_WAIT else 0.0

    def delivered(self, seconds: float) -> None:
        """Note that ``seconds`` of media have just been handed over; the first start playback.

        Raises:
            PacingError: ``seconds`` is not finite or not above 0.
        """
        _require(math.isfinite(seconds) and seconds > 0, "seconds", "finite and above 0", seconds)
        now, runs_out = self._clock(), self._runs_out
        if runs_out is not None and now > runs_out:
            self.underruns += 1
            self.worst_stall_seconds = max(self.worst_stall_seconds, now - runs_out)
        self._runs_out = (now if runs_out is None else max(now, runs_out)) + seconds

    def restart(self) -> None:
        """Forget what is left to play, as after an interruption; the next chunk starts playback again."""
        self._runs_out = None

    def wait(self, cancelled: threading.Event | None = None) -> bool:
        """Wait until generation may go on; return False if ``sleep`` or ``cancelled`` cut the wait short."""
        cancelled = cancelled or threading.Event()
        sleep = self._sleep or cancelled.wait
        while (delay := self.delay) > 0:
            if cancelled.is_set() or sleep(delay) is True:
                return False
        return True
