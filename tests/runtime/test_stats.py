"""Counters that stay constant after warm-up, and memory that is known before it is taken."""

from types import SimpleNamespace

import pytest
import torch

from streamchar.config import PRESETS, preset
from streamchar.kernels.frames import forward as frames_forward
from streamchar.runtime import memory_budget, stats
from streamchar.runtime.memory_budget import EngineMemoryError, session_bytes
from streamchar.runtime.modules import Modules
from streamchar.runtime.rows import warm_up
from tests.engine.recorded import RecordingPool
from tests.engine.small import TEXT, build, fixed_tensors, picture, take

GIB = 2**30


def test_nothing_is_captured_compiled_or_allocated_by_a_session_that_goes_on(monkeypatch):
    monkeypatch.setattr("streamchar.engine.GraphPool", RecordingPool)
    engine = build()
    assert engine.stats().captures > 0
    session = engine.open(picture())
    take(session, 1)
    before, chunks = engine.stats(), 6
    take(session, chunks, TEXT * 3)
    after = engine.stats()
    assert after.chunks == before.chunks + chunks
    for counter in ("captures", "compilations", "device_allocations", "memory_bytes"):
        assert getattr(after, counter) == getattr(before, counter)


def test_a_compiled_function_and_a_compiled_kernel_are_counted(monkeypatch):
    torch.compiler.reset()
    before = stats.compilations()
    double = torch.compile(lambda x: 2 * x, backend="eager")
    for _ in range(2):
        double(torch.ones(3))
    assert stats.compilations() == before + 1
    double(torch.ones(3, dtype=torch.float64))
    assert stats.compilations() == before + 2
    # A kernel keeps its compiled forms by device; on this machine nothing compiles one.
    cache = {0: ({"fp32": object(), "bf16": object()}, {}, None, None, None)}
    monkeypatch.setattr(frames_forward, "_frames_kernel", SimpleNamespace(device_caches=cache))
    assert stats.compilations() == before + 4


def test_the_bytes_of_a_session_are_those_that_an_engine_takes():
    def taken(sessions):
        engine = build(max_sessions=sessions)
        weights = {t.data_ptr() for part in (engine.dit, engine.orchestrator) for t in part.parameters()}
        weights |= {t.data_ptr() for part in (engine.vae, engine.vocoder) for t in part.parameters()}
        # Schedules belong to runners; with several sessions there is one runner more than sessions.
        rows = engine.scheduler.executor.rows
        for denoiser in (each.denoiser for each in (rows.runner, *(row.runner for row in rows))):
            weights |= {t.untyped_storage().data_ptr() for t in (denoiser.sigmas, *denoiser.modulation)}
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in fixed_tensors(engine)
        }
        return engine, sum(size for address, size in storages.items() if address not in weights)

    (one, first), (two, second) = taken(1), taken(2)
    session = sum(one.stats().session_bytes.values())
    assert two.stats().memory_bytes == 2 * session
    # What a second session adds, but for the few indices that every runner has.
    assert session * 0.99 <= second - first <= session * 1.01


def parts(name):
    config = preset(name)
    modules = Modules.build(config, torch.device("meta"), torch.bfloat16)
    return session_bytes(config, modules)


@pytest.mark.parametrize("name", PRESETS)
def test_every_part_of_a_session_is_counted(name):
    found = parts(name)
    assert set(found) == {
        "keys and values",
        "orchestrator",
        "video decoder",
        "audio decoder",
        "latents",
        "media",
    }
    assert all(size > 0 for size in found.values())


def test_the_video_decoder_of_the_largest_preset_is_most_of_a_gigabyte():
    assert 0.8 * GIB < parts("5b")["video decoder"] < 0.95 * GIB


def test_more_sessions_than_the_device_holds_are_refused_before_anything_is_allocated(monkeypatch):
    session = sum(build().stats().session_bytes.values())
    monkeypatch.setattr("streamchar.engine.available_bytes", lambda device: 2 * session + 1)
    monkeypatch.setattr("streamchar.engine.Rows", lambda *_: pytest.fail("allocated"))
    with pytest.raises(
        EngineMemoryError, match=r"max_sessions must be at most 2 .* got 3: .* are free"
    ) as error:
        build(max_sessions=3)
    assert (error.value.needed, error.value.available) == (3 * session, 2 * session + 1)
    assert error.value.sessions == 2


