"""Text is spoken, dropped with a stated meaning, or refused with its place; the window never cuts a word."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.text import (
    MAX_CHARACTERS,
    ByteTokenizer,
    FileTokenizer,
    TextError,
    TextWindow,
    check_text,
    clean_text,
)

BYTES = ByteTokenizer()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Hello, world!", "Hello, world!"),
        ("  a\tb\r\nc\u00a0d\u2028e\u3000", "a b  c d e"),
        ("cafe\u0301", "caf\u00e9"),
        ("soft\u00adhyphen \ufeffmark", "softhyphen mark"),
        ("20 \u00b0C, 5 \u20ac", "20 \u00b0C, 5 \u20ac"),
        ("\u201cyes\u201d \u2014 no\u2026", "\u201cyes\u201d \u2014 no\u2026"),
        ("Hawai\u02bbi", "Hawai\u02bbi"),
        ("ok \U0001f44d\U0001f3fd.", "ok ."),
        ("\U0001f469\u200d\U0001f4bb codes", "codes"),
        ("love \u2764\ufe0f, key 1\ufe0f\u20e3, flag \U0001f1eb\U0001f1f7!", "love , key 1, flag !"),
    ],
)
def test_text_is_brought_to_one_form(text, cleaned):
    assert check_text(text, "LATIN") == cleaned
    assert check_text(check_text(text, "LATIN"), "LATIN") == cleaned


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "letter or digit"),
        (" \n\t ", "letter or digit"),
        ("?! ...", "letter or digit"),
        ("\U0001f600\U0001f680", "letter or digit"),
        ("a" * (MAX_CHARACTERS + 1), "at most 100000 characters, got 100001"),
        ("a\x00b", "U+0000 at index 1"),
        ("bell\x07", "U+0007 at index 4"),
        ("\x1b[31mred", "U+001B at index 0"),
        ("delete\x7f", "U+007F"),
        ("half \ud83d", "lone surrogate U+D83D at index 5"),
        ("mine \ue000", "unassigned U+E000"),
        ("say \u043f\u0440\u0438\u0432\u0435\u0442", "CYRILLIC SMALL LETTER PE at index 4"),
        ("\u4f60\u597d", "be in Latin script"),
        ("\u0645\u0631\u062d\u0628\u0627", "ARABIC LETTER MEEM at index 0"),
    ],
)
def test_what_cannot_be_spoken_is_refused_with_its_place_and_a_remedy(text, says):
    with pytest.raises(TextError) as error:
        check_text(text, "LATIN")
    assert says in str(error.value)
    assert str(error.value).startswith("text must ")
    assert str(error.value).endswith(error.value.remedy)


def test_the_longest_text_is_accepted():
    assert len(check_text("word " * (MAX_CHARACTERS // 5), "LATIN")) == MAX_CHARACTERS - 1


def test_a_tokenizer_of_all_scripts_takes_them():
    text = (
        "\u043f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
    assert clean_text(text) == text
    with pytest.raises(TextError):
        clean_text(text, "LATIN")


def test_a_piece_may_be_blank():
    assert clean_text("") == ""
    assert clean_text(" ,\n") == " , "


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=30))
def test_any_text_is_cleaned_or_refused_and_survives_the_tokenizer(text):
    try:
        cleaned = clean_text(text)
    except TextError:
        return
    assert clean_text(cleaned) == cleaned
    ids = BYTES.encode(cleaned)
    assert all(0 <= token < 256 for token in ids)
    assert BYTES.decode([*ids, BYTES.pad]) == cleaned


def test_a_cut_character_decodes_to_a_replacement():
    assert BYTES.decode(BYTES.encode("\u00e9")[:1]) == "\ufffd"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Return a byte-level BPE saved as transformers saves one, trained on two sentences."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the cat did", "a hat and the other hat"], trainer)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    return FileTokenizer(folder)


def test_a_saved_tokenizer_agrees_with_transformers(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    bpe._tokenizer.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "the cat and the hat, caf\u00e9 \u4f60"
    assert bpe.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert bpe.decode(bpe.encode(text)) == text
    assert (bpe.pad, bpe.vocabulary, bpe.script) == (0, len(theirs), None)


def test_words_tokenise_apart_as_they_do_together(bpe):
    text = "the cat sat, on the other mat."
    assert tokens_of(filled(bpe, text, 64)) == bpe.encode(text)


def test_a_directory_without_a_tokenizer_says_how_to_write_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        FileTokenizer(tmp_path)


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
