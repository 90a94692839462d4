"""Words of a stream against its transcript: errors, the place in the text, and what edges do to words."""

import random
from itertools import pairwise

import jiwer
import numpy as np
import pytest

from streamchar.eval.transcript import LOOKAHEAD, EdgeCount, Event, Reader, WordCount, at_edges, edit_path
from streamchar.eval.wer import HeardWord

WORDS = [f"word{number}" for number in range(200)]


def spoken(words: list[str], start: float = 0.0) -> list[HeardWord]:
    """Half a second a word, of which it sounds for 0.4."""
    return [HeardWord(word, start + 0.5 * k, start + 0.5 * k + 0.4) for k, word in enumerate(words)]


def read(asked: list[str], segments: list[list[str]]) -> list[Event]:
    reader, start, settled = Reader(asked), 0.0, []
    for words in segments:
        settled.append(reader.hear(spoken(words, start)))
        start += 0.5 * len(words)
    settled += reader.finish()
    return [event for segment in settled if segment is not None for event in segment.events]


def errors(events: list[Event]) -> int:
    return sum(not event.right for event in events)


def asked_in(events: list[Event]) -> list[int]:
    return [event.asked for event in events if event.asked is not None]


@pytest.mark.parametrize("seed", range(20))
def test_a_path_has_as_many_errors_as_jiwer_counts(seed: int) -> None:
    draw = random.Random(seed)
    asked, heard = ([draw.choice("abcd") for _ in range(draw.randint(1, 12))] for _ in range(2))
    path = edit_path(asked, heard)
    counted = jiwer.process_words(" ".join(asked), " ".join(heard))
    wrong = sum(i is None or j is None or asked[i] != heard[j] for i, j in path)
    assert wrong == counted.substitutions + counted.deletions + counted.insertions
    assert [i for i, _ in path if i is not None] == list(range(len(asked)))
    assert [j for _, j in path if j is not None] == list(range(len(heard)))


def test_an_open_end_asks_for_no_more_than_was_heard() -> None:
    assert edit_path(list("abcdef"), list("abc"), open_end=True) == [(0, 0), (1, 1), (2, 2)]
    assert edit_path(list("abcdef"), list("xyz"), open_end=True) == [(0, 0), (1, 1), (2, 2)]
    assert edit_path(list("abcdef"), list("acd"), open_end=True) == [(0, 0), (1, None), (2, 1), (3, 2)]
    assert edit_path(list("abc"), [], open_end=True) == []


def test_clean_segments_are_read_without_an_error_wherever_they_are_cut() -> None:
    for cuts in ([0, 200], [0, 7, 50, 51, 120, 200], list(range(0, 201, 10))):
        segments = [WORDS[start:end] for start, end in pairwise(cuts)]
        events = read(WORDS, segments)
        assert errors(events) == 0
        assert asked_in(events) == list(range(200))


def test_text_that_was_not_reached_is_no_error() -> None:
    assert asked_in(read(WORDS, [WORDS[:30], WORDS[30:60]])) == list(range(60))
    assert errors(read(WORDS, [WORDS[:30], WORDS[30:60]])) == 0


def test_a_word_lost_at_a_cut_is_one_error_in_the_right_place() -> None:
    events = read(WORDS, [WORDS[:20], WORDS[21:40], WORDS[40:60]])
    lost = [event for event in events if event.heard is None]
    assert [event.asked for event in lost] == [20]
    assert errors(events) == 1
    assert 9.5 < lost[0].time <= 10.0


def test_words_skipped_together_lie_evenly_between_those_heard() -> None:
    reader = Reader(WORDS)
    reader.hear([*spoken(WORDS[:10]), *spoken(WORDS[12:20], start=10.0)])
    (settled,) = reader.finish()
    lost = [event.time for event in settled.events if event.heard is None]
    assert lost == pytest.approx([4.9 + 0.25 * 5.1, 4.9 + 0.75 * 5.1])
    assert (settled.first, settled.last) == (0, 19)


def test_a_speaker_that_skips_a_passage_is_found_again() -> None:
    events = read(WORDS, [WORDS[:30], WORDS[60:90], WORDS[90:120]])
    assert errors(events) == sum(event.heard is None for event in events) == 30
    assert asked_in(events) == list(range(120))


def test_babble_costs_its_words_and_no_more() -> None:
    babble = [f"babble{number}" for number in range(12)]
    events = read(WORDS, [WORDS[:30], babble, WORDS[42:70], WORDS[70:100]])
    assert errors(events) == 12
    assert asked_in(events) == list(range(100))


def test_segments_are_settled_when_those_after_them_are_known() -> None:
    reader = Reader(WORDS)
    for number in range(LOOKAHEAD):
        assert reader.hear(spoken(WORDS[10 * number : 10 * number + 10])) is None
    settled = reader.hear(spoken(WORDS[20:30]))
    assert settled is not None
    assert (settled.first, settled.last) == (0, 9)
    assert reader.hear([]) is not None
    assert [each.first for each in reader.finish()] == [20, None]


def test_a_word_said_twice_is_repeated_and_another_is_not() -> None:
    twice = read(WORDS, [[*WORDS[:10], WORDS[9], *WORDS[10:20]], WORDS[20:40]])
    assert [event.heard for event in twice if event.again] == ["word9"]
    phrase = read(WORDS, [[*WORDS[:10], *WORDS[8:20]], WORDS[20:40]])
    assert sum(event.again for event in phrase) == 2
    other = read(WORDS, [[*WORDS[:10], "noise", *WORDS[10:20]], WORDS[20:40]])
    assert not any(event.again for event in other)
    assert errors(other) == 1
    # What the text itself says twice is no fault.
    assert errors(read(["no", "no", "no", "way"], [["no", "no", "no", "way"]])) == 0