def test_sessions_that_fit_but_whose_steps_have_no_room_are_refused_before_others_are_captured(monkeypatch):
    counted = build().stats()
    session, working = (sum(part.values()) for part in (counted.session_bytes, counted.working_bytes))
    # On a GPU the steps of one session come first; on this machine they take the same.
    names, measure = [], memory_budget.working_memory

    def warm_up_like_a_gpu(rows, queues, report, admit):
        monkeypatch.setattr(rows, "device", torch.device("cuda"))
        return warm_up(rows, queues, lambda name, *_: names.append(name), admit)

    monkeypatch.setattr("streamchar.engine.warm_up", warm_up_like_a_gpu)
    monkeypatch.setattr("streamchar.runtime.rows.working_memory", lambda _: measure(torch.device("cpu")))
    room = 3 * session + int(2.5 * working)
    monkeypatch.setattr("streamchar.engine.available_bytes", lambda device: room)
    with pytest.raises(EngineMemoryError, match=r"GiB to work in, 3 take .* are free") as error:
        build(max_sessions=3)
    assert (error.value.needed, error.value.available) == (3 * (session + working), room)
    assert error.value.sessions == 2
    assert all(name.startswith(("session 1: ", "all sessions: prefill")) for name in names)
    names.clear()
    assert build(max_sessions=2).stats().peak_bytes == 2 * (session + working)
    assert len(names) == 3 * len([name for name in names if name.startswith("session 1: ")])


def test_what_steps_work_in_is_the_most_that_lives_at_once():
    here = torch.zeros(1000)
    with memory_budget.working_memory(torch.device("cpu")) as working:
        first = here + 1
        second = first * 2
        # Neither takes memory of its own.
        view = second.view(10, 100)[2:]
        view.add_(1)
        del first
        third = second + here
        del second, view
        # Smaller than what was let go of.
        torch.ones(500)
    assert working.bytes == 2 * 4000
    assert third.shape == here.shape
    # What came before the block is not counted, nor its end.
    with memory_budget.working_memory(torch.device("cpu")) as none:
        del third
    assert none.bytes == 0


def test_the_steps_of_more_rows_work_in_as_much_more():
    engine = build(max_sessions=3)
    rows, together = engine.scheduler.executor.rows, {}
    device = torch.device("cpu")
    with torch.inference_mode():
        for makes, part in (("latents", rows.runner), ("media", rows.decoders)):
            found = []
            for stage in part.stages().values():
                with memory_budget.working_memory(device) as working:
                    stage()
                found.append(working.bytes)
            together[makes] = max(found)
    alone = engine.stats().working_bytes
    assert set(alone) == set(together)
    for makes, size in together.items():
        # Admission takes three rows for three times one; a part of what they work in they share.
        assert 2.5 * alone[makes] < size <= 3.01 * alone[makes]


def test_a_gpu_is_measured_by_its_allocator(monkeypatch):
    log = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000)
    with memory_budget.working_memory(torch.device("cuda")) as working:
        log.append("work")
    assert log == ["reset", "work"]
    assert working.bytes == 300


def test_memory_that_runs_out_in_the_steps_is_the_same_error(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("streamchar.engine.Rows", full)
    with pytest.raises(EngineMemoryError, match="steps need memory to work in") as error:
        build(max_sessions=2)
    assert error.value.needed is None


def test_a_cpu_is_judged_by_what_linux_says_is_available(monkeypatch, tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       4096 kB\nMemFree:         512 kB\nMemAvailable:   1024 kB\n")
    monkeypatch.setattr(memory_budget, "_MEMINFO", told)
    assert memory_budget.available_bytes(torch.device("cpu")) == 2**20
    with pytest.raises(EngineMemoryError, match=r"max_sessions must be at most \d+ on this device"):
        build(max_sessions=2)
    monkeypatch.setattr(memory_budget, "_MEMINFO", tmp_path / "absent")
    assert memory_budget.available_bytes(torch.device("cpu")) is None
    assert build(max_sessions=2)
    assert stats.device_allocations(torch.device("cpu")) == 0
