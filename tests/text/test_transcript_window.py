"""The window contains whole words, advances with the pointer and depends only on the text, not its pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.text.normalize import MAX_CHARACTERS, TextError
from streamchar.text.tokenizers import ByteTokenizer
from streamchar.text.transcript_window import TextWindow

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


def test_a_window_contains_as_many_whole_words_as_fit():
    window = filled(BYTES, "one two three four", 13)
    assert text_of(window) == "one two three"
    assert [(word.text, word.start, word.end) for word in window.words] == [
        ("one", 0, 3),
        ("two", 3, 7),
        ("three", 7, 13),
    ]
    assert text_of(filled(BYTES, "one two three four", 12)) == "one two"


def test_window_advances_with_the_pointer_and_keeps_spoken_words():
    window = filled(BYTES, "one two three four five six", 18, keep_words=2)
    assert text_of(window) == "one two three four"
    assert window.advance(1.5) == ()
    assert [word.text for word in window.advance(12.5)] == ["one", "two", "three"]
    assert window.advance(12.5) == ()
    assert window.advance(0.0) == ()  # a position that falls back unsays no word
    assert (window.words_spoken, window.exhausted) == (3, False)
    # " two" keeps its space: it is not the first word of the text.
    assert text_of(window) == " two three four"
    assert [word.index for word in window.words] == [1, 2, 3]
    assert [word.text for word in window.advance(15)] == ["four"]
    assert text_of(window) == " three four five"
    window.advance(16)
    assert text_of(window) == " four five six"
    assert [word.text for word in window.advance(14)] == ["six"]
    assert (window.words_spoken, window.exhausted) == (6, True)


def test_kept_words_make_room_for_the_next_one():
    window = filled(BYTES, "aaa bbb ccc dddddddd", 12)
    tokens_of(window)
    window.advance(11.0)
    assert text_of(window) == " dddddddd"


def test_text_appended_while_speaking_enters_with_the_next_fill():
    window = TextWindow(BYTES, 12)
    window.append("one ")
    assert text_of(window) == "one"
    window.append("two three")
    assert [word.text for word in window.words] == ["one"]
    assert [word.text for word in window.advance(3.0)] == ["one"]
    assert window.exhausted is False
    assert text_of(window) == "one two"  # the last word is not complete
    window.append("some")
    window.finish()
    window.advance(7.0)
    assert text_of(window) == " threesome"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_window_does_not_depend_on_how_the_text_was_split(data):
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
def test_every_word_is_spoken_whole_once_and_in_order(words, positions, keep_words):
    window = filled(BYTES, " ".join(words), 20, keep_words)
    said = []
    for position in [*positions, *[99.0] * len(words)]:
        shown = text_of(window).split()
        first = window.words[0].index if window.words else window.words_spoken
        assert shown == words[first : first + len(shown)]
        assert window.exhausted or first <= window.words_spoken < first + len(shown)
        assert window.words_spoken - first <= keep_words
        said += [word.text for word in window.advance(position)]
        assert window.words_spoken == len(said)
    assert said == words
    assert window.exhausted
    assert len(window._entries) <= keep_words


def test_an_ideograph_is_a_word_with_its_punctuation():
    window = filled(ByteTokenizer(None), "\u4f60\u597d\uff0cworld\u3002", 64)
    tokens_of(window)
    assert [word.text for word in window.words] == ["\u4f60", "\u597d\uff0c", "world\u3002"]


def test_the_next_text_continues_after_unspoken_text_is_discarded():
    window = filled(BYTES, "one two three", 32)
    window.append(" unfinish")
    tokens_of(window)
    window.advance(6.0)
    assert window.discard_unspoken() == 2
    assert window.exhausted
    window.append("new words")
    window.finish()
    assert text_of(window) == "one two new words"
    assert [word.index for word in window.words] == [0, 1, 2, 3]


def test_a_window_without_text_is_empty():
    window = filled(BYTES, " ", 8)
    assert tokens_of(window) == []
    assert window.words == window.advance(3.0) == ()
    assert window.exhausted


def test_a_refused_piece_leaves_the_window_unchanged():
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
    window.advance(7)
    assert text_of(window) == "one two ok"


def test_waiting_text_is_bounded_and_speaking_makes_room():
    window = TextWindow(BYTES, 50)
    window.append("word " * (MAX_CHARACTERS // 5))
    with pytest.raises(TextError, match="waiting to be spoken"):
        window.append("x")
    tokens_of(window)
    window.advance(50.0)
    window.append("x")


def test_a_buffer_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"ids must be of shape \[capacity\] = \[8\], got \[9\]"):
        TextWindow(BYTES, 8).fill(torch.zeros(9, dtype=torch.int64))


@pytest.mark.parametrize(("arguments", "says"), [((0,), "capacity"), ((8, -1), "keep_words")])
def test_an_invalid_window_size_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        TextWindow(BYTES, *arguments)
