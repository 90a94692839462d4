"""Baselines compute the same chunk as the engine on the same weights, with more work."""

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
    steady_runner,
)
from bench.lengths import compare_chunk_lengths
from streamchar.model.dit import JointDiT
from streamchar.model.kv_cache import KVCache
from streamchar.model.orchestrator import Orchestrator
from streamchar.numerics import relative_error
from tests.engine.recorded import RecordingPool
from tests.engine.small import SMALL, build


@pytest.fixture(scope="module")
def engine():
    return build()


def test_baselines_compute_the_same_chunk_with_more_work(engine, monkeypatch):
    commits = []
    commit = JointDiT.commit

    def counted(self, role, *arguments):
        commits.append(role)
        return commit(self, role, *arguments)

    with torch.inference_mode():
        latents = Conditioning.random(engine.dit)
        ours = Ours(steady_runner(engine.dit, engine.orchestrator, latents), latents)
        for prefix in (False, True):
            plain = plain_copy(engine.dit)
            theirs = Recompute(
                plain, steady_runner(engine.dit, engine.orchestrator, latents), latents, prefix=prefix
            )
            assert theirs.dit.blocks[0].qkv.weight.data_ptr() == engine.dit.blocks[0].qkv.weight.data_ptr()
            # The baseline must write the conditioning itself, not find it in the cache.
            for buffer in (*theirs.runner.cache.k, *theirs.runner.cache.v):
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
                error = relative_error(
                    getattr(theirs.runner.buffers, name), getattr(ours.runner.buffers, name)
                )
                assert error <= gate.AGREEMENT, name


def test_without_gaps_in_the_cache_attention_takes_no_mask(monkeypatch):
    # 16 tokens per latent, so that every segment ends where the next one begins.
    size = 4 * SMALL.picture.spatial_stride * SMALL.picture.patch
    config = replace(SMALL, picture=replace(SMALL.picture, height=size, width=size))
    with torch.inference_mode():
        dit, orchestrator = JointDiT(config), Orchestrator.from_preset(config)
        latents = Conditioning.random(dit)
        ours = Ours(steady_runner(dit, orchestrator, latents), latents)
        runner = steady_runner(dit, orchestrator, latents)
        theirs = Recompute(plain_copy(dit), runner, latents)
        assert baseline.prefix_ends(runner.cache)["chunk"] == runner.cache.capacity
        ours()
        monkeypatch.setattr("streamchar.model.dit.joint_attention", None)
        theirs()
        for name in ("x_video", "x_audio"):
            error = relative_error(getattr(runner.buffers, name), getattr(ours.runner.buffers, name))
            assert error <= gate.AGREEMENT, name
        assert baseline.prefix_ends(KVCache(SMALL, 1, torch.device("cpu"), torch.float32)) is None


def test_captured_baseline_steps_compute_the_same_chunk(engine):
    with torch.inference_mode():
        latents = Conditioning.random(engine.dit)
        ours = Ours(steady_runner(engine.dit, engine.orchestrator, latents), latents)
        pool, runner = RecordingPool(engine.device), steady_runner(engine.dit, engine.orchestrator, latents)
        theirs = Recompute(plain_copy(engine.dit), runner, latents, pool=pool)
        ours()
        theirs()
        assert pool.captures == SMALL.sampler.steps
        # The second call replays the recorded operations without Python.
        theirs.runner.buffers.x_video.fill_(float("nan"))
        theirs()
        assert pool.captures == SMALL.sampler.steps
        error = relative_error(theirs.runner.buffers.x_video, ours.runner.buffers.x_video)
        assert error <= gate.AGREEMENT


def test_compiled_blocks_share_one_program_per_role(engine, monkeypatch):
    from torch._dynamo.utils import counters

    compile_ = torch.nn.Module.compile

    def traced(module, *, mode, **options):
        # This tests the tracing only, because generating machine code takes minutes.
        compile_(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    torch.compiler.reset()
    counters.clear()
    with torch.inference_mode():
        latents = Conditioning.random(engine.dit)
        ours = Ours(steady_runner(engine.dit, engine.orchestrator, latents), latents)
        theirs = Recompute(
            compiled_copy(engine.dit), steady_runner(engine.dit, engine.orchestrator, latents), latents
        )
        ours()
        theirs()
        # Chunk; reference; sink and motion, of equal length; the last block of both, which only stores.
        assert counters["stats"]["unique_graphs"] == 5
        theirs()
        assert counters["stats"]["unique_graphs"] == 5
        assert not counters["graph_break"]
        error = relative_error(theirs.runner.buffers.x_video, ours.runner.buffers.x_video)
        assert error <= gate.AGREEMENT


def test_separate_comparisons_can_be_joined(engine, monkeypatch):
    monkeypatch.setattr(baseline, "ROUNDS", 1)
    found, other = (compare_with_baselines(engine, (name,)) for name in ("eager", "eager-prefix"))
    found = found.joined(other)
    assert list(found.seconds) == ["ours", "eager", "eager-prefix"]
    assert len(found.seconds["ours"]) == 2 * len(found.seconds["eager"])
    assert list(found.ratios) == list(found.errors) == ["eager", "eager-prefix"]
    assert max(found.errors.values()) <= gate.AGREEMENT
    assert found.failures == {}


def test_chunk_lengths_run_on_the_same_weights(engine, monkeypatch):
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
