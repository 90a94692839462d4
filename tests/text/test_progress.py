"""Progress in tokens carries over from window to window and ends with discarded text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.text.tokenizers import ByteTokenizer
from streamchar.text.transcript_window import TextWindow

BYTES = ByteTokenizer()


def window_of(text, capacity, keep_words=4):
    window = TextWindow(BYTES, capacity, keep_words)
    window.append(text)
    window.finish()
    return window


def fill(window):
    ids = torch.empty(window.capacity, dtype=torch.int64)
    return window.fill(ids)


def test_progress_carries_over_to_the_next_window():
    window = window_of("one two three four five six", 18, keep_words=2)
    fill(window)
    assert (window.progress, window.tokens_remaining) == (0.0, 27.0)
    window.advance(12.5)  # within " three"
    assert (window.progress, window.tokens_remaining) == (12.5, 14.5)
    fill(window)  # " two three four": the first word's three tokens are gone
    assert (window.progress, window.tokens_remaining) == (9.5, 14.5)
    window.advance(15.0)
    fill(window)  # " three four five"
    assert window.words[0].text == "three"
    assert (window.progress, window.tokens_remaining) == (11.0, 9.0)


def test_a_position_that_falls_back_keeps_the_progress():
    window = window_of("one two three", 32)
    fill(window)
    window.advance(6.25)
    window.advance(2.0)
    assert window.progress == 6.25


def test_progress_never_exceeds_the_text():
    window = window_of("one two", 32)
    fill(window)
    window.advance(99.0)
    assert (window.progress, window.tokens_remaining) == (7.0, 0.0)
    window.append(" three")
    window.finish()
    fill(window)
    assert (window.progress, window.tokens_remaining) == (7.0, 6.0)


def test_a_word_counts_as_spoken_before_its_last_sound_has_faded():
    window = window_of("one two", 32)
    fill(window)
    window.advance(6.0)
    assert window.exhausted
    assert window.tokens_remaining == 1.0


@pytest.mark.parametrize(("position", "said"), [(4.0, 3.0), (6.0, 7.0)], ids=["before", "after its middle"])
def test_discarding_ends_progress_at_the_last_word_spoken(position, said):
    window = window_of("one two three", 32)
    fill(window)
    window.advance(position)
    window.discard_unspoken()
    assert (window.progress, window.tokens_remaining) == (said, 0.0)
    window.append("new words")
    window.finish()
    fill(window)
    assert (window.progress, window.tokens_remaining) == (said, 10.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=20),
    st.lists(st.floats(-1, 24), max_size=30),
    st.integers(0, 5),
)
def test_progress_only_grows_and_stays_within_the_window(words, positions, keep_words):
    window = window_of(" ".join(words), 20, keep_words)
    total = len(" ".join(words))
    before = 0.0
    for position in [*positions, *[99.0] * len(words)]:
        length = fill(window)
        assert 0 <= window.progress <= length
        window.advance(position)
        said = total - window.tokens_remaining
        assert said >= before
        before = said
    assert window.exhausted
    assert window.tokens_remaining == pytest.approx(0, abs=1e-9)


def test_progress_is_zero_while_the_word_before_the_window_sounds():
    window = TextWindow(BYTES, 64, keep_words=0)
    window.append("abcdefgh ijkl ")
    ids = torch.zeros(64, dtype=torch.int64)
    window.fill(ids)
    # Five of eight tokens: the word counts as spoken, the last three still have to sound.
    assert [word.text for word in window.advance(5.0)] == ["abcdefgh"]
    window.fill(ids)
    assert [word.text for word in window.words] == ["ijkl"]
    assert window.progress == 0.0
    remaining = window.tokens_remaining
    window.advance(1.0)
    assert window.progress == 1.0
    assert window.tokens_remaining < remaining - 1
