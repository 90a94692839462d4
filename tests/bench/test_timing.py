import time
from contextlib import nullcontext
from weakref import ref

import pytest
import torch

from bench import timing
from bench.timing import MAX_INPUT_SETS, Timing, bootstrap_interval, compare, input_sets

CPU = torch.device("cpu")


def test_a_slower_contender_is_measured_slower():
    timings = compare(
        {"quick": [lambda: time.sleep(0.001)] * 2, "slow": [lambda: time.sleep(0.004)] * 2}, CPU
    )
    assert list(timings) == ["quick", "slow"]
    # 4, as far as a shared machine sleeps as told.
    assert 1.5 < timings["slow"].median_us / timings["quick"].median_us < 8.0
    for found in timings.values():
        assert found.method == "clock"
        assert found.low_us <= found.median_us <= found.high_us


def test_contenders_alternate_in_the_order_a_b_b_a():
    order = []
    compare({name: [lambda name=name: order.append(name)] for name in "ab"}, CPU)
    # One warm-up call and three calls for the estimate come first, contender by contender.
    measured = "".join(order[8:])
    assert measured.startswith("abbaabba")


@pytest.mark.parametrize(
    ("bytes_per_call", "sets"),
    [(1, MAX_INPUT_SETS), (4 * 2**20, 64), (100 * 2**20, 3), (10**12, 2), (0, MAX_INPUT_SETS)],
)
def test_enough_input_sets_are_rotated_to_miss_the_cache(bytes_per_call, sets):
    assert input_sets(bytes_per_call, torch.device("cuda")) == sets
    assert input_sets(bytes_per_call, CPU) == 2


def test_outputs_of_a_captured_pass_lie_apart(monkeypatch):
    def capturing(graph):
        return nullcontext()

    class Graph:
        def replay(self):
            pass

    made = []

    def call():
        # While it is captured no output has been let go of.
        assert all(each() is not None for each in made)
        output = torch.ones(1)
        made.append(ref(output))
        return output

    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    timing.capture([call] * 3, torch.device("cuda"))
    assert len(made) == 3
    assert not any(each() is not None for each in made)


def test_the_interval_of_the_median_holds_it_and_is_the_same_twice():
    samples = torch.rand(50, generator=torch.Generator().manual_seed(1)).tolist()
    low, high = bootstrap_interval(samples)
    assert low <= sorted(samples)[25] <= high
    assert (low, high) == bootstrap_interval(samples)


def test_a_timing_is_plain_json():
    assert Timing("x", 1.0, 0.5, 1.5, [1.0], "clock").as_dict()["samples_us"] == [1.0]
