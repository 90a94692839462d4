"""Hold generation back to a given lead over playback."""

import math
import threading
import time
from collections.abc import Callable

from ..errors import ArgumentError

#: The shortest wait, in seconds; below it none is made, so that rounding and early timers are not spun on.
SHORTEST_WAIT = 1e-3


class PacingError(ArgumentError):
    """A time or duration that makes no sense."""


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
        PacingError.require(max_lead_seconds >= 0, "max_lead_seconds", "0 or more", max_lead_seconds)
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
        PacingError.require(math.isfinite(seconds) and seconds > 0, "seconds", "finite and above 0", seconds)
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
