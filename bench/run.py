"""Stages of a run in order of importance, against a deadline that holds even in the middle of one."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

#: Seconds after which a stage is interrupted again that has swallowed the first time.
_AGAIN = 5.0


class OutOfTimeError(BaseException):
    """The deadline has passed; no Exception, so that no compiler takes it for a failure of its own."""


@dataclass
class Run:
    """What has been done of a run and what has not.

    Attributes:
        seconds: until the deadline, from when the run was made.
        keep: called after every stage, so that a run cut short keeps what it has.
        say: told of every stage before it begins.
        clock: seconds that never run backwards.
        failed: stages that raised, each with its reason.
        left_out: stages that did not begin, or not end, before the deadline.
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
        """Seconds since the run was made."""
        return self.clock() - self._started

    def stage(self, name: str, work: Callable[[], T]) -> T | None:
        """Do the work and return its result; None where it failed or was left out, which is noted.

        One stage that does not run must not cost the others their turn: no Exception leaves it.
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
            self.left_out.append(f"{name} (broken off)")
        except Exception as error:  # whatever a kernel or a compiler does on its first day on a device
            self.failed.append(f"{name}: {type(error).__name__}: {error}"[:300])
        finally:
            self.keep()
        return None


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(signum: int, frame: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
