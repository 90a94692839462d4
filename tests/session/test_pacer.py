"""The pacer holds generation to its lead over playback, on real and simulated clocks."""

import threading
from collections.abc import Callable, Sequence

import pytest

from streamchar.session.pacer import SHORTEST_WAIT, Pacer, PacingError

CHUNK = 4 / 3


class FakeClock:
    """A simulated clock; its sleeps pass only the share ``accuracy`` of the time asked for."""

    def __init__(self, accuracy: float = 1.0) -> None:
        self.now, self.accuracy = 100.0, accuracy
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        assert len(self.sleeps) < 1000, "a busy loop"
        self.now += seconds * self.accuracy

    def pacer(self, lead: float = CHUNK) -> Pacer:
        return Pacer(lead, self, self.sleep)


def run(pacer: Pacer, clock: FakeClock, compute: Sequence[float]) -> list[float]:
    """Generate one chunk per entry of ``compute`` and return the lead just before each delivery."""
    leads = []
    for seconds in compute:
        assert pacer.wait()
        clock.now += seconds
        leads.append(pacer.lead)
        pacer.delivered(CHUNK)
    return leads


def test_fast_generation_is_held_to_one_chunk_ahead() -> None:
    clock = FakeClock()
    pacer = clock.pacer()
    leads = run(pacer, clock, [0.25] * 50)
    # Each chunk starts with one chunk left to play and is delivered 0.25 s later.
    assert leads[2:] == pytest.approx([CHUNK - 0.25] * 48)
    assert clock.now == pytest.approx(100.0 + 0.25 + 48 * CHUNK + 0.25)
    assert (pacer.underruns, pacer.worst_stall_seconds) == (0, 0.0)


def test_each_wait_sleeps_once() -> None:
    clock = FakeClock()
    run(clock.pacer(), clock, [0.25] * 50)
    assert len(clock.sleeps) == 48


def test_an_early_timer_is_waited_on_again_without_spinning() -> None:
    clock = FakeClock(accuracy=0.5)
    pacer = clock.pacer()
    run(pacer, clock, [0.25] * 10)
    assert pacer.wait()
    assert pacer.lead <= CHUNK + SHORTEST_WAIT
    assert min(clock.sleeps) >= SHORTEST_WAIT
    # Each sleep halves the remaining time; 11 halvings of 1.3 s fall below the shortest wait.
    assert len(clock.sleeps) <= 10 * 11


def test_an_infinite_lead_never_waits() -> None:
    clock = FakeClock()
    run(clock.pacer(float("inf")), clock, [0.25] * 50)
    assert clock.sleeps == []


def test_zero_lead_waits_for_the_previous_chunk_to_end() -> None:
    clock = FakeClock()
    pacer = clock.pacer(0.0)
    assert run(pacer, clock, [0.25] * 4) == [0.0] * 4
    assert pacer.underruns == 3
    assert pacer.worst_stall_seconds == pytest.approx(0.25)


def test_slow_generation_never_waits_and_its_stalls_are_counted() -> None:
    clock = FakeClock()
    pacer = clock.pacer()
    run(pacer, clock, [1.0, CHUNK + 0.5, CHUNK, CHUNK + 0.125])
    assert clock.sleeps == []
    assert pacer.underruns == 2
    assert pacer.worst_stall_seconds == pytest.approx(0.5)


def test_lead_is_the_media_left_to_play() -> None:
    clock = FakeClock()
    pacer = clock.pacer()
    assert pacer.lead == 0.0
    pacer.delivered(CHUNK)
    clock.now += 1.0
    assert pacer.lead == pytest.approx(CHUNK - 1.0)
    clock.now += 1.0
    assert pacer.lead == 0.0


def test_silence_after_a_restart_is_not_a_stall() -> None:
    clock = FakeClock()
    pacer = clock.pacer()
    pacer.delivered(CHUNK)
    pacer.restart()
    clock.now += 60.0
    assert pacer.lead == 0.0
    pacer.delivered(CHUNK)
    assert pacer.underruns == 0
    assert pacer.lead == pytest.approx(CHUNK)


def test_another_thread_can_cancel_a_wait() -> None:
    stop = threading.Event()
    pacer = Pacer(0.0)
    pacer.delivered(3600.0)
    threading.Timer(0.02, stop.set).start()
    assert pacer.wait(stop) is False
    # With a custom sleep, the event is checked before each sleep.
    clock = FakeClock()
    pacer = clock.pacer(0.0)
    pacer.delivered(3600.0)
    assert pacer.wait(stop) is False
    assert clock.sleeps == []


def test_the_default_clock_is_real_time() -> None:
    pacer = Pacer(0.0)
    pacer.delivered(0.02)
    assert pacer.wait() is True
    assert pacer.lead == 0.0


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: Pacer(-1.0), "max_lead_seconds"),
        (lambda: Pacer(float("nan")), "max_lead_seconds"),
        (lambda: Pacer(1.0).delivered(0.0), "seconds"),
        (lambda: Pacer(1.0).delivered(float("inf")), "seconds"),
    ],
)
def test_invalid_times_are_refused(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(PacingError, match=f"^{argument} must be") as error:
        call()
    assert error.value.argument == argument
