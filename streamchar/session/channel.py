"""What a session shares with its speeches."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ..config import Preset
from ..errors import SessionClosedError
from ..runtime.request import LOST, ChunkRequest
from ..runtime.timeline import Timeline
from ..types import Chunk
from .pacer import Pacer


class ChunkScheduler(Protocol):
    """What a session knows of the scheduler; see :class:`streamchar.runtime.scheduler.Scheduler`."""

    def submit(self, request: ChunkRequest) -> None:
        """Make the requested chunk; return when it is on the host, failed or withdrawn."""

    def withdraw(self, request: ChunkRequest) -> None:
        """Take a request back without waiting."""

    def release(self, row: int) -> None:
        """Free the row."""


class Channel:
    """One row of an engine as a session and its speeches see it.

    Attributes:
        scheduler: makes chunks.
        row: index of the engine's row.
        timeline: transcript and clock.
        preset: every size.
        pacer: holds generation back; None to make chunks as fast as they are requested.
        threads: where coroutines wait for chunks.
    """

    def __init__(
        self,
        scheduler: ChunkScheduler,
        row: int,
        timeline: Timeline,
        preset: Preset,
        pacer: Pacer | None,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.scheduler, self.row, self.timeline, self.preset = scheduler, row, timeline, preset
        self.pacer, self.threads = pacer, threads
        self._delivered_samples, self._handing_over = 0, threading.Lock()
        self._closed, self._closing = False, threading.Lock()

    def require_open(self) -> None:
        """Refuse to go on with a session that is closed or lost a chunk.

        Raises:
            SessionClosedError: it is.
        """
        if self.timeline.lost:
            raise SessionClosedError(LOST)
        if self._closed:
            raise SessionClosedError("this session is closed; open a new one")

    def request(self) -> ChunkRequest:
        """Return a new request for the next chunk."""
        return ChunkRequest(self.row, self.timeline)

    def hand_over(self, chunk: Chunk) -> None:
        """Note that a chunk is handed to the user, whose player plays it."""
        with self._handing_over:
            self._delivered_samples = chunk.start_sample + self.preset.samples
            if self.pacer is not None:
                self.pacer.delivered(self.preset.seconds)

    def cut_playback(self) -> int | None:
        """Restart the pacer and return the first sample that was not played; None without a pacer."""
        if self.pacer is None:
            return None
        with self._handing_over:
            played = self._delivered_samples - round(self.pacer.lead * self.preset.clock.sample_rate)
            self.pacer.restart()
        return played

    def close(self) -> None:
        """Release the row, once."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self.scheduler.release(self.row)
