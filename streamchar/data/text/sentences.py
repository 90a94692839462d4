"""An endless supply of English sentences: from a grammar, from word lists, and from public-domain passages.

Training and held-out sentences are disjoint for all seeds. A hash of the sentence decides which side it is
on. Sentences with any form of a word in :data:`HELD_OUT_WORDS` are always held out, and so are the everyday
sentences that evaluation speaks.
"""

import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from itertools import islice

from ...errors import ArgumentError
from .words import forms_of, held_out_bases, lexicon, sections

#: Base forms of the words that no training sentence contains in any form.
HELD_OUT_WORDS = frozenset(held_out_bases())

#: Fewest and most words of a sentence.
SHORTEST, LONGEST = 2, 25

# One sentence in this many is held out by its hash.
_FOLDS = 16
# Shares of word lists and passages; the rest comes from the grammar.
_WORD_LISTS, _PASSAGES = 0.15, 0.02

_SLOT = re.compile(r"\{([a-z-]+)(?:\.([a-z]+))?\}")
_WEIGHT = re.compile(r"x(\d+) ")
_WORD = re.compile(r"[A-Za-z0-9']+")
# An article before a vowel letter, unless the letter is pronounced as a consonant.
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]|u(?!ni|se|su|ti|kr)|hour|honest|heir)(?!one\b|once\b|eu)")

Pick = Callable[[str, str], str]


def training_sentences(count: int, seed: int) -> list[str]:
    """Return ``count`` different training sentences; the same seed gives the same sentences.

    Args:
        count: number of sentences, up to millions.
        seed: seed of the choice.

    Returns:
        Sentences of :data:`SHORTEST` to :data:`LONGEST` words, without any of :data:`HELD_OUT_WORDS`.

    Raises:
        ArgumentError: ``count`` is negative.
    """
    return _collect(count, _training(seed))


def held_out_sentences(count: int, seed: int) -> list[str]:
    """Return ``count`` different sentences that :func:`training_sentences` never returns.

    Every second sentence, starting with the first, contains a word of :data:`HELD_OUT_WORDS`.

    Args:
        count: number of sentences.
        seed: seed of the choice.

    Raises:
        ArgumentError: ``count`` is negative.
    """
    return _collect(count, _held_out(seed))


def paragraphs(words: int, seed: int, held_out: bool) -> str:
    """Return a transcript of whole sentences with at least ``words`` words.

    Args:
        words: at least 1.
        seed: seed of the choice.
        held_out: whether to draw held-out sentences instead of training sentences.

    Raises:
        ArgumentError: ``words`` is below 1.
    """
    ArgumentError.require(words >= 1, "words", "at least 1", words)
    text: list[str] = []
    source = _held_out(seed) if held_out else _training(seed)
    while words > 0:
        text.append(next(source))
        words -= len(text[-1].split())
    return " ".join(text)


def _collect(count: int, source: Iterator[str]) -> list[str]:
    ArgumentError.require(count >= 0, "count", "at least 0", count)
    return list(islice(_different(source), count))


def _different(sentences: Iterator[str]) -> Iterator[str]:
    said: set[str] = set()
    for sentence in sentences:
        if sentence not in said:
            said.add(sentence)
            yield sentence


def _training(seed: int) -> Iterator[str]:
    rng = random.Random(f"training {seed}")
    for sentence in _candidates(rng, _chooser(rng, _known_words())):
        if not _is_held_out(sentence):
            yield sentence


def _held_out(seed: int) -> Iterator[str]:
    rng = random.Random(f"held out {seed}")
    seen = _candidates(rng, _chooser(rng, _known_words()))
    unseen = _candidates(rng, _chooser(rng, _weighted_words()))
    with_word = _different(sentence for sentence in unseen if _has_held_out_word(sentence))
    without = _different(s for s in seen if _is_held_out(s) and not _has_held_out_word(s))
    # The two sources are disjoint, so their sentences stay different from each other.
    for pair in zip(with_word, without):
        yield from pair


def _has_held_out_word(sentence: str) -> bool:
    return not _held_out_forms().isdisjoint(_WORD.findall(sentence.lower()))


