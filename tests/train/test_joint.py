"""Joint batches align picture and sound, are conditioned like sessions, and are denoised together."""

from dataclasses import fields, replace

import pytest
import torch

from streamchar.config import preset
from streamchar.model.kv_cache import KVCache
from streamchar.train.joint import JointData, JointModel, VideoLatents, joint_batch, velocities, without_text
from tests.engine.small import SMALL

PRESET = replace(
    SMALL,
    orchestrator=replace(
        preset("tiny").orchestrator, dim=64, layers=2, heads=1, kv_heads=1, ffn=128, transcript_tokens=48
    ),
)
STRIDE, CHUNK = PRESET.picture.temporal_stride, PRESET.chunk
CHANNELS = PRESET.dit.audio_channels


def numbered(corpus):
    """Return data whose latents encode their recording and time, marked as already normalised."""
    size = PRESET.picture.latent_size
    parts, bounds = [], [0]
    for index, recording in enumerate(corpus):
        count = recording.frames // STRIDE + 1
        values = 100.0 * index + torch.arange(-1.0, count - 1)  # the reference is at -1
        parts.append(values[:, None, None, None].expand(-1, PRESET.picture.channels, *size))
        bounds.append(bounds[-1] + count)
    zeros = torch.zeros(PRESET.picture.channels)
    audio = torch.arange(float(corpus.frames.sum()))[:, None].expand(-1, CHANNELS)
    return JointData(corpus, audio, VideoLatents(torch.cat(parts).half(), bounds, zeros, zeros + 1))


@pytest.fixture(scope="module")
def batch(corpus):
    return joint_batch(PRESET, numbered(corpus), 64, torch.Generator().manual_seed(0))


def test_picture_and_sound_of_a_chunk_are_simultaneous(batch, corpus):
    for row in range(64):
        moments = batch.video[row, :, 0, 0, 0]
        index, start = divmod(int(moments[0]), 100)
        assert torch.equal(moments, torch.arange(CHUNK.latent_frames) + moments[0])
        first = corpus[index].first_frame + STRIDE * start
        assert torch.equal(
            batch.speech.audio[row, :, 0], torch.arange(first, first + PRESET.audio_tokens).float()
        )
        assert batch.reference[row].eq(100 * index - 1).all()


def test_later_chunks_have_first_chunk_as_sink_previous_as_motion(batch):
    noise = 0.15 * 6  # six standard deviations of the highest noise level
    opening = 0
    for row in range(64):
        index, start = divmod(int(batch.video[row, 0, 0, 0, 0]), 100)
        if start == 0:
            opening += 1
            assert not batch.valid[row, 1:].any()
            continue
        assert start >= CHUNK.latent_frames
        sink, motion = batch.sink[row, :, 0, 0, 0], batch.motion[row, :, 0, 0, 0]
        assert (sink - 100 * index - torch.arange(CHUNK.sink_latents)).abs().max() < noise
        assert (
            motion - 100 * index - start + CHUNK.motion_latents - torch.arange(CHUNK.motion_latents)
        ).abs().max() < noise
    assert 0 < opening < 64
    assert not batch.valid[:, 0].all()  # dropped in some rows


def build(corpus, rng, rows=2, draws=2):
    torch.manual_seed(0)
    model = JointModel(PRESET).float()
    data = numbered(corpus)
    video = replace(data.video, latents=torch.randn(data.video.latents.shape, generator=rng))
    audio = torch.randn(data.audio.shape, generator=rng)
    batch = joint_batch(PRESET, JointData(corpus, audio, video), rows, rng)
    x_video = [torch.randn(batch.video.shape, generator=rng) for _ in range(draws)]
    x_audio = [torch.randn(batch.speech.audio.shape, generator=rng) for _ in range(draws)]
    sigmas = torch.rand(rows, draws, generator=rng)
    return model, batch, x_video, x_audio, sigmas


