"""Simulated playback counts deadlines and stalls."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.playback import watch
from streamchar.session.pacer import Pacer, PacingError


def test_chunks_in_time_cause_no_stall() -> None:
    viewing = watch([2.0, 3.25, 4.5, 5.75], 1.25)
    assert (viewing.chunks, viewing.first_seconds, viewing.deadlines_met) == (4, 2.0, 1.0)
    assert (viewing.underruns, viewing.worst_stall_seconds, viewing.stalled_seconds) == (0, 0.0, 0.0)


def test_one_late_chunk_stalls_once_but_delays_a_whole_broadcast() -> None:
    # Due at 0, 1, 2, 3; the second is half a second late and the rest stay as late.
    viewing = watch([0.0, 1.5, 2.5, 3.5], 1.0)
    assert viewing.deadlines_met == 0.25
    assert (viewing.underruns, viewing.worst_stall_seconds, viewing.stalled_seconds) == (1, 0.5, 0.5)


def test_stalls_add_up_and_the_longest_is_reported() -> None:
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
def test_playback_and_pacer_count_the_same_stalls(gaps: list[int]) -> None:
    now, arrivals = 100.0, []
    pacer = Pacer(1.0, lambda: now)
    for gap in gaps:
        now += gap / 16
        arrivals.append(now)
        pacer.delivered(1.0)
    viewing = watch(arrivals, 1.0)
    assert (viewing.underruns, viewing.worst_stall_seconds) == (pacer.underruns, pacer.worst_stall_seconds)
    assert 100.0 + len(gaps) + viewing.stalled_seconds + gaps[0] / 16 == pacer.lead + now


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: watch([], 1.0), "arrivals"),
        (lambda: watch([0.0, float("nan")], 1.0), "arrivals"),
        (lambda: watch([1.0, 0.5], 1.0), "arrivals"),
        (lambda: watch([0.0], 0.0), "chunk_seconds"),
        (lambda: watch([0.0, 1.0], [1.0]), "chunk_seconds"),
        (lambda: watch([0.0], 1.0, start_delay=-1.0), "start_delay"),
    ],
)
def test_invalid_times_are_refused(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(PacingError, match=f"^{argument} must be") as error:
        call()
    assert error.value.argument == argument
