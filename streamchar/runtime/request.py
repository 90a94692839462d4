"""A request for one chunk, and the chunk on its way to the host."""

import threading
from dataclasses import dataclass, field
from enum import Enum, auto

from ..errors import SessionClosedError
from ..types import Chunk, Media, SpokenWord
from .queues import COMPLETED, Completion
from .timeline import Timeline

LOST = "this session lost a chunk and cannot continue; close it and open a new one"


class RequestState(Enum):
    """Where a request stands.

    ::

        NEW -> WAITING -> RUNNING -> SERVED      the chunk is made; ``pending`` holds it
                 |           |
                 |           +-----> FAILED      ``error`` says why
                 |           +-----> CANCELLING  withdrawn; takes effect at the next denoising step
                 v                       |
             CANCELLED <-----------------+-----> SERVED if all steps were done
    """

    NEW = auto()
    WAITING = auto()
    RUNNING = auto()
    CANCELLING = auto()
    CANCELLED = auto()
    SERVED = auto()
    FAILED = auto()


_SETTLED = (RequestState.CANCELLED, RequestState.SERVED, RequestState.FAILED)


@dataclass
class PendingChunk:
    """A chunk on its way to the host.

    Attributes:
        index: index of the chunk in its session.
        started: when its pass began, in seconds of ``time.perf_counter``.
        stages: the queued work of each stage.
        located: done when the pointer's positions are on the host.
        start_sample: first sample of the chunk on the session's clock.
        words: words said in the chunk.
        arrived: done when the host has the chunk.
        media: the chunk on the device, one entry once its copy has run.
        host: the same on the host.
    """

    index: int
    started: float
    stages: dict[str, list[Completion]]
    located: Completion
    start_sample: int = 0
    words: tuple[SpokenWord, ...] = ()
    arrived: Completion = COMPLETED
    media: list[Media] = field(default_factory=list)
    host: list[Media] = field(default_factory=list)


@dataclass(eq=False)
class ChunkRequest:
    """One request for one chunk of a row; the scheduler and the executor fill it in.

    Attributes:
        row: index of the row.
        timeline: transcript and clock of the row's session.
        state: where the request stands.
        released: set once no pass reads or writes anything of the row for this request.
        pending: the chunk on its way, None before its latents are denoised.
        chunk: the chunk.
        error: why there is no chunk.
    """

    row: int
    timeline: Timeline
    state: RequestState = RequestState.NEW
    released: threading.Event = field(default_factory=threading.Event)
    pending: PendingChunk | None = None
    chunk: Chunk | None = None
    error: BaseException | None = None

    @property
    def settled(self) -> bool:
        """Whether no pass will work for this request any more."""
        return self.state in _SETTLED

    def settle(self, state: RequestState) -> None:
        """Enter a final state."""
        self.state = state
        self.released.set()

    def lose(self, error: BaseException) -> None:
        """Drop a chunk of which some was made: its session cannot continue."""
        self.timeline.lost = True
        self.pending = None
        # Ctrl-C is raised in the thread that it reached, not in the threads of the sessions that it hit.
        self.error = error if isinstance(error, Exception) else SessionClosedError(LOST)
