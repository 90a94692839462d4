"""The window holds whole words, slides with the pointer and depends on the text alone, not on its pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.text import MAX_CHARACTERS, TextError
from streamchar.tokenizers import ByteTokenizer
from streamchar.window import TextWindow

BYTES = ByteTokenizer()


def filled(tokenizer, text, capacity, keep_words=4):
    window = TextWindow(tokenizer, capacity, keep_words)
    window.append(text)
    window.finish()
    return window


def tokens_of(window):
    ids = torch.full((window.capacity,), -1)
    length = window.fill(ids)
    assert (ids[length:] == window.tokenizer.pad).all()
    return ids[:length].tolist()


def text_of(window):
    return window.tokenizer.decode(tokens_of(window))


def test_a_window_holds_as_many_whole_words_as_fit():
    window = filled(BYTES, "one two three four", 13)
    assert text_of(window) == "one two three"
    assert [(word.text, word.start, word.end) for word in window.words] == [
        ("one", 0, 3),
        ("two", 3, 7),
        ("three", 7, 13),
    ]
    assert text_of(filled(BYTES, "one two three four", 12)) == "one two"


def test_the_window_slides_with_the_pointer_and_keeps_a_few_words_behind():
    window = filled(BYTES, "one two three four five six", 18, keep_words=2)
    assert text_of(window) == "one two three four"
    assert window.slide(1.5) == ()
    assert [word.text for word in window.slide(12.5)] == ["one", "two", "three"]
    assert window.slide(12.5) == ()
    assert window.slide(0.0) == ()  # a reading that falls back takes nothing back
    assert (window.spoken, window.exhausted) == (3, False)
    # " two" still has its space: it is no longer the beginning of the text.
    assert text_of(window) == " two three four"
    assert [word.index for word in window.words] == [1, 2, 3]
    assert [word.text for word in window.slide(15)] == ["four"]
    assert text_of(window) == " three four five"
    window.slide(16)
    assert text_of(window) == " four five six"
    assert [word.text for word in window.slide(14)] == ["six"]
    assert (window.spoken, window.exhausted) == (6, True)


def test_kept_words_give_way_to_the_next_one():
    window = filled(BYTES, "aaa bbb ccc dddddddd", 12)
    tokens_of(window)
    window.slide(11.0)
    assert text_of(window) == " dddddddd"


def test_text_appended_while_speaking_enters_with_the_next_fill_and_moves_no_position():
    window = TextWindow(BYTES, 12)
    window.append("one ")
    assert text_of(window) == "one"
    window.append("two three")
    assert [word.text for word in window.words] == ["one"]
    assert [word.text for word in window.slide(3.0)] == ["one"]
    assert window.exhausted is False
    assert text_of(window) == "one two"  # the last word may still go on
    window.append("some")
    window.finish()
    window.slide(7.0)
    assert text_of(window) == " threesome"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_window_does_not_depend_on_how_the_text_was_cut(data):
    text = data.draw(st.text("ab ,\u00e9\u4f60\u597d\u3002\n\u200c\u0627", max_size=40))
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    whole = filled(ByteTokenizer(None), text, 64)
    pieces = TextWindow(ByteTokenizer(None), 64)
    for start, end in zip([0, *places], [*places, len(text)]):
        pieces.append(text[start:end])
    pieces.finish()
    assert tokens_of(pieces) == tokens_of(whole)
    assert pieces.words == whole.words


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=30),
    st.lists(st.floats(0, 24), max_size=40),
    st.integers(0, 5),
)
def test_every_word_is_said_once_and_in_order_and_none_is_split(words, positions, keep_words):
    window = filled(BYTES, " ".join(words), 20, keep_words)
    said = []
    for position in [*positions, *[99.0] * len(words)]:
        shown = text_of(window).split()
        first = window.words[0].index if window.words else window.spoken
        assert shown == words[first : first + len(shown)]
        assert window.exhausted or first <= window.spoken < first + len(shown)
        assert window.spoken - first <= keep_words
        said += [word.text for word in window.slide(position)]
        assert window.spoken == len(said)
    assert said == words
    assert window.exhausted
    assert len(window._entries) <= keep_words


def test_ideographs_are_words_with_their_punctuation():
    window = filled(ByteTokenizer(None), "\u4f60\u597d\uff0cworld\u3002", 64)
    tokens_of(window)
    assert [word.text for word in window.words] == ["\u4f60", "\u597d\uff0c", "world\u3002"]


def test_an_interruption_drops_what_was_not_said_and_the_next_text_goes_on_from_there():
    window = filled(BYTES, "one two three", 32)
    window.append(" unfinish")
    tokens_of(window)
    window.slide(6.0)
    assert window.cut() == 2
    assert window.exhausted
    window.append("new words")
    window.finish()
    assert text_of(window) == "one two new words"
    assert [word.index for word in window.words] == [0, 1, 2, 3]


def test_a_window_without_text_is_empty():
    window = filled(BYTES, " ", 8)
    assert tokens_of(window) == []
    assert window.words == window.slide(3.0) == ()
    assert window.exhausted


def test_a_refused_piece_leaves_the_window_as_it_was():
    window = TextWindow(BYTES, 10)
    window.append("one two ")
    before = tokens_of(window)
    for piece in ("fine incomprehensible ", "so \x00", "\u0434\u0430"):
        with pytest.raises(TextError):
            window.append(piece)
        assert tokens_of(window) == before
    window.append("incomprehensible")
    with pytest.raises(TextError, match="words of at most 10 tokens"):
        window.finish()
    window.append("ok")
    window.finish()
    window.slide(7)
    assert text_of(window) == "one two ok"


def test_what_waits_is_bounded_and_room_returns_as_it_is_said():
    window = TextWindow(BYTES, 50)
    window.append("word " * (MAX_CHARACTERS // 5))
    with pytest.raises(TextError, match="waiting to be spoken"):
        window.append("x")
    tokens_of(window)
    window.slide(50.0)
    window.append("x")


def test_a_buffer_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"ids must have shape \[capacity\] = \[8\]"):
        TextWindow(BYTES, 8).fill(torch.zeros(9, dtype=torch.int64))


@pytest.mark.parametrize(("arguments", "says"), [((0,), "capacity"), ((8, -1), "keep_words")])
def test_an_impossible_window_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        TextWindow(BYTES, *arguments)
