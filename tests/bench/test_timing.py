"""Contenders are interleaved, rotated over input sets, and summarised with an interval."""

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
    # The ratio is 4 up to the accuracy of sleep on a shared machine.
    assert 1.5 < timings["slow"].median_us / timings["quick"].median_us < 8.0
    for found in timings.values():
        assert found.method == "clock"
        assert found.low_us <= found.median_us <= found.high_us


def test_contenders_run_in_the_order_a_b_b_a():
    order = []
    compare({name: [lambda name=name: order.append(name)] for name in "ab"}, CPU)
    # First come one warm-up call and three calls for the estimate per contender.
    measured = "".join(order[8:])
    assert measured.startswith("abbaabba")


@pytest.mark.parametrize(
    ("bytes_per_call", "sets"),
    [(1, MAX_INPUT_SETS), (4 * 2**20, 64), (100 * 2**20, 3), (10**12, 2), (0, MAX_INPUT_SETS)],
)
def test_input_sets_exceed_the_cache(bytes_per_call, sets):
    assert input_sets(bytes_per_call, torch.device("cuda")) == sets
    assert input_sets(bytes_per_call, CPU) == 2


def test_outputs_of_a_captured_pass_do_not_share_memory(monkeypatch):
    def capturing(graph):
        return nullcontext()

    class Graph:
        def replay(self):
            pass

    made = []

    def call():
        # No output is freed during the capture.
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


def test_the_bootstrap_interval_is_reproducible_and_holds_the_median():
    samples = torch.rand(50, generator=torch.Generator().manual_seed(1)).tolist()
    low, high = bootstrap_interval(samples)
    assert low <= sorted(samples)[25] <= high
    assert (low, high) == bootstrap_interval(samples)


def test_a_timing_is_plain_json():
    assert Timing("x", 1.0, 0.5, 1.5, [1.0], "clock").as_dict()["samples_us"] == [1.0]
