"""Who makes the next chunk, and for whom: leader/follower under one lock.

The engine has no worker thread. A session that wants a chunk calls :meth:`Scheduler.submit` in its own
thread, which appends a request to the list of waiting requests and then takes the engine's lock. The thread
that gets the lock is the leader: it takes all waiting requests and makes their chunks in one batched pass.
The other threads are followers: a follower that gets the lock finds its request served and leaves at once, or
becomes the next leader. So requests that arrive during a pass share the next one, and an idle engine costs
nothing. The leader gives up the lock before its chunk is decoded and copied: every thread waits for its own
media outside the lock, while the next leader already denoises.

Two locks: ``_lock`` is held for a whole pass and guards the rows. ``_waiting_lock`` is held for moments and
guards the list of waiting requests and the states of requests, so that a withdrawal never waits for a pass.
"""

import threading

import torch

from ..errors import StreamCharError
from .executor import Executor
from .request import ChunkRequest, RequestState


class CapacityError(StreamCharError, RuntimeError):
    """Every row of the engine belongs to an open session; close a session or build a larger engine."""


class Scheduler:
    """Share the rows of one executor among sessions.

    Sessions use :meth:`submit`, :meth:`withdraw` and :meth:`release`; the engine uses :meth:`open`.

    Attributes:
        executor: makes the chunks.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._lock = threading.Lock()
        self._waiting: list[ChunkRequest] = []
        self._waiting_lock = threading.Lock()
        self._taken = [False] * len(executor.rows)

    @property
    def open_rows(self) -> int:
        """Rows that belong to an open session."""
        return sum(self._taken)

    @property
    def waiting_requests(self) -> int:
        """Requests that no pass has taken yet."""
        return len(self._waiting)

    def open(self, reference: torch.Tensor, seed: int) -> int:
        """Give a free row to a new session and return its index.

        Args:
            reference: [3, height, width] in [-1, 1].
            seed: of the session's noise.

        Raises:
            CapacityError: there is no free row.
        """
        with self._lock:
            if all(self._taken):
                limit = f"at most {len(self._taken)} (max_sessions)"
                raise CapacityError(f"sessions must be {limit}, got one more; close a session")
            row = self._taken.index(False)
            with torch.inference_mode():
                self.executor.open(row, reference, seed)
            self._taken[row] = True
            return row

    def submit(self, request: ChunkRequest) -> None:
        """Make the requested chunk, together with those that are requested meanwhile.

        Returns when the request is settled and its chunk is on the host: ``request`` then holds its chunk,
        its error, or neither if it was withdrawn.
        """
        with self._waiting_lock:
            if request.settled:
                return
            request.state = RequestState.WAITING
            self._waiting.append(request)
        try:
            with self._lock:
                if not request.settled:
                    self._lead(request)
        except BaseException:
            # Ctrl-C while this thread waited: nobody would take the chunk.
            self.withdraw(request)
            raise
        if request.pending is not None:
            try:
                request.chunk = self.executor.deliver(request.pending)
            except BaseException as error:
                request.lose(error)
                request.error = error

    def withdraw(self, request: ChunkRequest) -> None:
        """Take a request back; never waits.

        A pass that works for the request drops it at its next denoising step and sets ``request.released``;
        once all steps are done it finishes the chunk.
        """
        with self._waiting_lock:
            if request.state is RequestState.RUNNING:
                request.state = RequestState.CANCELLING
            elif request.state in (RequestState.NEW, RequestState.WAITING):
                self._waiting = [each for each in self._waiting if each is not request]
                request.settle(RequestState.CANCELLED)

    def release(self, row: int) -> None:
        """Free the row of a session, which calls this once."""
        with self._lock:
            self._taken[row] = False
            with torch.inference_mode():
                self.executor.free(row)

    def _lead(self, own: ChunkRequest) -> None:
        """Make the chunks of all waiting requests, ``own`` among them."""
        with self._waiting_lock:
            requests, self._waiting = self._waiting, []
            for request in requests:
                request.state = RequestState.RUNNING
        try:
            with torch.inference_mode():
                self.executor.run(requests)
        except BaseException as error:
            for request in requests:
                if request.pending is not None:
                    request.lose(error)
            if isinstance(error, Exception):
                for request in requests:
                    request.error = request.error or error
            else:
                # Ctrl-C is meant for the thread that it reached; the others start again.
                own.error = error
                self._requeue([each for each in requests if each.error is None])
        with self._waiting_lock:
            for request in requests:
                if request.state in (RequestState.RUNNING, RequestState.CANCELLING):
                    request.settle(_outcome(request))

    def _requeue(self, requests: list[ChunkRequest]) -> None:
        """Put requests that are not withdrawn back in front."""
        with self._waiting_lock:
            again = [each for each in requests if each.state is RequestState.RUNNING]
            for request in again:
                request.state = RequestState.WAITING
            self._waiting = again + self._waiting


def _outcome(request: ChunkRequest) -> RequestState:
    if request.error is not None:
        return RequestState.FAILED
    return RequestState.CANCELLED if request.pending is None else RequestState.SERVED
