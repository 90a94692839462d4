"""The aligner finds the position in the text at every frame, wherever the audio starts and ends."""

import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from streamchar.config import preset
from streamchar.train.loop import run
from streamchar.train.stages.aligner import (
    SILENCE,
    AlignerStage,
    FrameClassifier,
    TokenTimeline,
    align,
    held_out,
)
from streamchar.train.stages.aligner_errors import CHANGES, changed, errors
from streamchar.train.workshop import Workshop

TINY = preset("tiny")
VOCABULARY = 40
#: Total probability of the tokens that do not sound in a frame.
UNHEARD = 1e-3


def speech(generator, tokens, shortest=1.0, longest=3.0):
    """Return a text without repeated neighbours, and the ends of its tokens in frames."""
    steps = torch.randint(1, VOCABULARY - 1, (tokens,), generator=generator)
    text = 1 + (steps.cumsum(0) % (VOCABULARY - 1))
    lengths = shortest + (longest - shortest) * torch.rand(tokens, generator=generator)
    return text.tolist(), lengths.double().cumsum(0).numpy()


def heard(text, ends, frames, silence=0):
    """Return log-probabilities of a classifier that estimates every share exactly."""
    edges = silence + np.concatenate(([-silence, 0.0], ends, [max(frames, ends[-1]) + 1]))
    labels = torch.tensor([SILENCE, *text, SILENCE])
    frame = np.arange(frames)[:, None]
    overlap = np.minimum(edges[1:], frame + 1) - np.maximum(edges[:-1], frame)
    shares = torch.zeros(frames, VOCABULARY).index_add_(1, labels, torch.from_numpy(overlap.clip(0)).float())
    return ((1 - UNHEARD) * shares + UNHEARD / VOCABULARY).log()


def said(ends, frames, silence=0):
    """Return the true position."""
    edges = silence + np.concatenate(([0.0], ends))
    return torch.from_numpy(np.interp(np.arange(1, frames + 1), edges, np.arange(len(edges)))).float()


def test_exact_estimates_align_to_a_quarter_of_a_token(rng):
    text, ends = speech(rng, 60)
    frames = int(ends[-1]) + 12
    position = align(heard(text, ends, frames), text)
    assert position.dtype == torch.float32
    assert (position - said(ends, frames)).abs().max() < 0.25
    assert position[-1] == len(text)


def test_tokens_shorter_than_a_frame_are_skipped(rng):
    text, ends = speech(rng, 120, shortest=0.3, longest=1.5)
    frames = int(ends[-1])
    error = (align(heard(text, ends, frames), text) - said(ends, frames)).abs()
    assert error.max() < 1.5
    assert error.median() < 0.25


@pytest.mark.parametrize("spoken", [5, 23, 59])
def test_the_text_may_continue_after_the_audio(spoken, rng):
    text, ends = speech(rng, 60)
    frames = int(ends[spoken])
    error = align(heard(text, ends, frames), text) - said(ends, frames)
    assert error.abs().max() < 1


@pytest.mark.parametrize("silence", [1, 10, 50])
def test_the_position_stays_zero_in_leading_silence(silence, rng):
    text, ends = speech(rng, 20)
    frames = silence + int(ends[-1]) + 6
    position = align(heard(text, ends, frames, silence), text)
    assert torch.equal(position[: silence - 1], torch.zeros(silence - 1))
    assert (position - said(ends, frames, silence)).abs().max() < 0.3


def test_the_position_holds_during_a_pause(rng):
    text, ends = speech(rng, 40)
    cut = int(ends[19])
    whole = heard(text, ends, int(ends[-1]))
    pause = torch.full((30, VOCABULARY), UNHEARD / VOCABULARY).log()
    pause[:, SILENCE] = 0
    position = align(torch.cat((whole[:cut], pause, whole[cut:])), text)
    assert (position[cut : cut + 30] - 20).abs().max() <= 1.5
    # The position before and after the pause is unchanged.
    assert (position[cut + 33 :] - said(ends, len(whole))[cut + 3 :]).abs().max() < 0.5


def test_a_word_that_was_not_said_is_passed_over(rng):
    text, ends = speech(rng, 40)
    lengths = np.diff(ends, prepend=0.0)
    lengths[15:21] = 0
    shorter = lengths.cumsum()
    frames = int(shorter[-1])
    kept = [index for index in range(40) if not 15 <= index < 21]
    spoken = heard([text[index] for index in kept], shorter[kept], frames)
    position, edge = align(spoken, text), int(shorter[14])
    truth = said(shorter, frames)
    error = (position - truth).abs()
    assert max(error[: edge - 1].max(), error[edge + 2 :].max()) < 0.3


@pytest.mark.parametrize("start", [0.0, 3.0, 7.6])
def test_a_later_excerpt_continues_from_its_start_position(start, rng):
    text, ends = speech(rng, 30)
    edges = np.concatenate(([0.0], ends))
    lengths = ends - np.interp(start, np.arange(31), edges)
    first = int(start)
    spoken = heard(text[first:], lengths[first:], int(lengths[-1]))
    position = align(spoken, text, start)
    truth = np.interp(np.arange(1, len(spoken) + 1) + edges[-1] - lengths[-1], edges, np.arange(31))
    assert position[0] >= start
    assert (position - torch.from_numpy(truth)).abs().max() < 0.5


