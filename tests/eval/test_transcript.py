"""Matching the words of a stream to its text, and counting errors near the edges of chunks."""

import random
from itertools import pairwise

import jiwer
import numpy as np
import pytest

from streamchar.eval.metrics.edit_path import edit_path
from streamchar.eval.metrics.transcript import LOOKAHEAD, TranscriptMatcher, WordEvent
from streamchar.eval.metrics.wer import HeardWord
from streamchar.eval.metrics.word_counts import EdgeCount, WordCounter, count_near_edges

WORDS = [f"word{number}" for number in range(200)]


def spoken(words: list[str], start: float = 0.0) -> list[HeardWord]:
    """Return words that begin every half second and last 0.4 seconds."""
    return [HeardWord(word, start + 0.5 * k, start + 0.5 * k + 0.4) for k, word in enumerate(words)]


def read(expected: list[str], segments: list[list[str]]) -> list[WordEvent]:
    matcher, start, settled = TranscriptMatcher(expected), 0.0, []
    for words in segments:
        settled.append(matcher.add(spoken(words, start)))
        start += 0.5 * len(words)
    settled += matcher.finish()
    return [event for segment in settled if segment is not None for event in segment.events]


def errors(events: list[WordEvent]) -> int:
    return sum(not event.right for event in events)


def expected_in(events: list[WordEvent]) -> list[int]:
    return [event.expected for event in events if event.expected is not None]


@pytest.mark.parametrize("seed", range(20))
def test_an_edit_path_has_as_many_errors_as_jiwer_counts(seed: int) -> None:
    draw = random.Random(seed)
    expected, heard = ([draw.choice("abcd") for _ in range(draw.randint(1, 12))] for _ in range(2))
    path = edit_path(expected, heard)
    counted = jiwer.process_words(" ".join(expected), " ".join(heard))
    wrong = sum(i is None or j is None or expected[i] != heard[j] for i, j in path)
    assert wrong == counted.substitutions + counted.deletions + counted.insertions
    assert [i for i, _ in path if i is not None] == list(range(len(expected)))
    assert [j for _, j in path if j is not None] == list(range(len(heard)))


def test_an_open_end_covers_no_more_words_than_were_heard() -> None:
    assert edit_path(list("abcdef"), list("abc"), open_end=True) == [(0, 0), (1, 1), (2, 2)]
    assert edit_path(list("abcdef"), list("xyz"), open_end=True) == [(0, 0), (1, 1), (2, 2)]
    assert edit_path(list("abcdef"), list("acd"), open_end=True) == [(0, 0), (1, None), (2, 1), (3, 2)]
    assert edit_path(list("abc"), [], open_end=True) == []


def test_clean_segments_have_no_errors_wherever_they_are_split() -> None:
    for bounds in ([0, 200], [0, 7, 50, 51, 120, 200], list(range(0, 201, 10))):
        segments = [WORDS[start:end] for start, end in pairwise(bounds)]
        events = read(WORDS, segments)
        assert errors(events) == 0
        assert expected_in(events) == list(range(200))


def test_text_that_was_not_reached_is_not_an_error() -> None:
    assert expected_in(read(WORDS, [WORDS[:30], WORDS[30:60]])) == list(range(60))
    assert errors(read(WORDS, [WORDS[:30], WORDS[30:60]])) == 0


def test_a_word_lost_between_segments_is_one_error_in_its_place() -> None:
    events = read(WORDS, [WORDS[:20], WORDS[21:40], WORDS[40:60]])
    lost = [event for event in events if event.heard is None]
    assert [event.expected for event in lost] == [20]
    assert errors(events) == 1
    assert 9.5 < lost[0].time <= 10.0


def test_skipped_words_are_spread_evenly_between_heard_ones() -> None:
    matcher = TranscriptMatcher(WORDS)
    matcher.add([*spoken(WORDS[:10]), *spoken(WORDS[12:20], start=10.0)])
    (settled,) = matcher.finish()
    lost = [event.time for event in settled.events if event.heard is None]
    assert lost == pytest.approx([4.9 + 0.25 * 5.1, 4.9 + 0.75 * 5.1])
    assert (settled.first, settled.last) == (0, 19)


def test_reading_recovers_after_a_skipped_passage() -> None:
    events = read(WORDS, [WORDS[:30], WORDS[60:90], WORDS[90:120]])
    assert errors(events) == sum(event.heard is None for event in events) == 30
    assert expected_in(events) == list(range(120))


def test_babble_costs_only_its_own_words() -> None:
    babble = [f"babble{number}" for number in range(12)]
    events = read(WORDS, [WORDS[:30], babble, WORDS[42:70], WORDS[70:100]])
    assert errors(events) == 12
    assert expected_in(events) == list(range(100))


def test_segments_are_settled_after_the_lookahead() -> None:
    matcher = TranscriptMatcher(WORDS)
    for number in range(LOOKAHEAD):
        assert matcher.add(spoken(WORDS[10 * number : 10 * number + 10])) is None
    settled = matcher.add(spoken(WORDS[20:30]))
    assert settled is not None
    assert (settled.first, settled.last) == (0, 9)
    assert matcher.add([]) is not None
    assert [each.first for each in matcher.finish()] == [20, None]


