"""Training and held-out sentences are reproducible, disjoint, and cover the sounds of English."""

import itertools
import re
import string

import pytest

from streamchar.data.text import sentences, words
from streamchar.data.text.sentences import (
    HELD_OUT_WORDS,
    LONGEST,
    SHORTEST,
    everyday_sentences,
    held_out_sentences,
    paragraphs,
    training_sentences,
)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return training_sentences(20_000, seed=0)


def spoken(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


def test_a_longer_draw_of_a_seed_starts_with_a_shorter_one() -> None:
    assert training_sentences(300, seed=3) == training_sentences(500, seed=3)[:300]
    assert held_out_sentences(30, seed=3) == held_out_sentences(50, seed=3)[:30]
    assert training_sentences(300, seed=3) != training_sentences(300, seed=4)


def test_twenty_thousand_sentences_are_all_different(corpus: list[str]) -> None:
    assert len(set(corpus)) == 20_000


@pytest.mark.parametrize("seed", [0, 1])
def test_no_held_out_sentence_is_a_training_sentence(corpus: list[str], seed: int) -> None:
    assert set(held_out_sentences(2000, seed)).isdisjoint(corpus)


def test_no_form_of_a_held_out_word_is_in_training(corpus: list[str]) -> None:
    unseen = {form.lower() for form in words.forms_of(HELD_OUT_WORDS)}
    assert {"polished", "glaciers", "borrowing", "prague"} <= unseen
    assert unseen.isdisjoint(spoken(" ".join(corpus)))


def test_everyday_sentences_of_the_evaluation_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    everyday = everyday_sentences()
    source = itertools.cycle([*everyday, "The cat sat on the warm stone."])
    monkeypatch.setattr(sentences, "_candidates", lambda *_: source)
    assert training_sentences(1, seed=0) == ["The cat sat on the warm stone."]


def test_every_second_held_out_sentence_has_a_held_out_word() -> None:
    unseen = {form.lower() for form in words.forms_of(HELD_OUT_WORDS)}
    drawn = held_out_sentences(600, seed=5)
    assert [not unseen.isdisjoint(spoken(sentence)) for sentence in drawn] == [True, False] * 300
    assert len(set(drawn)) == 600


def test_every_held_out_word_is_in_the_word_list() -> None:
    known = {entry[""] for entries in words.lexicon().values() for entry in entries}
    assert known >= HELD_OUT_WORDS
    assert len(HELD_OUT_WORDS) >= 150


def test_sentences_are_short_and_plainly_written(corpus: list[str]) -> None:
    lengths = [len(sentence.split()) for sentence in corpus]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert 8 <= sum(lengths) / len(lengths) <= 10
    allowed = set(string.ascii_letters + string.digits + " .,?!;'")
    assert set("".join(corpus)) <= allowed
    assert all(sentence[0].isupper() and sentence[-1] in ".?!" for sentence in corpus)
    assert sum(any(c.isdigit() for c in sentence) for sentence in corpus) < 0.02 * len(corpus)


def test_training_has_many_words_and_every_sound(corpus: list[str]) -> None:
    seen = spoken(" ".join(corpus))
    assert len(seen) > 5000
    # Words for the phones of English, above all the rare ones.
    for sound, examples in {
        "zh": "treasure vision beige garage",
        "oy": "oyster choice annoy voyage",
        "th": "think thursday tooth thirty",
        "dh": "they breathe leather",
        "ng": "king singing language",
        "uh": "good book pudding push",
        "aw": "cloud mouth owl",
        "ch": "chicken witch kitchen",
        "jh": "judge orange giant",
        "y": "yellow yacht useful",
        "hw": "white whale swim quick",
        "er": "bird nurse early",
        "air": "chair bear rare",
    }.items():
        assert seen.issuperset(examples.split()), sound


def test_articles_depend_on_the_following_sound() -> None:
    finish = sentences._finish
    assert finish("a apple, a useful uncle and a uncle in a hour.") == (
        "An apple, a useful uncle and an uncle in an hour."
    )


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("thing", "box", {"": "box", "s": "boxes"}),
        ("thing", "knife/knives", {"": "knife", "s": "knives"}),
        ("act", "carry", {"": "carry", "s": "carries", "ed": "carried", "en": "carried", "ing": "carrying"}),
        ("go", "stop*", {"": "stop", "s": "stops", "ed": "stopped", "en": "stopped", "ing": "stopping"}),
        ("act", "take/took/taken", {"": "take", "s": "takes", "ed": "took", "en": "taken", "ing": "taking"}),
        ("go", "swim/swam/swum", {"": "swim", "s": "swims", "ed": "swam", "en": "swum", "ing": "swimming"}),
        ("go", "lie/lay/lain", {"": "lie", "s": "lies", "ed": "lay", "en": "lain", "ing": "lying"}),
    ],
)
def test_words_are_inflected(kind: str, entry: str, expected: dict[str, str]) -> None:
    assert words.forms(kind, entry) == expected


@pytest.mark.parametrize("held_out", [False, True])
def test_a_transcript_has_whole_sentences_of_one_side(held_out: bool) -> None:
    text = paragraphs(300, seed=1, held_out=held_out)
    assert 300 <= len(text.split()) < 300 + LONGEST
    assert text == paragraphs(300, seed=1, held_out=held_out)
    unseen = {form.lower() for form in words.forms_of(HELD_OUT_WORDS)}
    assert unseen.isdisjoint(spoken(text)) is not held_out


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        training_sentences(-1, seed=0)
    with pytest.raises(ValueError, match="words must be at least 1, got 0"):
        paragraphs(0, seed=0, held_out=False)
