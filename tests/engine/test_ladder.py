"""The top rung of the numerics ladder: eight chunks of an engine against recomputing everything.

Kernels are compared with float64 in tests/numerics, a block and a chunk with an independent dense forward in
test_model.py. Here the engine's streams, caches and committed latents run for eight chunks, each feeding on
those before, and every chunk is made again from scratch: conditioning recomputed at every denoising step in a
new cache, the orchestrator as one full pass, the decoders in one piece over the whole clip.
"""

from dataclasses import replace

import pytest
import torch

from streamchar.kernels import sampler_noise, sampler_step
from streamchar.model.denoiser import Denoiser
from streamchar.model.kv_cache import KVCache
from streamchar.model.orchestrator import append_history
from tests.closeness import assert_close
from tests.engine.small import PLANNED, SMALL, TEXT, OpenRow, build, media, one_pass, picture, take
from tests.engine.threads import Steps

T = SMALL.chunk.latent_frames
#: The bound of one chunk in test_model.py, and half as much for what seven chunks before it hand on.
GROWTH = 60.0


def from_scratch(engine, reference, seed, windows):
    """Make the chunks again, remembering nothing but finished latents."""
    preset, dit, orchestrator = engine.preset, engine.dit, engine.orchestrator
    denoiser = Denoiser(dit)
    latent = engine.vae.encode_image(reference[None])
    history = torch.zeros((1, preset.history_tokens, preset.dit.audio_channels))
    lengths = torch.zeros(1, dtype=torch.int32)
    seeds = torch.tensor([seed])
    video, audio = [], []
    for chunk, (ids, count, progress) in enumerate(windows):
        x_video = torch.empty(
            (1, preset.chunk.latent_frames, preset.picture.channels, *preset.picture.latent_size)
        )
        x_audio = torch.empty((1, preset.audio_tokens, preset.dit.audio_channels))
        number = torch.tensor([chunk])
        sampler_noise(x_video, x_audio, seeds, number)
        for step in range(denoiser.steps):
            cache = KVCache(preset)
            given = {"reference": latent[:, None]}
            if video:
                given |= {"sink": video[0][:, : preset.chunk.sink_latents]}
                given |= {"motion": video[-1][:, T - preset.chunk.motion_latents :]}
            for role, latents in given.items():
                if not latents.shape[1]:
                    continue
                dit.commit(role, latents, denoiser.modulation, cache)
                cache.set_valid(0, **{role: True})
            sigma = denoiser.sigmas[step].expand(1)
            c_a, _ = one_pass(orchestrator, ids, count, history, lengths, x_audio, sigma, progress)
            index = torch.tensor([step], dtype=torch.int32)
            v_video, v_audio = dit.step(x_video, x_audio, c_a, index, denoiser.modulation, cache)
            sampler_step(x_video, x_audio, v_video, v_audio, denoiser.sigmas, index, seeds, number)
        video.append(x_video)
        audio.append(x_audio)
        append_history(history, lengths, x_audio)
    frames = engine.vae.decode_clip(torch.cat([latent[:, None], *video], 1))[0, 1:]
    samples = engine.vocoder.decode(engine.vocoder.new_state(1), torch.cat(audio, 1))[0]
    return frames, samples


def conditions(buffers):
    """Return what the orchestrator is asked with: the window, its length, and how much of it is said."""
    return buffers.text_ids.clone(), buffers.text_lengths.clone(), buffers.progress.clone()


@pytest.mark.parametrize("config", [SMALL, PLANNED], ids=["pretrained", "planned-durations"])
@pytest.mark.parametrize(
    ("sink", "motion", "chunks"), [(T, T, 8), (0, T, 3), (T, 0, 3), (0, 0, 3), (1, 1, 3)]
)
def test_the_chunks_of_a_stream_equal_recomputing_everything(config, sink, motion, chunks):
    kept = replace(config.chunk, sink_latents=sink, motion_latents=motion)
    engine = build(config=replace(config, chunk=kept))
    buffers, windows = engine.scheduler.executor.rows.buffers, []

    def record(step):
        if step == 0:
            windows.append(conditions(buffers))

    with engine.open(picture(), seed=7) as session, Steps(record):
        video, audio = media(take(session, chunks, " ".join([TEXT] * 4)))
    assert len(windows) == chunks
    with torch.no_grad():
        frames, samples = from_scratch(engine, picture(), 7, windows)
    assert_equal_to_rounding(video, audio, frames, samples)


def assert_equal_to_rounding(video, audio, frames, samples):
    assert_close(audio, samples, torch.float32, GROWTH)
    expected = ((frames + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    # A byte may fall on either side of a half; nowhere do the streams part by more.
    assert (video.float() - expected).abs().max() <= 1


@torch.inference_mode()
def test_batched_passes_equal_recomputing_each_session_alone():
    # One session is a chunk ahead: the first commit of the other, its sink, falls into a pass of both.
    engine, seeds = build(max_sessions=2, config=PLANNED), (7, 8)
    open_rows = [OpenRow(engine, seed, " ".join([TEXT] * 3) + " ") for seed in seeds]
    executor, windows, chunks = engine.scheduler.executor, [[], []], [[], []]
    for rows in ((0,), (0, 1), (0, 1), (0, 1)):
        requests = [open_rows[row].request() for row in rows]
        executor.run(requests)
        for row, request in zip(rows, requests, strict=True):
            windows[row].append(conditions(executor.rows[row].runner.buffers))
            chunks[row].append(executor.deliver(request.pending))
    assert engine.stats().batched == 6
    for row, seed in enumerate(seeds):
        made = from_scratch(engine, picture(seed), seed, windows[row])
        assert_equal_to_rounding(*media(chunks[row]), *made)
