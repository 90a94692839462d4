"""One thread leads a pass for everybody that waits; a request goes through its states and ends in one."""

import threading
from types import SimpleNamespace

import pytest

from streamchar.errors import SessionClosedError
from streamchar.runtime.request import ChunkRequest, RequestState
from streamchar.runtime.scheduler import CapacityError, Scheduler
from tests.engine.threads import PATIENCE, in_thread, until


class FakeExecutor:
    """Passes that wait for the test; ``passes`` lists the rows of each."""

    def __init__(self, rows=3):
        self.rows, self.passes, self.error = [None] * rows, [], None
        self.begun, self._may = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, requests):
        self.passes.append([request.row for request in requests])
        self.begun.release()
        assert self._may.acquire(timeout=PATIENCE)
        for request in requests:
            if request.state is RequestState.CANCELLING:
                request.settle(RequestState.CANCELLED)
            else:
                request.pending = object()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def deliver(self, pending):
        return SimpleNamespace(pending=pending)

    def open(self, row, reference, seed):
        pass

    def free(self, row):
        pass

    def go(self, passes=1):
        self._may.release(passes)


def request(row):
    return ChunkRequest(row, SimpleNamespace(lost=False))


@pytest.fixture
def scheduler():
    return Scheduler(FakeExecutor())


def begin(scheduler, row):
    """Submit a request in a thread and wait until its pass has begun."""
    first = request(row)
    result = in_thread(lambda: scheduler.submit(first))
    assert scheduler.executor.begun.acquire(timeout=PATIENCE)
    return first, result


def test_requests_that_wait_for_a_pass_share_the_next(scheduler):
    first, done = begin(scheduler, 0)
    late = [request(row) for row in (1, 2)]
    results = [in_thread(lambda each=each: scheduler.submit(each)) for each in late]
    until(lambda: scheduler.waiting_requests == 2)
    scheduler.executor.go(2)
    for result in (done, *results):
        result()
    assert sorted(scheduler.executor.passes[1]) == [1, 2]
    assert len(scheduler.executor.passes) == 2
    for each in (first, *late):
        assert each.state is RequestState.SERVED
        assert each.chunk.pending is each.pending


def test_a_request_withdrawn_before_it_is_submitted_never_runs(scheduler):
    withdrawn = request(0)
    scheduler.withdraw(withdrawn)
    assert withdrawn.state is RequestState.CANCELLED
    assert withdrawn.released.is_set()
    scheduler.submit(withdrawn)
    assert scheduler.executor.passes == []


def test_a_waiting_request_is_withdrawn_at_once(scheduler):
    _, done = begin(scheduler, 0)
    waiting = request(1)
    result = in_thread(lambda: scheduler.submit(waiting))
    until(lambda: scheduler.waiting_requests)
    assert waiting.state is RequestState.WAITING
    scheduler.withdraw(waiting)
    assert waiting.state is RequestState.CANCELLED
    assert waiting.released.is_set()
    scheduler.executor.go()
    done()
    result()
    assert scheduler.executor.passes == [[0]]


def test_a_running_request_is_released_by_its_pass(scheduler):
    running, done = begin(scheduler, 0)
    assert running.state is RequestState.RUNNING
    scheduler.withdraw(running)
    scheduler.withdraw(running)
    assert running.state is RequestState.CANCELLING
    assert not running.released.is_set()
    scheduler.executor.go()
    done()
    assert running.state is RequestState.CANCELLED
    assert running.released.is_set()
    assert running.chunk is None


def test_a_failed_pass_fails_every_request_of_it(scheduler):
    first, done = begin(scheduler, 0)
    scheduler.executor.error = MemoryError("full")
    scheduler.executor.go()
    done()
    assert first.state is RequestState.FAILED
    assert isinstance(first.error, MemoryError)
    # Something of its chunk was made: the session cannot go on.
    assert first.timeline.lost


def test_ctrl_c_is_raised_in_the_leading_thread_alone(scheduler):
    _, done = begin(scheduler, 0)
    late = [request(row) for row in (1, 2)]
    results = [in_thread(lambda each=each: scheduler.submit(each)) for each in late]
    until(lambda: scheduler.waiting_requests == 2)
    scheduler.executor.go()
    done()
    assert scheduler.executor.begun.acquire(timeout=PATIENCE)
    scheduler.executor.error = KeyboardInterrupt()
    scheduler.executor.go(3)
    for result in results:
        result()
    hit = [each for each in late if isinstance(each.error, KeyboardInterrupt)]
    lost = [each for each in late if isinstance(each.error, SessionClosedError)]
    # The other chunk was half made, and its session is told so.
    assert (len(hit), len(lost)) == (1, 1)


def test_a_row_belongs_to_one_session_until_it_is_released(scheduler):
    assert [scheduler.open(None, 0) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CapacityError, match="close a session"):
        scheduler.open(None, 0)
    scheduler.release(1)
    assert scheduler.open_rows == 2
    assert scheduler.open(None, 0) == 1