def test_the_position_never_falls_even_on_noise(rng):
    text, _ = speech(rng, 80)
    for scale in (0.1, 1.0, 30.0):
        noise = (scale * torch.randn(90, VOCABULARY, generator=rng)).log_softmax(-1)
        for start in (0.0, 11.3, 80.0):
            position = align(noise, text, start)
            assert position.shape == (90,)
            assert start - 1e-5 <= position.min()
            assert position.max() <= 80
            assert (position.diff() >= 0).all()


def test_no_frames_give_no_positions():
    assert align(torch.zeros(0, VOCABULARY), [1, 2]).shape == (0,)


@pytest.mark.parametrize(
    ("shape", "text", "start", "message"),
    [
        ((1, 9, 8), [1], 0.0, r"log_probs must be \[frames, vocabulary\], got \[1, 9, 8\]"),
        ((9, 8), [], 0.0, "tokens must be a sequence of at least 1, got none"),
        ((9, 8), [1, 8], 0.0, "tokens must be between 0 and 7.*, got 1 to 8"),
        ((9, 8), [-1, 2], 0.0, "tokens must be between 0 and 7.*, got -1 to 2"),
        ((9, 8), [1, 2], 2.5, "start must be between 0 and 2.*, got 2.5"),
        ((9, 8), [1, 2], float("nan"), "start must be between 0 and 2.*, got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(shape, text, start, message):
    with pytest.raises(ValueError, match=message):
        align(torch.zeros(shape), text, start)


def test_aligning_takes_less_than_20_milliseconds(rng):
    noise = torch.randn(300, VOCABULARY, generator=rng).log_softmax(-1)
    text, _ = speech(rng, 250)
    taken = []
    for _ in range(7):
        began = time.thread_time()
        align(noise, text)
        taken.append(time.thread_time() - began)
    assert min(taken) < 0.02


def test_shares_follow_from_token_times(corpus):
    timeline = TokenTimeline(corpus, range(len(corpus)))
    assert timeline.frames == corpus.frames.sum()
    shares = timeline.shares(0, timeline.frames, 192)
    torch.testing.assert_close(shares.sum(1), torch.ones(timeline.frames), atol=1e-4, rtol=0)
    for recording in corpus:
        piece = shares[recording.first_frame : recording.first_frame + recording.frames]
        lengths = np.diff(recording.ends, prepend=0.0)
        for token in set(recording.tokens.tolist()):
            assert float(piece[:, token].sum()) == pytest.approx(
                lengths[recording.tokens == token].sum(), abs=1e-2
            )
        assert piece[int(np.ceil(recording.ends[-1])) :, SILENCE].min() == 1
    torch.testing.assert_close(timeline.shares(17, 30, 192), shares[17:47], atol=1e-6, rtol=0)


def test_the_receptive_field_is_ten_frames_to_either_side(rng):
    classifier = FrameClassifier.from_preset(TINY).eval()
    latents = torch.randn(1, 60, 64, generator=rng)
    changed = latents.clone()
    changed[0, 30] += 1
    with torch.no_grad():
        one, other = classifier(latents), classifier(changed)
    torch.testing.assert_close(one.exp().sum(-1), torch.ones(1, 60))
    moved = (one - other).abs().amax((0, 2)).nonzero().flatten().tolist()
    assert moved == list(range(20, 41))


def test_the_network_learns_and_its_average_is_loaded(corpus, tmp_path, monkeypatch):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    generator = torch.Generator().manual_seed(0)
    # Latents are a random linear code of the spoken tokens.
    timeline = TokenTimeline(corpus, range(len(corpus)))
    code = torch.randn(192, 64, generator=generator)
    latents = (timeline.shares(0, timeline.frames, 192) @ code).half()
    monkeypatch.setattr(Workshop, "audio", lambda _: latents)
    workshop = Workshop(tmp_path, TINY, torch.device("cpu"))
    stage = workshop.stage(
        "aligner", lambda config: replace(config, steps=30, batch=4, warmup=5, lr=5e-3, ema=0.5)
    )
    assert isinstance(stage, AlignerStage)
    first = stage.update(0, torch.Generator().manual_seed(1))["entropy"]
    assert run(stage, workshop.runs) == 30
    last = stage.update(30, torch.Generator().manual_seed(1))["entropy"]
    assert last < 0.6 * first
    loaded = workshop.aligner()
    assert all(
        map(
            torch.equal,
            loaded.parameters(),
            torch.load(workshop.runs / "aligner" / "checkpoint.pt", weights_only=True)["trained"]["aligner"][
                "ema"
            ],
        )
    )


def test_the_last_recordings_are_held_out():
    assert [held_out(range(count)) for count in (3, 50, 2999)] == [0, 1, 59]


class Oracle(torch.nn.Module):
    """A classifier of latents that are the shares of tokens."""

    def forward(self, latents):
        return (latents + 1e-5).log()


@pytest.mark.parametrize("change", CHANGES)
def test_a_perfect_classifier_finds_the_true_alignment(change, corpus):
    timeline = TokenTimeline(corpus, range(len(corpus)))
    latents = timeline.shares(0, timeline.frames, 192)
    for case in changed(corpus, latents, change, range(len(corpus))):
        case = replace(case, latents=case.latents.clamp(min=0))
        assert (np.diff(case.times) >= 0).all()
        assert case.places[-1] == len(case.tokens)
        tokens, frames = errors(Oracle(), case)
        assert np.median(np.abs(tokens)) < 0.3
        # Noise on shares is as strong as the shares; noise on latents is weaker.
        assert np.median(np.abs(frames)) < (1.0 if change == "noise 0.3" else 0.5)