def test_draws_made_together_equal_draws_made_one_at_a_time(corpus, rng):
    model, batch, x_video, x_audio, sigmas = build(corpus, rng)
    cache = KVCache(PRESET, 2, "cpu", torch.float32)
    with torch.no_grad():
        together = velocities(model, cache, batch, x_video, x_audio, sigmas, batch.speech.prefix())
        for index in range(2):
            one = slice(index, index + 1)
            alone = velocities(
                model, cache, batch, x_video[one], x_audio[one], sigmas[:, one], batch.speech.prefix()
            )
            for ours, theirs in zip(together[index], alone[0], strict=True):
                assert ours.shape == theirs.shape
                # The orchestrator computes in bf16 under autocast.
                assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_committed_conditioning_can_be_used_again(corpus, rng):
    model, batch, x_video, x_audio, sigmas = build(corpus, rng, draws=1)
    cache = KVCache(PRESET, 2, "cpu", torch.float32)
    with torch.no_grad():
        (first,) = velocities(model, cache, batch, x_video, x_audio, sigmas, batch.speech.prefix())
        (again,) = velocities(
            model, cache, batch, x_video, x_audio, sigmas, batch.speech.prefix(), committed=True
        )
    assert all(map(torch.equal, first, again))


def test_gradients_reach_all_conditioning(corpus, rng):
    model, batch, x_video, x_audio, sigmas = build(corpus, rng)
    batch.valid.fill_(True)
    for name in ("reference", "sink", "motion"):
        getattr(batch, name).requires_grad_()
    cache = KVCache(PRESET, 2, "cpu", torch.float32)
    made = velocities(model, cache, batch, x_video, x_audio, sigmas, batch.speech.prefix())
    sum(part.square().sum() for pair in made for part in pair).backward()
    for name in ("reference", "sink", "motion"):
        assert getattr(batch, name).grad.flatten(1).abs().amax(1).gt(0).all(), name
    assert model.orchestrator.model.embed_tokens.weight.grad.abs().max() > 0


def test_a_new_joint_model_starts_from_the_orchestrator(corpus):
    torch.manual_seed(0)
    speech, velocity = JointModel(PRESET).orchestrator, torch.nn.Linear(64, CHANNELS)
    model = JointModel(PRESET)
    model.start_from(speech, velocity)
    ours, theirs = model.orchestrator.state_dict(), speech.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(model.dit.condition_in.weight, torch.eye(64).bfloat16())
    assert torch.equal(model.dit.audio_out.weight, velocity.weight.bfloat16())


def test_a_batch_moves_with_all_its_parts(batch):
    moved = batch.to(torch.device("meta"))
    rest = [field.name for field in fields(moved) if field.name != "speech"]
    assert all(getattr(moved, name).is_meta for name in rest)
    assert all(getattr(moved.speech, field.name).is_meta for field in fields(moved.speech))


def test_rows_without_text_ignore_it_and_other_rows_read_it(corpus, rng):
    model, batch, x_video, x_audio, sigmas = build(corpus, rng, draws=1)
    cache = KVCache(PRESET, 2, "cpu", torch.float32)
    silent = without_text(batch, torch.tensor([True, False]))
    assert silent.speech.text_lengths[0] == silent.speech.progress[0] == 0
    assert silent.speech.text_lengths[1] == batch.speech.text_lengths[1] > 0
    assert silent.speech.progress[1] == batch.speech.progress[1]
    ids = torch.randint(1, 100, batch.speech.text_ids.shape, generator=rng)
    other = replace(silent, speech=replace(silent.speech, text_ids=ids))
    with torch.no_grad():
        one, two = (
            velocities(model, cache, each, x_video, x_audio, sigmas, each.speech.prefix())[0]
            for each in (silent, other)
        )
    for ours, theirs in zip(one, two, strict=True):
        assert torch.isfinite(ours).all()
        assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(one[1][1], two[1][1])
