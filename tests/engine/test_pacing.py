"""The pacer keeps its lead on any clock, and the viewer counts what a person would notice."""

import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.pacing import SHORTEST_WAIT, Pacer, PacingError, watch

CHUNK = 4 / 3


class FakeClock:
    """Time that passes only when told to or slept through, with a timer that may ring early."""

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
    """Generate one chunk for each entry of ``compute``; return the lead just before each delivery."""
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
    # Once held back: started with one chunk left to play, delivered 0.25 s later.
    assert leads[2:] == pytest.approx([CHUNK - 0.25] * 48)
    assert clock.now == pytest.approx(100.0 + 0.25 + 48 * CHUNK + 0.25)
    assert (pacer.underruns, pacer.worst_stall_seconds) == (0, 0.0)


def test_each_wait_is_one_sleep_and_not_a_loop() -> None:
    clock = FakeClock()
    run(clock.pacer(), clock, [0.25] * 50)
    assert len(clock.sleeps) == 48


def test_a_timer_that_rings_early_is_waited_on_again_but_not_spun_on() -> None:
    clock = FakeClock(accuracy=0.5)
    pacer = clock.pacer()
    run(pacer, clock, [0.25] * 10)
    assert pacer.wait()
    assert pacer.lead <= CHUNK + SHORTEST_WAIT
    assert min(clock.sleeps) >= SHORTEST_WAIT
    # Each sleep halves what is left, and 11 halvings of 1.3 s come below the shortest wait.
    assert len(clock.sleeps) <= 10 * 11


def test_without_a_limit_nothing_waits() -> None:
    clock = FakeClock()
    run(clock.pacer(float("inf")), clock, [0.25] * 50)
    assert clock.sleeps == []


def test_with_no_lead_allowed_each_chunk_waits_for_the_one_before_to_end() -> None:
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


def test_lead_is_what_is_left_to_play() -> None:
    clock = FakeClock()
    pacer = clock.pacer()
    assert pacer.lead == 0.0
    pacer.delivered(CHUNK)
    clock.now += 1.0
    assert pacer.lead == pytest.approx(CHUNK - 1.0)
    clock.now += 1.0
    assert pacer.lead == 0.0


def test_after_a_restart_the_silence_is_no_stall() -> None:
    clock = FakeClock()
    pacer = clock.pacer()
    pacer.delivered(CHUNK)
    pacer.restart()
    clock.now += 60.0
    assert pacer.lead == 0.0
    pacer.delivered(CHUNK)
    assert pacer.underruns == 0
    assert pacer.lead == pytest.approx(CHUNK)


def test_a_wait_can_be_cut_short_from_another_thread() -> None:
    stop = threading.Event()
    pacer = Pacer(0.0)
    pacer.delivered(3600.0)
    threading.Timer(0.02, stop.set).start()
    assert pacer.wait(stop) is False
    # A clock of one's own is asked before each of its sleeps.
    clock = FakeClock()
    pacer = clock.pacer(0.0)
    pacer.delivered(3600.0)
    assert pacer.wait(stop) is False
    assert clock.sleeps == []


def test_real_clocks_serve_by_default() -> None:
    pacer = Pacer(0.0)
    pacer.delivered(0.02)
    assert pacer.wait() is True
    assert pacer.lead == 0.0


def test_a_viewer_served_in_time_notices_nothing() -> None:
    viewing = watch([2.0, 3.25, 4.5, 5.75], 1.25)
    assert (viewing.chunks, viewing.first_seconds, viewing.deadlines_met) == (4, 2.0, 1.0)
    assert (viewing.underruns, viewing.worst_stall_seconds, viewing.stalled_seconds) == (0, 0.0, 0.0)


def test_one_late_chunk_is_one_stall_but_a_broadcast_stays_late() -> None:
    # Due at 0, 1, 2, 3; the second is half a second late and the rest keep step with it.
    viewing = watch([0.0, 1.5, 2.5, 3.5], 1.0)
    assert viewing.deadlines_met == 0.25
    assert (viewing.underruns, viewing.worst_stall_seconds, viewing.stalled_seconds) == (1, 0.5, 0.5)


def test_stalls_add_up_and_the_worst_is_named() -> None:
    # The second leaves playback 0.25 s behind; the third is due at 2.25, the fourth at 4.
    viewing = watch([0.0, 1.25, 3.0, 3.0], 1.0)
    assert (viewing.underruns, viewing.worst_stall_seconds, viewing.stalled_seconds) == (2, 0.75, 1.0)
    assert viewing.deadlines_met == 0.5


def test_buffering_at_the_start_hides_a_late_chunk() -> None:
    assert watch([0.0, 1.5, 2.5], 1.0, start_delay=0.5).deadlines_met == 1.0


def test_chunks_may_differ_in_length() -> None:
    assert watch([0.0, 2.0, 2.5], [2.0, 0.5, 1.0]).underruns == 0
    assert watch([0.0, 2.0, 2.75], [2.0, 0.5, 1.0]).worst_stall_seconds == 0.25


@settings(max_examples=25, deadline=None, derandomize=True)
@given(gaps=st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_pacer_and_viewer_agree(gaps: list[int]) -> None:
    clock = FakeClock()
    pacer, arrivals = clock.pacer(), []
    for gap in gaps:
        clock.now += gap / 16
        arrivals.append(clock.now)
        pacer.delivered(1.0)
    viewing = watch(arrivals, 1.0)
    assert (viewing.underruns, viewing.worst_stall_seconds) == (pacer.underruns, pacer.worst_stall_seconds)
    assert 100.0 + len(gaps) + viewing.stalled_seconds + gaps[0] / 16 == pacer.lead + clock.now


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: watch([], 1.0), "arrivals"),
        (lambda: watch([0.0, float("nan")], 1.0), "arrivals"),
        (lambda: watch([1.0, 0.5], 1.0), "arrivals"),
        (lambda: watch([0.0], 0.0), "chunk_seconds"),
        (lambda: watch([0.0, 1.0], [1.0]), "chunk_seconds"),
        (lambda: watch([0.0], 1.0, start_delay=-1.0), "start_delay"),
        (lambda: Pacer(-1.0), "max_lead_seconds"),
        (lambda: Pacer(float("nan")), "max_lead_seconds"),
        (lambda: Pacer(1.0).delivered(0.0), "seconds"),
        (lambda: Pacer(1.0).delivered(float("inf")), "seconds"),
    ],
)
def test_times_that_make_no_sense_are_refused(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(PacingError, match=f"^{argument} must be") as error:
        call()
    assert error.value.argument == argument
