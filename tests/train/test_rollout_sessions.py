"""Rolled-out sessions have the latents, progress and conditioning of the engine, chunk by chunk."""

from contextlib import nullcontext

import pytest
import torch

from streamchar.model.kv_cache import KVCache
from streamchar.numerics import relative_error
from streamchar.text.tokenizers import ByteTokenizer
from streamchar.train.joint import JointModel, velocities
from streamchar.train.losses.flow import to_clean
from streamchar.train.rollout_sessions import SessionBatch
from tests.engine.small import SMALL, TEXT, build, picture

TOKENS = ByteTokenizer()
CHUNK = SMALL.chunk
SEEDS = 7, 8


def model_of(engine):
    model = JointModel(SMALL)
    model.dit.float().load_state_dict(engine.dit.state_dict())
    model.orchestrator.load_state_dict(engine.orchestrator.state_dict())
    return model


def roll(engine, references, chunks, sink=True, step=0):
    sessions = SessionBatch(model_of(engine), SMALL, TOKENS, len(SEEDS), torch.device("cpu"), sink)
    sessions.begin([TEXT] * len(SEEDS), references, SEEDS[0])
    return sessions, [sessions.make(step) for _ in range(chunks)]


@pytest.fixture(scope="module")
def spoken():
    """Two sessions of an engine: references, and latents and progress of every chunk."""
    engine = build(max_sessions=len(SEEDS))
    sessions = [engine.open(picture(seed), seed=seed) for seed in SEEDS]
    speeches = [session.speak(TEXT, max_seconds=60) for session in sessions]
    rows = engine.scheduler.executor.rows
    references = rows.buffers.reference.clone()
    made = []
    for _ in range(3):
        parts = []
        for session, speech in zip(sessions, speeches, strict=True):
            next(speech)
            buffers = rows[session.row].runner.buffers
            parts.append([x.clone() for x in (buffers.x_video, buffers.x_audio, buffers.progress)])
        made.append([torch.cat(each) for each in zip(*parts, strict=True)])
    return engine, references, made


def test_chunks_equal_those_of_the_engine(spoken):
    engine, references, expected = spoken
    _, chunks = roll(engine, references, len(expected))
    for chunk, (video, audio, progress) in zip(chunks, expected, strict=True):
        made = chunk.batch.video, chunk.batch.speech.audio, chunk.batch.speech.progress
        for ours, theirs in zip(made, (video, audio, progress), strict=True):
            # Two rows in one pass are rounded differently from two passes of one row.
            assert relative_error(ours, theirs.double()) < 1e-6


def test_a_chunk_has_its_conditioning(spoken):
    engine, references, _ = spoken
    sessions, chunks = roll(engine, references, 3)
    first, second, third = (chunk.batch for chunk in chunks)
    assert first.valid.tolist() == [[True, False, False]] * 2
    assert second.valid.all()
    assert third.valid.all()
    assert torch.equal(third.reference, references)
    assert torch.equal(third.sink, first.video[:, : CHUNK.sink_latents])
    assert torch.equal(third.motion, second.video[:, -CHUNK.motion_latents :])
    heard = torch.cat((first.speech.audio, second.speech.audio), 1)
    lengths = third.speech.history_lengths.tolist()
    assert lengths == [min(heard.shape[1], SMALL.history_tokens)] * 2
    assert torch.equal(third.speech.history[:, : lengths[0]], heard[:, -lengths[0] :])
    assert torch.equal(sessions.audio()[:, :-32], heard)


@pytest.mark.parametrize("chunk", [0, 1, 2], ids=["opening", "second", "later"])
def test_repeating_the_last_step_gives_the_chunk(chunk, spoken, monkeypatch):
    engine, references, _ = spoken
    last = SMALL.sampler.steps - 1
    _, chunks = roll(engine, references, 3, step=last)
    batch, x, sigma = chunks[chunk].batch, chunks[chunk].x, torch.full((2,), SMALL.sampler.sigmas[last])
    assert torch.equal(x[1], chunks[chunk].x_audio_last)
    assert not torch.equal(x[1], batch.speech.audio)
    model, cache = model_of(engine), KVCache(SMALL, 2, torch.device("cpu"), torch.float32)
    context = sigma[:, None], batch.speech.prefix()
    # Training computes the orchestrator in bf16, whose rounding would hide small errors.
    monkeypatch.setattr(torch, "autocast", lambda *_: nullcontext())
    with torch.no_grad():
        ((video, audio),) = velocities(model, cache, batch, (x[0],), (x[1],), *context)
    made = to_clean(x[0], video, sigma), to_clean(x[1], audio, sigma)
    for ours, theirs in zip(made, (batch.video, batch.speech.audio), strict=True):
        # The same sums in fp32; matrix products of other shapes may round differently: 8 epsilons.
        assert relative_error(ours, theirs.double()) < 1e-6


def test_before_the_first_step_latents_are_noise(spoken):
    engine, references, _ = spoken
    _, chunks = roll(engine, references, 2, step=0)
    assert chunks[1].x[0].std().item() == pytest.approx(1.0, abs=0.1)
    assert chunks[1].x[1].std().item() == pytest.approx(1.0, abs=0.1)


def test_the_transcript_is_the_text_up_to_the_window(spoken):
    engine, references, _ = spoken
    sessions, chunks = roll(engine, references, 3)
    for row in range(2):
        said = sessions.transcript(row)
        assert bytes(said).decode() == TEXT[: len(said)]
        chunk = chunks[-1]
        length = int(chunk.batch.speech.text_lengths[row])
        assert chunk.batch.speech.text_ids[row, :length].tolist() == said[chunk.origins[row] :]


def test_without_the_sink_nothing_attends_to_it(spoken):
    engine, references, _ = spoken
    sessions, chunks = roll(engine, references, 2, sink=False)
    assert not chunks[1].batch.valid[:, 1].any()
    assert chunks[1].batch.valid[:, 2].all()
    assert not sessions._cache.tables["chunk"].segments[:, 1, 1].any()


def test_changed_weights_apply_to_the_next_chunk(spoken):
    engine, references, _ = spoken
    _, expected = roll(engine, references, 1)
    sessions = SessionBatch(model := model_of(engine), SMALL, TOKENS, 2, torch.device("cpu"))
    with torch.no_grad():
        model.dit.table.mul_(2)
    sessions.begin([TEXT] * 2, references, SEEDS[0])
    assert not torch.allclose(sessions.make(0).batch.video, expected[0].batch.video)
