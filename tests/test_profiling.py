import subprocess
import sys
import threading
import types

import pytest
import torch

from streamchar import profiling as ranges
from streamchar.engine import StreamCharEngine
from streamchar.profiling import RangesUnavailableError, span
from streamchar.runtime.graphs import GraphPool


class Recorder:
    """Keep the path of every range that was opened, and fail if one is closed twice."""

    def __init__(self):
        self.paths, self.open = [], []

    def push(self, name):
        self.open.append(name)
        self.paths.append(" > ".join(self.open))

    def pop(self):
        self.open.pop()


@pytest.fixture
def recorder():
    sink = Recorder()
    ranges.enable(sink)
    yield sink
    ranges.disable()


def test_ranges_are_off_until_enabled_and_build_no_name():
    class Unprintable(str):
        __slots__ = ()

        def __format__(self, spec):
            raise AssertionError("a name was built")

    assert not ranges.enabled()
    with span(Unprintable("block"), 3):
        pass


def test_disabled_ranges_reach_no_sink(recorder):
    ranges.disable()
    with span("stage"), span("layer", 0):
        pass
    assert recorder.paths == []


def test_ranges_nest_and_carry_their_index(recorder):
    with span("stage"):
        for index in range(2):
            with span("layer", index):
                pass
    with span("next"):
        pass
    assert recorder.paths == ["stage", "stage > layer 0", "stage > layer 1", "next"]
    assert recorder.open == []


def test_a_decorator_opens_a_range_at_every_call_even_nested(recorder):
    @span("level")
    def descend(depth: int) -> int:
        return depth + (descend(depth - 1) if depth else 0)

    assert descend(2) == 3
    assert descend.__name__ == "descend"
    assert recorder.paths == ["level", "level > level", "level > level > level"]
    assert recorder.open == []


def test_a_decorated_function_follows_the_switch(recorder):
    @span("work")
    def work() -> None:
        pass

    ranges.disable()
    work()
    ranges.enable(recorder)
    work()
    assert recorder.paths == ["work"]


def test_exceptions_close_ranges_and_pass_through(recorder):
    def fail() -> None:
        with span("stage"), span("layer", 0):
            raise KeyError("bad")

    with pytest.raises(KeyError, match="bad"):
        fail()
    assert recorder.open == []


def test_switching_inside_a_range_leaves_none_open_and_closes_none_twice(recorder):
    with span("stage"):
        ranges.disable()
    assert recorder.open == []
    with span("stage"):
        ranges.enable(recorder)
    assert recorder.paths == ["stage"]


def test_ranges_of_every_thread_reach_the_sink(recorder):
    @span("worker")
    def work() -> None:
        pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert recorder.paths == ["worker"]
    assert recorder.open == []


def test_compiled_code_has_no_ranges_and_is_not_compiled_again_by_the_switch(recorder):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=backend)
    def double(x: torch.Tensor) -> torch.Tensor:
        for index in range(2):
            with span("layer", index):
                x = x + x
        return x

    x = torch.ones(3)
    for switch in (ranges.disable, lambda: ranges.enable(recorder)):
        switch()
        assert torch.equal(double(x), 4 * x)
    assert len(compilations) == 1
    assert recorder.paths == []


def test_replayed_work_may_hold_ranges(recorder, device):
    x = torch.zeros(3, device=device)

    def work() -> None:
        with span("layer", 0):
            x.add_(1)

    step = GraphPool(device).step("work", work)
    step()
    before = x.clone()
    step()
    assert torch.equal(x, before + 1)
    assert "work > layer 0" in recorder.paths
    assert recorder.open == []


def test_a_chunk_has_ranges_for_every_stage_and_layer(recorder):
    engine = StreamCharEngine.from_preset("tiny", random_weights=True, device="cpu")
    recorder.paths.clear()  # of warming up
    session = engine.open(torch.zeros(3, 96, 96))
    assert {path for path in recorder.paths if " > " not in path} == {"open"}
    assert "open > reference > layer 0" in recorder.paths
    recorder.paths.clear()
    speech = session.speak("one two three four five six", max_seconds=60)
    next(speech)
    next(speech)
    seen, layers = set(recorder.paths), range(engine.preset.dit.layers)
    assert {path for path in seen if " > " not in path} == {"chunk"}
    for stage in ("prefill", "video", "frames", "audio"):
        assert f"chunk > {stage}" in seen
    for stage in [f"step {index}" for index in range(engine.preset.sampler.steps)]:
        assert f"chunk > {stage} > orchestrator" in seen
        assert {f"chunk > {stage} > layer {index}" for index in layers} <= seen
        assert f"chunk > {stage} > orchestrator > layer 0" in seen
    assert {"chunk > prefill > layer 0", "chunk > video > block 0"} <= seen
    for role in ("sink", "motion"):
        assert {f"chunk > commit > {role} > layer {index}" for index in layers} <= seen
    assert recorder.open == []


def test_enabling_where_nothing_takes_ranges_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(RangesUnavailableError, match=r"nvtx package.*pip install 'streamchar\[profile\]'"):
        ranges.enable()
    assert not ranges.enabled()


def test_pytorch_takes_the_ranges_where_it_has_a_device(monkeypatch):
    sink = Recorder()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", sink.push)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", sink.pop)
    ranges.enable()
    try:
        with span("stage"), span("layer", 1):
            pass
    finally:
        ranges.disable()
    assert sink.paths == ["stage", "stage > layer 1"]
    assert sink.open == []


def test_the_nvtx_package_takes_them_elsewhere(monkeypatch):
    sink = Recorder()
    package = types.SimpleNamespace(push_range=sink.push, pop_range=sink.pop)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "nvtx", package)
    ranges.enable()
    try:
        with span("stage"):
            pass
    finally:
        ranges.disable()
    assert sink.paths == ["stage"]
    assert sink.open == []


def test_importing_ranges_loads_no_optional_package():
    code = "import streamchar.profiling, sys; print('nvtx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
