"""Characters are kept, dropped or refused with their index, and tokenizers round-trip the result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.text.normalize import MAX_CHARACTERS, TextError, check_text, clean_text
from streamchar.text.tokenizers import ByteTokenizer, FileTokenizer
from streamchar.text.transcript_window import TextWindow

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
def test_text_is_normalised(text, cleaned):
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
def test_a_refusal_names_the_character_its_index_and_a_remedy(text, says):
    with pytest.raises(TextError) as error:
        check_text(text, "LATIN")
    assert says in str(error.value)
    assert str(error.value).startswith("text must ")
    assert str(error.value).endswith(error.value.remedy)


def test_the_longest_text_is_accepted():
    assert len(check_text("word " * (MAX_CHARACTERS // 5), "LATIN")) == MAX_CHARACTERS - 1


def test_without_a_script_all_scripts_are_accepted():
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
def test_any_text_is_refused_or_round_trips_through_bytes(text):
    try:
        cleaned = clean_text(text)
    except TextError:
        return
    assert clean_text(cleaned) == cleaned
    ids = BYTES.encode(cleaned)
    assert all(0 <= token < 256 for token in ids)
    assert BYTES.decode([*ids, BYTES.pad]) == cleaned


def test_an_incomplete_character_decodes_to_a_replacement():
    assert BYTES.decode(BYTES.encode("\u00e9")[:1]) == "\ufffd"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Return a byte-level BPE trained on two sentences, saved in the format of transformers."""
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


def test_words_tokenise_alone_as_in_a_sentence(bpe):
    text = "the cat sat, on the other mat."
    window = TextWindow(bpe, 64)
    window.append(text)
    window.finish()
    ids = torch.empty(64, dtype=torch.int64)
    assert ids[: window.fill(ids)].tolist() == bpe.encode(text)


def test_a_missing_tokenizer_file_says_how_to_write_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        FileTokenizer(tmp_path)