def repeated(events: list[Event]) -> list[str | None]:
    return [event.heard for event in events if event.again]


@pytest.mark.parametrize("length", [1, 2, 5, 8, 12])
def test_a_phrase_said_twice_is_repeated_however_long_it_is(length: int) -> None:
    phrase = WORDS[20 - length : 20]
    within = read(WORDS, [[*WORDS[:20], *phrase, *WORDS[20:30]], WORDS[30:50], WORDS[50:70]])
    at_a_cut = read(WORDS, [WORDS[:20], [*phrase, *WORDS[20:30]], WORDS[30:50], WORDS[50:70]])
    by_itself = read(WORDS, [WORDS[:20], phrase, WORDS[20:40], WORDS[40:60], WORDS[60:80]])
    for events in (within, at_a_cut, by_itself):
        assert repeated(events) == phrase
        assert errors(events) == length


@pytest.mark.parametrize("length", [2, 5, 8, 12])
def test_a_phrase_said_twice_may_be_cut_itself(length: int) -> None:
    phrase, half = WORDS[20 - length : 20], length // 2
    first = read(WORDS, [[*WORDS[:20], *phrase[:half]], [*phrase[half:], *WORDS[20:40]], WORDS[40:60]])
    second = read(WORDS, [WORDS[:20], phrase[:half], phrase[half:], WORDS[20:40], WORDS[40:60], WORDS[60:80]])
    for events in (first, second):
        assert repeated(events) == phrase
        assert errors(events) == length


def test_a_phrase_said_again_with_a_word_misheard_is_repeated_but_for_that() -> None:
    again = [*WORDS[12:15], "noise", *WORDS[16:20]]
    events = read(WORDS, [WORDS[:20], [*again, *WORDS[20:30]], WORDS[30:50]])
    assert sorted(repeated(events)) == [*WORDS[12:15], *WORDS[16:20]]
    # And so it is where the first time was the misheard one.
    events = read(WORDS, [[*WORDS[:12], *again], [*WORDS[12:30]], WORDS[30:50]])
    assert sorted(repeated(events)) == [*WORDS[12:15], *WORDS[16:20]]


def test_words_misrecognised_are_not_repeated() -> None:
    text = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "lay", "by", "the", "door", *WORDS]
    # A word heard as two or three, of which one stands nearby in the text as well.
    heard = {
        "cat": ["cat", "a"],
        "mat": ["math", "on"],
        "dog": ["dough", "the"],
        "door": ["do", "her", "by"],
    }
    spelled = [part for word in text[:13] for part in heard.get(word, [word])]
    events = read(text, [[*spelled, *WORDS[:10]], WORDS[10:30], WORDS[30:50]])
    assert errors(events) >= 5
    assert repeated(events) == []
    # Nor is babble, or what other words stand for.
    babble = read(WORDS, [[*WORDS[:20], "a", "b", "c", *WORDS[20:30]], ["a", *WORDS[31:50]], WORDS[50:70]])
    assert repeated(babble) == []


def test_events_at_edges_are_told_from_those_away() -> None:
    edges = 4.0 * np.arange(1, 26)
    assert at_edges([*edges - 0.9, *edges + 0.9], 4.0, 104.0) == EdgeCount(50, 0, 25)
    assert at_edges(list(edges + 2), 4.0, 104.0) == EdgeCount(0, 25, 25)
    assert at_edges(list(edges + 2), 4.0, 104.0).excess == -1
    assert EdgeCount(30, 6, 12).excess == 2
    assert EdgeCount(30, 6, 12).error == pytest.approx(0.5)
    assert EdgeCount(36, 6, 12).rate == 3
    assert EdgeCount(36, 6, 12).rate_error == pytest.approx(0.5)
    assert EdgeCount(1, 0, 0).excess == EdgeCount(1, 0, 0).rate == 0


def test_events_without_a_cause_are_at_edges_by_chance_alone() -> None:
    times = np.random.default_rng(0).uniform(0, 6000, 2000)
    count = at_edges(list(times), 4 / 3, 6000.0)
    assert abs(count.excess) < 3 * count.error


def test_rates_are_those_of_each_minute() -> None:
    def event(time: float, heard: str | None = "a", right: bool = True, again: bool = False) -> Event:
        return Event(time, None if again else 0, heard, right, again)

    events = [event(1), event(2, "b", False), event(3, None, False), event(59)]
    events += [event(61), event(62), event(63, "a", False, True), event(200), event(-0.1)]
    count = WordCount(3)
    count.add(events[:4])
    count.add(events[4:])
    rates = count.rates()
    assert rates["word errors"][:2].tolist() == [0.5, 0.5]
    assert rates["unheard"][:2].tolist() == [0.25, 0]
    assert rates["repeated"][:2].tolist() == [0, 0.5]
    assert np.isnan(rates["word errors"][2])
    assert count.words == 8
    assert list(count.unheard) == [3]
    assert list(count.repeated) == [63]
    count.skip([event(3, None, False), event(200, None, False)])
    assert count.rates()["skipped"][:2].tolist() == [0.25, 0]
    assert count.rates()["unheard"][:2].tolist() == [0.25, 0]
    assert list(count.skipped) == [3, 200]
