"""Counters that stay constant after warm-up, and memory that is known before it is taken."""

import sys
from types import SimpleNamespace

import pytest
import torch

from streamchar import footprint, stats
from streamchar.codecs.vae import Vae
from streamchar.codecs.vocoder import Vocoder
from streamchar.config import PRESETS, preset
from streamchar.footprint import EngineMemoryError, session_bytes
from streamchar.kernels import egress
from streamchar.orchestrator import Orchestrator
from tests.engine.small import TEXT, build, fixed_tensors, picture, take

GIB = 2**30


def test_nothing_is_captured_compiled_or_allocated_by_a_session_that_goes_on():
    engine = build()
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
    module = sys.modules[egress.__module__]
    cache = {0: ({"fp32": object(), "bf16": object()}, {}, None, None, None)}
    monkeypatch.setattr(module, "_egress_kernel", SimpleNamespace(device_caches=cache))
    assert stats.compilations() == before + 4


def test_the_bytes_of_a_session_are_those_that_an_engine_takes():
    def taken(sessions):
        engine = build(max_sessions=sessions)
        weights = {t.data_ptr() for part in (engine.dit, engine.orchestrator) for t in part.parameters()}
        weights |= {t.data_ptr() for part in (engine.vae, engine.vocoder) for t in part.parameters()}
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in fixed_tensors(engine)
        }
        return engine, sum(size for address, size in storages.items() if address not in weights)

    (one, first), (two, second) = taken(1), taken(2)
    session = sum(one.stats().session_bytes.values())
    assert two.stats().memory_bytes == 2 * session
    # What a second session adds, but for the few indices and schedules that every lane has.
    assert session * 0.98 <= second - first <= session * 1.02


def parts(name):
    config = preset(name)
    with torch.device("meta"):
        modules = Orchestrator.from_preset(config), Vae(config.vae), Vocoder.from_preset(config)
    return session_bytes(config, *modules, torch.bfloat16)


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
    monkeypatch.setattr(footprint, "available_bytes", lambda device: 2 * session + 1)
    monkeypatch.setattr("streamchar.engine.Passes", lambda *_: pytest.fail("allocated"))
    with pytest.raises(
        EngineMemoryError, match=r"max_sessions must be at most 2 .* got 3: .* are free"
    ) as error:
        build(max_sessions=3)
    assert (error.value.needed, error.value.available) == (3 * session, 2 * session + 1)
    assert error.value.sessions == 2


def test_memory_that_runs_out_in_the_steps_is_the_same_error(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("streamchar.engine.Passes", full)
    with pytest.raises(EngineMemoryError, match="steps need memory to work in") as error:
        build(max_sessions=2)
    assert error.value.needed is None


def test_a_cpu_is_not_judged():
    assert footprint.available_bytes(torch.device("cpu")) is None
    assert stats.device_allocations(torch.device("cpu")) == 0
