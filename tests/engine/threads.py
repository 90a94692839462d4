"""Text and denoising steps that wait for a test, and what waits for another thread."""

import re
import threading
import time

from streamchar import profiling

#: Seconds after which a test gives up on another thread.
PATIENCE = 60


class Slow:
    """Pieces of text of which the test says when each of them comes."""

    def __init__(self, *pieces):
        self._pieces, self.asked, self.taken = list(pieces), 0, 0
        self._may = threading.Semaphore(0)

    def __iter__(self):
        return self

    def __next__(self):
        self.asked += 1
        assert self._may.acquire(timeout=PATIENCE)
        self.taken += 1
        if self.taken > len(self._pieces):
            raise StopIteration
        piece = self._pieces[self.taken - 1]
        if isinstance(piece, Exception):
            raise piece
        return piece

    def come(self, count=1):
        """Let pieces come, the end among them."""
        self._may.release(count)


class Steps:
    """Runs a test's action at the start of every denoising step, through the ranges of the profiler.

    Args:
        action: called with the index of the step, in the thread that makes the chunk.
    """

    def __init__(self, action):
        self._action = action

    def __enter__(self):
        profiling.enable(self)
        return self

    def __exit__(self, *_):
        profiling.disable()

    def push(self, name):
        if step := re.fullmatch(r"step (\d+)", name):
            self._action(int(step[1]))

    def pop(self):
        pass


class Held(Steps):
    """Denoising steps that wait for the test; ``seen`` lists those that have begun."""

    def __init__(self):
        super().__init__(self._wait_in_step)
        self.begun, self.seen = threading.Semaphore(0), []
        self._may = threading.Semaphore(0)

    def _wait_in_step(self, index):
        self.seen.append(index)
        self.begun.release()
        assert self._may.acquire(timeout=PATIENCE)

    def wait(self):
        """Return once the next step has begun."""
        assert self.begun.acquire(timeout=PATIENCE)

    def go(self, steps=1):
        """Let steps end."""
        self._may.release(steps)


def together(engine, *calls):
    """Run every call in a thread, begin no pass before all wait for a chunk, and return their results."""
    # No public call holds the passes of an engine back.
    with engine.scheduler._lock:
        results = [in_thread(call) for call in calls]
        until(lambda: engine.stats().waiting == len(calls))
    return [result() for result in results]


def in_thread(work):
    """Run ``work`` in a thread; return what waits for it and gives its result or raises its error."""
    found = []

    def run():
        try:
            found.append((work(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(PATIENCE)
        assert found, "the thread did not end"
        value, error = found[0]
        if error is not None:
            raise error
        return value

    return result


def until(condition):
    patience = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < patience
        time.sleep(0.001)
