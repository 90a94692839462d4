"""A run of stages in order of importance, with a deadline that also interrupts a running stage."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

#: Seconds between interrupts of a stage that swallows them.
_INTERRUPT_INTERVAL = 5.0


class OutOfTimeError(BaseException):
    """The deadline has passed. Not an Exception, so that no compiler handles it as its own failure."""


@dataclass
class Run:
    """Runs stages until a deadline and records those that failed or did not run.

    Attributes:
        seconds: time from the creation of the run to the deadline.
        keep: called after every stage, so that an interrupted run keeps its results.
        say: called with the name of every stage before it begins.
        clock: returns monotonic seconds.
        failed: stages that raised an exception, each with the reason.
        left_out: stages that did not begin or did not end before the deadline.
    """

    seconds: float
    keep: Callable[[], None]
    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the run was created."""
        return self.clock() - self._started

    def stage(self, name: str, work: Callable[[], T]) -> T | None:
        """Run the work and return its result; record a failure or a missed deadline and return None.

        No Exception leaves this method, so that the following stages still run.
        """
        left = self.seconds - self.elapsed
        if left <= 0:
            self.left_out.append(name)
            return None
        self.say(name)
        try:
            with _interrupted_after(left):
                return work()
        except OutOfTimeError:
            self.left_out.append(f"{name} (interrupted)")
        except Exception as error:  # a kernel or a compiler may raise anything on a new device
            self.failed.append(f"{name}: {type(error).__name__}: {error}"[:300])
        finally:
            self.keep()
        return None


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(signum: int, frame: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _INTERRUPT_INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
