"""English as phonemes: words are read one by one, numbers and abbreviations as they are spoken."""

import sys

import pytest
import torch

from streamchar.text.normalize import TextError
from streamchar.text.tokenizers import (
    ByteTokenizer,
    PhonemeTokenizer,
    VoiceUnavailableError,
    default_tokenizer,
)
from streamchar.text.transcript_window import TextWindow


@pytest.fixture(scope="module")
def phonemes():
    pytest.importorskip("hibari")
    return PhonemeTokenizer()


def test_a_config_selects_its_tokenizer():
    assert isinstance(default_tokenizer("phonemes"), PhonemeTokenizer)
    assert isinstance(default_tokenizer("bytes"), ByteTokenizer)


def test_words_become_phonemes_and_back(phonemes):
    said = phonemes.decode(phonemes.encode("hello"))
    assert "h" in said
    assert "l" in said
    assert phonemes.encode("hello") != phonemes.encode("yellow")
    tokens = phonemes.encode("The quick brown fox, it said.")
    assert all(0 < token < phonemes.vocabulary for token in tokens)
    assert phonemes.decode([*tokens, phonemes.pad, phonemes.pad]) == phonemes.decode(tokens)


def test_a_leading_space_is_a_token_and_silence_has_none(phonemes):
    assert phonemes.encode(" hello") == [phonemes.space, *phonemes.encode("hello")]
    assert phonemes.encode("hello ") == phonemes.encode("hello")
    assert phonemes.encode("") == phonemes.encode(" ") == []


def test_numbers_are_read_out(phonemes):
    assert phonemes.encode("7") == phonemes.encode("seven")


def test_words_in_a_window_are_read_as_they_are_alone(phonemes):
    window = TextWindow(phonemes, 64)
    window.append("Hello there, friend.")
    window.finish()
    ids = torch.full((64,), -1)
    length = window.fill(ids)
    words = ["Hello", " there,", " friend."]
    assert ids[:length].tolist() == [token for word in words for token in phonemes.encode(word)]
    assert ids[length:].eq(phonemes.pad).all()


def test_an_unreadable_word_is_refused_with_its_whole_piece(phonemes):
    window = TextWindow(phonemes, 64)
    with pytest.raises(TextError, match="have words that the voice can read, got 'ħ'"):
        window.append("Say ħ now. ")
    assert window.words_waiting == 0
    # Signs without a sound are words of their own.
    window.append("Well - now. ")
    assert window.words_waiting == 3


def test_a_missing_package_is_reported_with_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    monkeypatch.setitem(sys.modules, "hibari.g2p", None)
    tokenizer = PhonemeTokenizer()  # creating the tokenizer must not need the package
    with pytest.raises(VoiceUnavailableError, match=r"pip install 'streamchar\[voice\]'"):
        tokenizer.encode("hello")
    with pytest.raises(VoiceUnavailableError, match="hibari-tts"):
        tokenizer.decode([1])


@pytest.mark.parametrize("number", ["1234567890", "777777777", "123456789012", "$1,234,567.89"])
def test_a_number_longer_than_the_window_counts_as_one_word(phonemes, number):
    capacity = 48
    assert len(phonemes.encode(" " + number)) > capacity
    window = TextWindow(phonemes, capacity)
    window.append(f"call {number} now")
    window.finish()
    assert window.words_waiting == 3
    ids, spoken, said = torch.zeros(capacity, dtype=torch.int64), [], []
    while not window.exhausted:
        window.fill(ids)
        # One token at a time, as a pointer moves.
        progress, before = window.progress, window.words_spoken
        said += (words := window.advance(progress + 1))
        assert window.words_spoken == before + len(words)
        spoken.append(window.origin + progress)
    assert [(word.index, word.text) for word in said] == [(0, "call"), (1, number), (2, "now")]
    assert spoken == sorted(spoken)
    assert window.discard_unspoken() == 3
