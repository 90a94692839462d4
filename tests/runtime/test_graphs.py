"""Every step of a chunk may be captured: played back with no Python in between it follows its buffers."""

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from streamchar import engine as engine_module
from streamchar.kernels._shared import rows as kernel_rows
from streamchar.kernels.attention import reference as attention_reference
from streamchar.runtime.graphs import GraphPool
from streamchar.runtime.memory_budget import WorkingMemory
from streamchar.runtime.queues import InOrderQueues
from streamchar.runtime.rows import warm_up
from tests.engine.recorded import FORBIDDEN, LivePool, RecordingPool
from tests.engine.small import PLANNED, TEXT, build, fixed_tensors, media, picture, take

BY_ROW = attention_reference._attend_by_row


def built(pool):
    """Return an engine whose steps come from ``pool``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "GraphPool", lambda device: pool)
        return build(config=PLANNED)


@pytest.fixture(scope="module")
def masked():
    """Take the path of a GPU: on a CPU tables of segments and rows are otherwise read on the host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_rows, "_tokens_agree", lambda index: False)
        patch.setattr(attention_reference, "_attend_by_row", attention_reference._attend_masked)
        yield


def speak(engine, chunks=3):
    """Two sessions after one another, of other pictures, seeds and texts, each past its first chunk."""
    made = []
    for seed, text in ((7, TEXT), (8, "other words altogether, and more of them than before")):
        with engine.open(picture(seed), seed=seed) as session:
            made += take(session, chunks, text)
    return media(made)


@pytest.fixture(scope="module")
def played(masked):
    pool = RecordingPool(torch.device("cpu"))
    engine = built(pool)
    return engine, pool, speak(engine)


def test_steps_played_back_with_no_python_in_between_give_the_same_media(played, masked):
    engine, pool, ours = played
    expected = speak(built(LivePool(torch.device("cpu"))))
    # The same operators on the same numbers: every bit.
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])
    steps = pool.steps
    # Recorded once each, before the first session, and played back ever after.
    assert engine.stats().captures == len(steps) == len([step for step in steps if step.operations])
    assert engine.stats().replays > 4 * len(steps)


def test_what_was_recorded_asks_for_no_value_and_touches_fixed_tensors_alone(played):
    engine, pool, _ = played
    known = {tensor.untyped_storage().data_ptr() for tensor in fixed_tensors(engine)}
    for step in pool.steps:
        names = {operator.name().split("::")[1].split(".")[0] for operator, *_ in step.operations}
        assert not names & FORBIDDEN
        # Whatever a step reads that it has not made lies where it always lies.
        assert {tensor.untyped_storage().data_ptr() for tensor in step.outside()} <= known


def test_playing_back_shows_a_table_that_was_read_on_the_host(monkeypatch):
    monkeypatch.setattr(attention_reference, "_attend_by_row", BY_ROW)
    ours, expected = (
        speak(built(pool(torch.device("cpu"))), chunks=2)[0] for pool in (RecordingPool, LivePool)
    )
    # Recorded at warm-up, when nothing was committed, the table never says that anything is.
    assert not torch.equal(ours[:32], expected[:32])


def test_everything_is_recorded_before_the_first_session_and_each_stage_is_reported(monkeypatch):
    reports = []

    def report(name, number, count):
        reports.append((name, number, count, sum(bool(step.operations) for step in pool.steps)))

    pool = RecordingPool(torch.device("cpu"))
    monkeypatch.setattr(engine_module, "GraphPool", lambda device: pool)
    engine = build(report=report)
    names, numbers, counts, recorded = map(list, zip(*reports, strict=True))
    # Before each stage, all before it are recorded, and it is not.
    assert numbers == list(range(1, len(pool.steps) + 1))
    assert recorded == [number - 1 for number in numbers]
    assert set(counts) == {engine.stats().captures} == {len(pool.steps)}
    assert names[:2] == ["prefill", "noise"]
    assert {"denoising step 1", "reference", "sink", "motion", "history", "video", "audio"} < set(names)


def test_a_gpu_captures_the_steps_of_all_sessions_and_of_each(monkeypatch):
    engine, names = build(max_sessions=2), []
    rows = engine.scheduler.executor.rows
    alone = len(rows.runner.stages() | rows.decoders.stages())
    assert engine.stats().replays == alone
    monkeypatch.setattr(rows, "device", torch.device("cuda"))
    unmeasured = nullcontext(WorkingMemory())
    monkeypatch.setattr("streamchar.runtime.rows.working_memory", lambda device: unmeasured)
    with torch.inference_mode():
        warm_up(rows, InOrderQueues(), lambda name, number, count: names.append((name, count)))
    assert len(names) == 3 * alone == names[0][1]
    for index, of in enumerate(("session 1", "all sessions", "session 2")):
        assert names[index * alone][0] == f"{of}: prefill"


def test_a_cpu_step_is_a_plain_call_that_is_counted():
    pool, ran = GraphPool(torch.device("cpu")), []
    step = pool.step("work", lambda: ran.append(1))
    step()
    step()
    assert ran == [1, 1]
    assert (pool.captures, pool.replays) == (0, 2)


def test_each_queue_of_each_engine_captures_on_a_stream_of_its_own(monkeypatch):
    captured, warmed = [], []

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass

    def graph(_, pool, stream):
        captured.append((pool, stream))
        return nullcontext()

    def entered(stream):
        warmed.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    for pool in (GraphPool(torch.device("cuda")) for _ in range(2)):
        for queue in ("main", "decode", "main"):
            pool.step("work", lambda: None, queue)()
    pools, streams = zip(*captured, strict=True)
    for each in (pools, streams):
        # The third of an engine is on the queue of its first; all others are apart.
        assert each[0] is each[2]
        assert each[3] is each[5]
        assert len(set(map(id, each))) == 4
    assert tuple(warmed) == streams


def test_nothing_moves_and_nothing_is_kept_with_time():
    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    engine = build()
    session = engine.open(picture())
    list(session.speak(TEXT, max_seconds=2))
    session.interrupt()
    addresses, alive = [tensor.data_ptr() for tensor in fixed_tensors(engine)], tensors()
    list(session.speak(TEXT, max_seconds=12))
    session.interrupt()
    assert [tensor.data_ptr() for tensor in fixed_tensors(engine)] == addresses
    assert tensors() == alive
