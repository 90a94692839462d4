"""Baselines compute what the engine computes, on the same weights, and do more work for it."""

from dataclasses import replace

import pytest
import torch

from bench import baseline, gate
from bench.baseline import (
    Conditioning,
    Ours,
    Recompute,
    compare_with_baselines,
    compiled_copy,
    plain_copy,
    steady_lane,
)
from bench.lengths import compare_chunk_lengths
from streamchar.memory import KVMemory
from streamchar.model import JointDiT
from streamchar.numerics import relative_error
from streamchar.orchestrator import Orchestrator
from tests.engine.recorded import RecordingPool
from tests.engine.small import SMALL, build


@pytest.fixture(scope="module")
def engine():
    return build()


def test_baselines_compute_the_same_chunk_as_ours_and_do_more_work(engine, monkeypatch):
    commits = []
    commit = JointDiT.commit

    def counted(self, role, *arguments):
        commits.append(role)
        return commit(self, role, *arguments)

    with torch.inference_mode():
        latents = Conditioning.random(engine)
        ours = Ours(steady_lane(engine, latents), latents)
        for prefix in (False, True):
            plain = plain_copy(engine.dit)
            theirs = Recompute(plain, steady_lane(engine, latents), latents, prefix=prefix)
            assert theirs.dit.blocks[0].qkv.weight.data_ptr() == engine.dit.blocks[0].qkv.weight.data_ptr()
            # What is left in the memory must not help: the baseline has to write it itself.
            for buffer in (*theirs.lane.memory.k, *theirs.lane.memory.v):
                buffer.fill_(float("nan"))
            with monkeypatch.context() as patch:
                patch.setattr(JointDiT, "commit", counted)
                commits.clear()
                ours()
                assert commits == ["motion"]
                commits.clear()
                theirs()
                assert commits == ["reference", "sink", "motion"] * SMALL.sampler.steps
            for name in ("x_video", "x_audio"):
                error = relative_error(getattr(theirs.lane.buffers, name), getattr(ours.lane.buffers, name))
                assert error <= gate.AGREEMENT, name


def test_a_baseline_whose_memory_has_no_gaps_attends_without_a_mask_to_the_same(monkeypatch):
    # 16 tokens a latent, so that every segment ends where the next begins.
    size = 4 * SMALL.picture.spatial_stride * SMALL.picture.patch
    config = replace(SMALL, picture=replace(SMALL.picture, height=size, width=size))
    with torch.inference_mode():
        networks = baseline.Networks(JointDiT(config), Orchestrator.from_preset(config))
        latents = Conditioning.random(networks)
        ours, lane = Ours(steady_lane(networks, latents), latents), steady_lane(networks, latents)
        theirs = Recompute(plain_copy(networks.dit), lane, latents)
        assert baseline.prefix_ends(lane.memory)["chunk"] == lane.memory.capacity
        ours()
        monkeypatch.setattr("streamchar.model.joint_attention", None)
        theirs()
        for name in ("x_video", "x_audio"):
            error = relative_error(getattr(lane.buffers, name), getattr(ours.lane.buffers, name))
            assert error <= gate.AGREEMENT, name
        assert baseline.prefix_ends(KVMemory(SMALL, 1, torch.device("cpu"), torch.float32)) is None


def test_a_baseline_captured_step_by_step_computes_the_same_chunk_as_ours(engine):
    with torch.inference_mode():
        latents = Conditioning.random(engine)
        ours = Ours(steady_lane(engine, latents), latents)
        pool, lane = RecordingPool(engine.device), steady_lane(engine, latents)
        theirs = Recompute(plain_copy(engine.dit), lane, latents, pool=pool)
        ours()
        theirs()
        assert pool.captures == SMALL.sampler.steps
        # Played back from what was recorded, without its Python.
        theirs.lane.buffers.x_video.fill_(float("nan"))
        theirs()
        assert pool.captures == SMALL.sampler.steps
        error = relative_error(theirs.lane.buffers.x_video, ours.lane.buffers.x_video)
        assert error <= gate.AGREEMENT


def test_compiled_blocks_share_a_program_for_every_role_and_are_never_left_uncompiled(engine, monkeypatch):
    from torch._dynamo.utils import counters

    compile_ = torch.nn.Module.compile

    def traced(module, *, mode, **options):
        # What is asked here is what the compiler is given; making machine code of it takes minutes.
        compile_(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    torch.compiler.reset()
    counters.clear()
    with torch.inference_mode():
        latents = Conditioning.random(engine)
        ours = Ours(steady_lane(engine, latents), latents)
        theirs = Recompute(compiled_copy(engine.dit), steady_lane(engine, latents), latents)
        ours()
        theirs()
        # Chunk; reference; sink and motion, of one length; and the last block of either, which only stores.
        assert counters["stats"]["unique_graphs"] == 5
        theirs()
        assert counters["stats"]["unique_graphs"] == 5
        assert not counters["graph_break"]
        error = relative_error(theirs.lane.buffers.x_video, ours.lane.buffers.x_video)
        assert error <= gate.AGREEMENT


def test_baselines_measured_apart_are_reported_together(engine, monkeypatch):
    monkeypatch.setattr(baseline, "ROUNDS", 1)
    found, other = (compare_with_baselines(engine, (name,)) for name in ("eager", "eager-prefix"))
    found = found.joined(other)
    assert list(found.seconds) == ["ours", "eager", "eager-prefix"]
    assert len(found.seconds["ours"]) == 2 * len(found.seconds["eager"])
    assert list(found.ratios) == list(found.errors) == ["eager", "eager-prefix"]
    assert max(found.errors.values()) <= gate.AGREEMENT
    assert found.failures == {}


def test_the_papers_chunk_runs_on_the_same_weights(engine, monkeypatch):
    ran = []
    step = JointDiT.step

    def counted(self, x_video, *arguments):
        ran.append((x_video.shape[1], self.blocks[0].qkv.weight.data_ptr()))
        return step(self, x_video, *arguments)

    monkeypatch.setattr(JointDiT, "step", counted)
    lengths = compare_chunk_lengths(engine)
    weights = engine.dit.blocks[0].qkv.weight.data_ptr()
    assert set(ran) == {(8, weights), (9, weights)}
    assert [each.latent_frames for each in lengths] == [8, 9]
    assert [each.media_seconds for each in lengths] == pytest.approx([32 / 24, 36 / 24])
    assert all(seconds > 0 for each in lengths for seconds in each.seconds)
