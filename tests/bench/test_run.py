"""A run with a deadline: which stages run, which are left out, and what is kept."""

import contextlib
import signal
import time

import pytest

from bench.run import Run


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def take(self, seconds):
        self.now += seconds
        return seconds


def simulated(seconds):
    clock, kept, said = Clock(), [], []
    run = Run(seconds, lambda: kept.append(len(said)), said.append, clock)
    return run, clock, kept, said


def test_stages_after_the_deadline_are_left_out():
    run, clock, kept, said = simulated(60)
    assert run.stage("numerics", lambda: clock.take(59)) == 59
    assert run.stage("session", lambda: clock.take(5)) == 5
    assert run.stage("kernels", lambda: clock.take(1)) is None
    assert run.left_out == ["kernels"]
    assert said == ["numerics", "session"]
    assert kept == [1, 2]
    assert run.elapsed == 64


def test_a_failed_stage_does_not_stop_the_others():
    run, clock, kept, _ = simulated(60)
    assert run.stage("session", lambda: 1 / 0) is None
    assert run.stage("kernels", lambda: clock.take(1)) == 1
    assert run.failed == ["session: ZeroDivisionError: division by zero"]
    assert run.left_out == []
    assert kept == [1, 2]


def test_the_deadline_interrupts_a_stage_that_swallows_exceptions():
    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    before = signal.getsignal(signal.SIGALRM)
    kept = []
    run = Run(0.2, lambda: kept.append(True), lambda text: None)
    assert run.stage("compiled", stubborn) is None
    assert run.stage("kernels", lambda: 1) is None
    assert run.left_out == ["compiled (interrupted)", "kernels"]
    assert kept == [True]
    assert run.elapsed < 5
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_ctrl_c_ends_the_run_and_keeps_its_results():
    def cancelled():
        raise KeyboardInterrupt

    run, _, kept, _ = simulated(60)
    with pytest.raises(KeyboardInterrupt):
        run.stage("session", cancelled)
    assert kept == [1]