def _is_held_out(sentence: str) -> bool:
    fold = blake2b(sentence.encode(), digest_size=4).digest()
    return int.from_bytes(fold) % _FOLDS == 0 or sentence in _everyday() or _has_held_out_word(sentence)


def _candidates(rng: random.Random, pick: Pick) -> Iterator[str]:
    """Yield complete sentences of the right length from all three sources."""
    passages = sections("passages.txt")["passage"]
    while True:
        share = rng.random()
        if share < _PASSAGES:
            sentence = passages[int(rng.random() * len(passages))]
        elif share < _PASSAGES + _WORD_LISTS:
            sentence = _finish(_word_list(rng, pick))
        else:
            sentence = _finish(_expand("sentence", rng, pick))
        if SHORTEST <= len(sentence.split()) <= LONGEST:
            yield sentence


def _word_list(rng: random.Random, pick: Pick) -> str:
    count = 3 + int(rng.random() * 10)
    return ", ".join(pick("any", "") for _ in range(count)) + "."


def _finish(text: str) -> str:
    """Correct the articles of a sentence and capitalise it."""
    text = _ARTICLE.sub(r"\1n ", text[0].upper() + text[1:])
    return re.sub(r"(?<=[.?!] )[a-z]", lambda match: match[0].upper(), text)


def _expand(rule: str, rng: random.Random, pick: Pick) -> str:
    alternatives = _grammar()[rule]
    parts = alternatives[int(rng.random() * len(alternatives))]
    return "".join(
        part
        if isinstance(part, str)
        else _expand(part[0], rng, pick)
        if part[0] in _grammar()
        else pick(*part)
        for part in parts
    )


@cache
def _grammar() -> dict[str, list[tuple[str | tuple[str, str], ...]]]:
    """Return the alternatives of each rule, repeated by weight, as literals and slots (name, form)."""
    return {
        rule: [alternative for line in lines for alternative in _parse(line)]
        for rule, lines in sections("grammar.txt").items()
        if rule
    }


def _parse(line: str) -> list[tuple[str | tuple[str, str], ...]]:
    weight = _WEIGHT.match(line)
    line = line[weight.end() :] if weight else line
    parts: list[str | tuple[str, str]] = []
    end = 0
    for slot in _SLOT.finditer(line):
        parts += [line[end : slot.start()], (slot[1], slot[2] or "")]
        end = slot.end()
    parts.append(line[end:])
    return [tuple(part for part in parts if part)] * (int(weight[1]) if weight else 1)


Words = dict[tuple[str, str], list[str]]


def _chooser(rng: random.Random, words: Words) -> Pick:
    def pick(kind: str, form: str) -> str:
        choices = words[kind, form]
        return choices[int(rng.random() * len(choices))]

    return pick


@cache
def _everyday() -> frozenset[str]:
    return frozenset(everyday_sentences())


def everyday_sentences() -> list[str]:
    """Return sentences of everyday speech, written for the evaluation and never trained on."""
    return (files(__package__) / "everyday.txt").read_text(encoding="utf-8").splitlines()


@cache
def _held_out_forms() -> frozenset[str]:
    return frozenset(form.lower() for form in forms_of(HELD_OUT_WORDS))


def _table(keep: Callable[[str], bool]) -> Words:
    """Return the words of each class and form; ("any", "") has all forms of all classes."""
    table: Words = {}
    for kind, entries in lexicon().items():
        for entry in entries:
            for name, form in entry.items():
                if keep(form):
                    table.setdefault((kind, name), []).append(form)
    table["any", ""] = sorted({form for choices in table.values() for form in choices})
    return table


@cache
def _known_words() -> Words:
    return _table(lambda form: form.lower() not in _held_out_forms())


@cache
def _weighted_words() -> Words:
    """Return all words; held-out words are repeated so that they are a quarter of every list that has any."""
    unseen = _table(lambda form: form.lower() in _held_out_forms())
    return {
        key: known + unseen[key] * max(len(known) // (3 * len(unseen[key])), 1) if key in unseen else known
        for key, known in _known_words().items()
    }
