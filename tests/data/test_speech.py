"""Synthesised speech has the tokens of a session, and their times match the audio."""

import numpy as np
import pytest

pytest.importorskip("hibari")

from streamchar.config import CLOCK
from streamchar.data.speech import DURATION_DELAY, LEAD, Speaker
from streamchar.errors import ArgumentError
from streamchar.text.tokenizers import PhonemeTokenizer

TEXT = "Hello there, my friend. It is 7 o'clock!"


@pytest.fixture(scope="module")
def speaker():
    return Speaker()


@pytest.fixture(scope="module")
def utterance(speaker):
    return speaker.say(TEXT)


def test_tokens_are_those_of_the_words_one_by_one(utterance):
    tokenizer = PhonemeTokenizer()
    words = TEXT.split()
    expected, ends = [], []
    for index, word in enumerate(words):
        expected += tokenizer.encode(" " + word if index else word)
        ends.append(len(expected))
    assert list(utterance.tokens) == expected
    assert list(utterance.word_ends) == ends
    assert utterance.symbols == tokenizer.decode(expected)


def test_times_rise_and_cover_the_audio(utterance):
    assert utterance.ends.shape == (len(utterance.tokens),)
    assert (np.diff(utterance.ends) >= 0).all()
    assert utterance.ends[0] >= 0
    # The synthesiser rounds the length of a sentence to its own frames.
    seconds = len(utterance.audio) / CLOCK.sample_rate
    assert utterance.ends[-1] == pytest.approx(seconds - DURATION_DELAY, abs=0.02)


def test_sound_starts_early_and_sentence_spaces_are_pauses(utterance):
    level = np.abs(utterance.audio)
    loud = np.flatnonzero(level > 0.05 * level.max())
    assert loud[0] / CLOCK.sample_rate < LEAD + 0.2
    space = utterance.symbols.index(".") + 1
    assert utterance.symbols[space] == " "
    starts = np.concatenate(([0.0], utterance.ends))
    first, last = (round(each * CLOCK.sample_rate) for each in starts[space : space + 2])
    assert level[first:last].mean() < 0.2 * level.mean()


def test_a_joined_sentence_is_the_one_synthesised_alone(speaker, utterance):
    alone = speaker.say("Hello there, my friend.")
    count = len(alone.tokens)
    assert utterance.tokens[:count] == alone.tokens
    assert np.array_equal(utterance.audio[: len(alone.audio)], alone.audio)
    np.testing.assert_allclose(utterance.ends[:count], alone.ends, atol=1e-5)


def test_samples_depend_on_seed_and_speed_alone(speaker, utterance):
    assert np.array_equal(speaker.say(TEXT).audio, utterance.audio)
    assert not np.array_equal(speaker.say(TEXT, seed=1).audio, utterance.audio)
    assert len(speaker.say(TEXT, speed=1.25).audio) < 0.9 * len(utterance.audio)


def test_a_text_without_sound_is_refused(speaker):
    with pytest.raises(ArgumentError, match="text must be something that can be spoken, got ''"):
        speaker.say("")
