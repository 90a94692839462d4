"""Chunks cut out of recordings have the window, progress, history and audio of a session."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from streamchar.config import preset
from streamchar.data.corpus import Recording
from streamchar.model.orchestrator import append_history
from streamchar.train.batches import random_audio, random_recordings, recording_audio, speech_batch

TINY = preset("tiny")
#: A window that is shorter than a recording.
SHORT = replace(TINY, orchestrator=replace(TINY.orchestrator, transcript_tokens=24))
CHUNK, HISTORY = TINY.audio_tokens, TINY.history_tokens
CHANNELS = 3


@pytest.fixture(scope="module")
def latents(corpus):
    """Latents that encode the index of their frame in the corpus."""
    frames = torch.arange(float(corpus.frames.sum()))
    return torch.stack((frames, -frames, frames % 7), 1)


def places(corpus):
    return [(recording, start) for recording in corpus for start in range(0, recording.frames - CHUNK, 5)]


def said_by(recording, frame):
    """Return the tokens spoken at a frame, by linear search."""
    start = 0.0
    for index, end in enumerate(recording.ends.tolist()):
        if frame < end:
            return index + (frame - start) / (end - start)
        start = end
    return float(len(recording.tokens))


def window_start(recording, row):
    """Return the positions in the recording at which the tokens of a row can start."""
    ids = row["text_ids"][: int(row["text_lengths"])].tolist()
    whole = recording.tokens.tolist()
    fits = [at for at in range(len(whole) - len(ids) + 1) if whole[at : at + len(ids)] == ids]
    said = said_by(recording, row["frame"])
    return [at for at in fits if abs(said - at - float(row["progress"])) < 1e-3]


def rows_of(batch, at):
    return [
        {**{name: value[index] for name, value in vars(batch).items()}, "frame": frame}
        for index, (_, frame) in enumerate(at)
    ]


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_windows_are_whole_words_around_the_current_one(corpus, latents, kept):
    at = places(corpus)
    batch = speech_batch(SHORT, at, latents, [kept] * len(at))
    for (recording, start), row in zip(at, rows_of(batch, at), strict=True):
        length = int(row["text_lengths"])
        edges = [0, *recording.words.tolist()]
        found = window_start(recording, row)
        assert found, f"no place fits recording {recording.index} at frame {start}"
        first = found[0]
        assert first in edges
        assert first + length in edges
        assert length <= 24
        assert not row["text_ids"][length:].any()
        # The next word would not fit.
        later = [edge for edge in edges if edge > first + length]
        assert not later or later[0] - first > 24
        # The window keeps as many spoken words as requested if they leave room for the current word.
        said = sum(edge <= said_by(recording, start) for edge in edges[1:])
        current = edges[min(said + 1, len(edges) - 1)]
        fitting = [word for word in range(max(said - kept, 0), said) if current - edges[word] <= 24]
        assert edges.index(first) == min([*fitting, said])


def test_positions_and_durations_are_the_recordings_times(corpus, latents):
    at = places(corpus)
    batch = speech_batch(TINY, at, latents, [3] * len(at))
    for (recording, start), row in zip(at, rows_of(batch, at), strict=True):
        first, length = window_start(recording, row)[0], int(row["text_lengths"])
        expected = [said_by(recording, start + frame + 1) - first for frame in range(CHUNK)]
        np.testing.assert_allclose(row["position"], np.clip(expected, 0, length), atol=1e-3)
        assert (row["position"].diff() >= 0).all()
        ends = np.concatenate(([0.0], recording.ends))[first : first + length + 1]
        np.testing.assert_allclose(row["durations"][:length], np.diff(ends), atol=1e-4)
        assert not row["durations"][length:].any()


def test_history_is_that_of_a_session(corpus, latents):
    recording = max(corpus, key=lambda each: each.frames)
    own = latents[recording.first_frame :][: recording.frames]
    history, heard = torch.zeros(1, HISTORY, CHANNELS), torch.zeros(1, dtype=torch.int32)
    for start in range(0, recording.frames - CHUNK, CHUNK):
        batch = speech_batch(TINY, [(recording, start)], latents, [4])
        assert batch.history_lengths.tolist() == heard.tolist() == [min(start, HISTORY)]
        assert torch.equal(batch.history[0, : heard[0]], history[0, : heard[0]])
        assert torch.equal(batch.audio[0], own[start : start + CHUNK])
        append_history(history, heard, batch.audio)


def test_a_chunk_past_the_end_repeats_the_last_frame(corpus, latents):
    recording = corpus[0]
    batch = speech_batch(TINY, [(recording, recording.frames - 5)], latents, [4])
    own = latents[recording.first_frame :][: recording.frames]
    assert torch.equal(batch.audio[0, :5], own[-5:])
    assert torch.equal(batch.audio[0, 5:], own[-1:].expand(CHUNK - 5, -1))
    # All tokens have been spoken.
    assert batch.position[0].eq(batch.text_lengths[0]).all()
    assert batch.progress[0] == batch.text_lengths[0]


def test_recordings_are_drawn_in_proportion_to_their_length(corpus, rng):
    drawn = random_recordings(corpus, 4000, rng)
    assert all(isinstance(each, Recording) for each in drawn)
    counts = np.bincount([each.index for each in drawn], minlength=len(corpus)) / 4000
    # Six standard errors.
    np.testing.assert_allclose(counts, corpus.frames / corpus.frames.sum(), atol=6 * 0.5 / 4000**0.5)
    shortest = int(corpus.frames.min())
    assert all(each.frames > shortest for each in random_recordings(corpus, 200, rng, shortest))


def test_excerpts_start_at_whole_tokens_and_end_in_silence(corpus, rng):
    recordings = [recording_audio(corpus, index) for index in range(len(corpus))]
    excerpts = random_audio(corpus, 5, 8, rng)
    assert excerpts.shape == (5, 8000)
    for excerpt in excerpts:
        assert any(
            torch.equal(audio[start : start + 8000], excerpt)
            for audio in recordings
            for start in range(0, len(audio) - 7999, 1000)
        )
    tokens = int(corpus.frames.max()) + 3
    (long,) = random_audio(corpus, 1, tokens, rng)
    whole = next(audio for audio in recordings if torch.equal(audio, long[: len(audio)]))
    assert not long[len(whole) :].any()
    assert whole.abs().max() <= 1
