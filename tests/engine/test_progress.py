"""How far the speech has come, in tokens: carried from window to window, and gone with what is dropped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.tokenizers import ByteTokenizer
from streamchar.window import TextWindow

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
    assert (window.progress, window.remaining) == (0.0, 27.0)
    window.slide(12.5)  # within " three"
    assert (window.progress, window.remaining) == (12.5, 14.5)
    fill(window)  # " two three four": the first word's three tokens are gone
    assert (window.progress, window.remaining) == (9.5, 14.5)
    window.slide(15.0)
    fill(window)  # " three four five"
    assert window.words[0].text == "three"
    assert (window.progress, window.remaining) == (11.0, 9.0)


def test_a_reading_that_falls_back_takes_no_progress_back():
    window = window_of("one two three", 32)
    fill(window)
    window.slide(6.25)
    window.slide(2.0)
    assert window.progress == 6.25


def test_progress_ends_with_the_text_however_far_the_pointer_reads():
    window = window_of("one two", 32)
    fill(window)
    window.slide(99.0)
    assert (window.progress, window.remaining) == (7.0, 0.0)
    window.append(" three")
    window.finish()
    fill(window)
    assert (window.progress, window.remaining) == (7.0, 6.0)


def test_a_word_counts_as_said_before_its_last_sound_has_faded():
    window = window_of("one two", 32)
    fill(window)
    window.slide(6.0)
    assert window.exhausted
    assert window.remaining == 1.0


@pytest.mark.parametrize(("position", "said"), [(4.0, 3.0), (6.0, 7.0)], ids=["before", "after its middle"])
def test_a_cut_ends_progress_at_the_last_word_said(position, said):
    window = window_of("one two three", 32)
    fill(window)
    window.slide(position)
    window.cut()
    assert (window.progress, window.remaining) == (said, 0.0)
    window.append("new words")
    window.finish()
    fill(window)
    assert (window.progress, window.remaining) == (said, 10.0)


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
        # Below 0 where the window begins after a word whose second half, 5 tokens at most, is being said.
        assert -5 <= window.progress <= length
        window.slide(position)
        said = total - window.remaining
        assert said >= before
        before = said
    assert window.exhausted
    assert window.remaining == pytest.approx(0, abs=1e-9)


def test_a_window_that_begins_behind_a_word_still_sounding_is_not_begun():
    window = TextWindow(BYTES, 64, keep_words=0)
    window.append("abcdefgh ijkl ")
    ids = torch.zeros(64, dtype=torch.int64)
    window.fill(ids)
    # Five of eight tokens: the word is said, the last three are still to sound.
    assert [word.text for word in window.slide(5.0)] == ["abcdefgh"]
    window.fill(ids)
    assert [word.text for word in window.words] == ["ijkl"]
    assert window.progress == 0.0
    remaining = window.remaining
    window.slide(1.0)
    assert window.progress == 1.0
    assert window.remaining < remaining - 1