def test_a_word_said_twice_is_repeated_and_noise_is_not() -> None:
    twice = read(WORDS, [[*WORDS[:10], WORDS[9], *WORDS[10:20]], WORDS[20:40]])
    assert [event.heard for event in twice if event.repeated] == ["word9"]
    phrase = read(WORDS, [[*WORDS[:10], *WORDS[8:20]], WORDS[20:40]])
    assert sum(event.repeated for event in phrase) == 2
    other = read(WORDS, [[*WORDS[:10], "noise", *WORDS[10:20]], WORDS[20:40]])
    assert not any(event.repeated for event in other)
    assert errors(other) == 1
    # Repetitions in the text itself are not errors.
    assert errors(read(["no", "no", "no", "way"], [["no", "no", "no", "way"]])) == 0


def repeated(events: list[WordEvent]) -> list[str | None]:
    return [event.heard for event in events if event.repeated]


@pytest.mark.parametrize("length", [1, 2, 5, 8, 12])
def test_a_phrase_said_twice_is_repeated_however_long_it_is(length: int) -> None:
    phrase = WORDS[20 - length : 20]
    within = read(WORDS, [[*WORDS[:20], *phrase, *WORDS[20:30]], WORDS[30:50], WORDS[50:70]])
    at_a_break = read(WORDS, [WORDS[:20], [*phrase, *WORDS[20:30]], WORDS[30:50], WORDS[50:70]])
    by_itself = read(WORDS, [WORDS[:20], phrase, WORDS[20:40], WORDS[40:60], WORDS[60:80]])
    for events in (within, at_a_break, by_itself):
        assert repeated(events) == phrase
        assert errors(events) == length


@pytest.mark.parametrize("length", [2, 5, 8, 12])
def test_a_repeated_phrase_may_be_split_itself(length: int) -> None:
    phrase, half = WORDS[20 - length : 20], length // 2
    first = read(WORDS, [[*WORDS[:20], *phrase[:half]], [*phrase[half:], *WORDS[20:40]], WORDS[40:60]])
    second = read(WORDS, [WORDS[:20], phrase[:half], phrase[half:], WORDS[20:40], WORDS[40:60], WORDS[60:80]])
    for events in (first, second):
        assert repeated(events) == phrase
        assert errors(events) == length


def test_in_a_repeated_phrase_a_misheard_word_does_not_count() -> None:
    again = [*WORDS[12:15], "noise", *WORDS[16:20]]
    events = read(WORDS, [WORDS[:20], [*again, *WORDS[20:30]], WORDS[30:50]])
    assert sorted(repeated(events)) == [*WORDS[12:15], *WORDS[16:20]]
    # The same holds if the word was misheard the first time.
    events = read(WORDS, [[*WORDS[:12], *again], [*WORDS[12:30]], WORDS[30:50]])
    assert sorted(repeated(events)) == [*WORDS[12:15], *WORDS[16:20]]


def test_words_misrecognised_are_not_repeated() -> None:
    text = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "lay", "by", "the", "door", *WORDS]
    # Some words are heard as two or three words, one of which is also nearby in the text.
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
    # Neither babble nor substitutions are repetitions.
    babble = read(WORDS, [[*WORDS[:20], "a", "b", "c", *WORDS[20:30]], ["a", *WORDS[31:50]], WORDS[50:70]])
    assert repeated(babble) == []


def test_events_near_edges_and_away_are_counted() -> None:
    edges = 4.0 * np.arange(1, 26)
    assert count_near_edges([*edges - 0.9, *edges + 0.9], 4.0, 104.0) == EdgeCount(50, 0, 25)
    assert count_near_edges(list(edges + 2), 4.0, 104.0) == EdgeCount(0, 25, 25)
    assert count_near_edges(list(edges + 2), 4.0, 104.0).excess == -1
    assert EdgeCount(30, 6, 12).excess == 2
    assert EdgeCount(30, 6, 12).excess_error == pytest.approx(0.5)
    assert EdgeCount(36, 6, 12).rate == 3
    assert EdgeCount(36, 6, 12).rate_error == pytest.approx(0.5)
    assert EdgeCount(1, 0, 0).excess == EdgeCount(1, 0, 0).rate == 0


def test_random_events_have_no_excess_at_edges() -> None:
    times = np.random.default_rng(0).uniform(0, 6000, 2000)
    count = count_near_edges(list(times), 4 / 3, 6000.0)
    assert abs(count.excess) < 3 * count.excess_error


def test_rates_are_those_of_each_minute() -> None:
    def event(time: float, heard: str | None = "a", right: bool = True, repeated: bool = False) -> WordEvent:
        return WordEvent(time, None if repeated else 0, heard, right, repeated)

    events = [event(1), event(2, "b", False), event(3, None, False), event(59)]
    events += [event(61), event(62), event(63, "a", False, True), event(200), event(-0.1)]
    counter = WordCounter(3)
    counter.add(events[:4])
    counter.add(events[4:])
    rates = counter.rates()
    assert rates["word errors"][:2].tolist() == [0.5, 0.5]
    assert rates["unheard"][:2].tolist() == [0.25, 0]
    assert rates["repeated"][:2].tolist() == [0, 0.5]
    assert np.isnan(rates["word errors"][2])
    assert counter.words == 8
    assert list(counter.unheard) == [3]
    assert list(counter.repeated) == [63]
    counter.add_skipped([event(3, None, False), event(200, None, False)])
    assert counter.rates()["skipped"][:2].tolist() == [0.25, 0]
    assert counter.rates()["unheard"][:2].tolist() == [0.25, 0]
    assert list(counter.skipped) == [3, 200]
