"""Scores of an artificial stream of two minutes with known results."""

import tracemalloc
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from string import ascii_lowercase

import numpy as np
import pytest

from streamchar.data.renderer.character import Identity, Phone, animate, render
from streamchar.eval.long.instruments import Instruments
from streamchar.eval.long.memory_use import MEMORY_EVERY, resident_megabytes, with_memory
from streamchar.eval.long.per_minute import slope
from streamchar.eval.long.scorer import Scorer
from streamchar.eval.long.script import Script
from streamchar.eval.long.stream_scores import StreamScores
from streamchar.eval.long.streams import StreamPiece
from streamchar.eval.metrics.align import TimedWord
from streamchar.eval.metrics.face import face
from streamchar.eval.metrics.wer import HeardWord
from streamchar.eval.metrics.word_counts import EdgeCount
from streamchar.eval.sources import FIRST_IDENTITY

SIZE, MINUTES, CHUNK = 32, 2, 96
FRAMES = MINUTES * 60 * 24
#: Frames from one word to the next, and frames of its sound; the rest is a pause, where segments may end.
SLOT, SOUND = 16, 10
SLOTS = FRAMES // SLOT
#: Frames after which the picture repeats.
PERIOD = 480
# Words that normalisation does not change.
WORDS = [f"q{a}{b}q" for a in ascii_lowercase for b in ascii_lowercase][: 2 * SLOTS]
SCRIPT = Script((" ".join(WORDS),), FIRST_IDENTITY, 0, 60.0 * MINUTES)
SECONDS_PER_SLOT = SLOT / 24


def words_in(audio: np.ndarray) -> list[tuple[int, float, float]]:
    """Return number, start and end in seconds of each word; its loudness is its number."""
    level = np.round(audio.reshape(-1, 1000)[:, 500] * 1000).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], level, [0]])))
    return [(level[a] - 1, a / 24, b / 24) for a, b in pairwise(edges) if level[a]]


class Ear:
    """Recognises every word except those in ``deaf``; as aligner and skip finder it finds all of them."""

    def __init__(self, deaf: Collection[int] = (), fails: bool = False) -> None:
        self.deaf, self.fails = deaf, fails

    def words(self, audio: np.ndarray) -> list[HeardWord]:
        found = [each for each in words_in(audio) if each[0] not in self.deaf]
        return [HeardWord(WORDS[number], start, end) for number, start, end in found]

    def missing(self, audio: np.ndarray, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
        if self.fails:
            return None
        there = [WORDS[number] for number, _, _ in words_in(audio)]
        return {index for index in doubtful if words[index] not in there}

    def align_words(self, audio: np.ndarray, words: Sequence[str]) -> list[TimedWord] | None:
        found = words_in(audio)
        if len(found) != len(words):
            return None
        # The mouth opens for the second half of a word.
        return [
            TimedWord(word, (Phone("m", start, (start + end) / 2), Phone("ɑ", (start + end) / 2, end)))
            for word, (_, start, end) in zip(words, found)
        ]


@cache
def rendered(identity: int = 0) -> np.ndarray:
    starts = [slot * SLOT / 24 for slot in range(PERIOD // SLOT)]
    half = SOUND / 48
    phones = [
        phone
        for start in starts
        for phone in (Phone("m", start, start + half), Phone("ɑ", start + half, start + 2 * half))
    ]
    pose = animate(phones, PERIOD, 5)
    video = render(Identity.sample(FIRST_IDENTITY + identity), pose, SIZE, SIZE)
    return np.tile(video.permute(0, 2, 3, 1).numpy(), (FRAMES // PERIOD, 1, 1, 1))


def instruments(ear: Ear | None = None) -> Instruments:
    ear = ear or Ear()
    return Instruments(ear, ear, ear, np.ones(38), (SIZE, SIZE), identities=2)


def score(
    said: Sequence[int] = range(SLOTS),
    pointer: float = 0.0,
    video: np.ndarray | None = None,
    seconds: float | None = 0.5,
    dropped: range = range(0),
    ear: Ear | None = None,
    takes: bool = False,
) -> StreamScores:
    """Score a stream that says one word per slot.

    Args:
        said: index of the word in each slot.
        pointer: delay of the pointer in seconds.
        video: frames of the stream.
        seconds: time of computing of each piece.
        dropped: words that leave the text where the first of them would be said.
        ear: the instruments for words.
        takes: whether every fifth piece is a new take.
    """
    video = rendered() if video is None else video
    audio = np.zeros((FRAMES, 1000), np.float32)
    pointed: dict[int, float] = {}
    for slot, number in enumerate(said):
        audio[slot * SLOT : slot * SLOT + SOUND] = (number + 1) / 1000
        number -= len(dropped) * (number >= dropped.stop > 0)
        pointed.setdefault(number, (slot * SLOT + SOUND / 2) / 24 + pointer)
    tools = instruments(ear)
    scorer = Scorer(SCRIPT, tools, CHUNK / 24)
    for start in range(0, FRAMES, CHUNK):
        piece = slice(start, start + CHUNK)
        words = [(n, t) for n, t in pointed.items() if start <= t * 24 < start + CHUNK]
        taken = dropped if start <= dropped.start * SLOT < start + CHUNK else range(0)
        new_take = takes and start // CHUNK % 5 == 0
        scorer.add(StreamPiece(audio[piece].ravel(), video[piece], words, seconds, taken, new_take))
    return scorer.finish()[0]


def total(count: EdgeCount) -> int:
    return count.near + count.away


@pytest.fixture(scope="module")
def clean() -> StreamScores:
    return score()


def test_a_clean_stream_has_no_errors(clean: StreamScores) -> None:
    for name in ("word errors", "unheard", "repeated"):
        assert clean.minutes[name] == [0, 0]
    assert clean.words == clean.confirmed == SLOTS
    # One planted word in each segment of 8 seconds or less.
    assert clean.planted == clean.found >= 15
    assert clean.seconds == 60 * MINUTES
    assert clean.minutes["identity"] == [1, 1]
    assert clean.minutes["lips late by"] == [0, 0]
    assert min(filter(None, clean.minutes["lip correlation"])) > 0.7


def test_a_right_pointer_has_no_error(clean: StreamScores) -> None:
    for name in ("place, seconds", "place, words", "pointer late by"):
        assert clean.minutes[name] == pytest.approx([0, 0], abs=1e-3)


def test_a_late_pointer_has_errors_in_seconds_and_words() -> None:
    found = score(pointer=0.25).minutes
    assert found["pointer late by"] == pytest.approx([0.25, 0.25], abs=0.01)
    assert found["place, seconds"] == pytest.approx([0.25, 0.25], abs=0.01)
    assert found["place, words"] == pytest.approx([0.25 / SECONDS_PER_SLOT] * 2, rel=0.05)
    early = score(pointer=-0.1).minutes
    assert early["pointer late by"] == pytest.approx([-0.1, -0.1], abs=0.01)


def test_dropped_words_are_not_missed() -> None:
    interrupted = [*range(60), *range(75, SLOTS + 15)]
    found = score(interrupted, dropped=range(60, 75))
    assert found.minutes["word errors"] == [0, 0]
    assert found.words == found.confirmed == SLOTS
    assert found.minutes["place, words"] == pytest.approx([0, 0], abs=1e-3)
    assert total(score(interrupted).unheard) == 15


def test_a_phrase_said_again_after_a_pause_is_repeated() -> None:
    # The speech jumps back by eight words and continues from there.
    found = score([*range(60), *range(52, SLOTS - 8)])
    assert total(found.repeated) == 8
    assert total(found.unheard) == 0


def test_words_missed_only_by_the_recogniser_are_not_skipped() -> None:
    # Five words are said and not recognised, three are not said.
    said, deaf = [*range(100), *range(103, SLOTS + 3)], {20, 21, 50, 99, 140}
    found = score(said, ear=Ear(deaf))
    assert total(found.unheard) == 8
    assert total(found.skipped) == 3
    assert found.skipped == score(said).skipped
    assert found.planted == found.found > 0


def test_unheard_words_count_as_skipped_if_the_search_fails() -> None:
    found = score(ear=Ear({20, 21, 50}, fails=True))
    assert found.skipped == found.unheard
    assert total(found.skipped) == 3
    assert found.planted == found.found == 0


def test_words_said_twice_and_skipped_are_counted_in_their_minutes() -> None:
    # One word of the first minute is said twice, two words of the second are left out.
    said = [*range(41), *range(40, 120), *range(122, SLOTS + 1)]
    found = score(said)
    assert total(found.repeated) == 1
    assert total(found.unheard) == total(found.skipped) == 2
    assert found.minutes["repeated"] == pytest.approx([1 / 89, 0], rel=0.05)
    assert found.minutes["unheard"] == pytest.approx([0, 2 / 92], rel=0.05)
    assert found.minutes["skipped"] == found.minutes["unheard"]
    assert found.minutes["word errors"] == pytest.approx([1 / 89, 2 / 92], rel=0.05)
    assert found.minutes["place, seconds"] == pytest.approx([0, 0], abs=1e-3)


def test_a_picture_fault_shows_only_in_its_minute(clean: StreamScores) -> None:
    half = FRAMES // 2
    tinted = rendered().copy()
    tinted[half:] = np.clip(tinted[half:].astype(int) - 12, 0, 255)
    found = score(video=tinted).minutes["colour"]
    assert found[0] == clean.minutes["colour"][0]
    assert found[1] == pytest.approx(12, abs=2.5)
    grey = rendered().copy()
    grey[half:] //= 2
    assert score(video=grey).minutes["sharpness"][1] == pytest.approx(
        clean.minutes["sharpness"][1] / 4, rel=0.05
    )
    swapped = np.concatenate([rendered()[:half], rendered(1)[half:]])
    found = score(video=swapped).minutes
    assert found["identity"] == [1, 0]
    assert found["likeness"][0] > 0.8 > 0 > found["likeness"][1]


def test_jumps_between_chunks_count_as_movement(clean: StreamScores) -> None:
    jumping = rendered().copy()
    odd = np.arange(FRAMES) // CHUNK % 2 == 1
    jumping[odd] = np.clip(jumping[odd].astype(int) + 20, 0, 255)
    found, steady = score(video=jumping).minutes["movement"], clean.minutes["movement"]
    within = np.abs(np.diff(face(rendered()).astype(int), axis=0)).mean()
    for jump, rest in zip(found, steady, strict=True):
        assert jump - rest == pytest.approx(20 / within, rel=0.15)
    assert max(steady) < 2


def test_jumps_between_takes_do_not_count_as_movement() -> None:
    jumping = rendered().copy()
    odd = np.arange(FRAMES) // (5 * CHUNK) % 2 == 1
    jumping[odd] = np.clip(jumping[odd].astype(int) + 20, 0, 255)
    assert max(score(video=jumping, takes=True).minutes["movement"]) < 2
    assert min(score(video=jumping).minutes["movement"]) > 2


def test_late_lips_have_an_offset() -> None:
    assert score(video=np.roll(rendered(), 3, axis=0)).minutes["lips late by"] == [3, 3]


def test_rtf_needs_computing_times(clean: StreamScores) -> None:
    assert clean.minutes["rtf"] == pytest.approx([0.5 / (CHUNK / 24)] * 2)
    assert "rtf" not in score(seconds=None).minutes


def test_memory_is_measured_every_ten_seconds_of_computed_media() -> None:
    audio, video = np.zeros(CHUNK * 1000, np.float32), rendered()[:CHUNK]
    for seconds in (0.5, None):
        pieces = [StreamPiece(audio, video, [], seconds)] * 12
        found = [piece.memory_megabytes for piece in with_memory(pieces)]
        measured = [index for index, memory in enumerate(found) if memory is not None]
        every = -(-MEMORY_EVERY // CHUNK)
        assert measured == ([] if seconds is None else list(range(0, 12, every)))
    assert resident_megabytes() == pytest.approx(
        next(with_memory([StreamPiece(audio, video, [], 0.5)])).memory_megabytes, rel=0.5
    )


def test_the_memory_slope_leaves_out_the_first_minute(clean: StreamScores) -> None:
    scorer = Scorer(SCRIPT, instruments(), CHUNK / 24)
    for start in range(0, FRAMES, CHUNK):
        minutes = start / (24 * 60)
        # The first minute does not count as growth.
        memory = 100 + 3 * minutes if minutes >= 1 else 50.0
        video = rendered()[start : start + CHUNK]
        audio = np.zeros(CHUNK * 1000, np.float32)
        scorer.add(StreamPiece(audio, video, [], 0.5, memory_megabytes=memory))
    grown = scorer.finish()[0]
    assert grown.memory_slope == pytest.approx(3)
    assert grown.minutes["memory"] == pytest.approx([50, 104.5], abs=0.1)
    assert clean.memory_slope is None


def test_freed_memory_between_live_blocks_does_not_count() -> None:
    before = resident_megabytes()
    # Too small for separate mappings, so that all blocks come from one heap.
    mixed = [np.ones(size, np.uint8) for _ in range(1000) for size in (64_000, 100)]
    assert resident_megabytes() - before > 50
    kept = mixed[1::2]
    del mixed
    assert resident_megabytes() - before < 10
    assert len(kept) == 1000


def test_the_state_of_a_scorer_does_not_grow() -> None:
    tools = instruments()
    scorer, held = Scorer(SCRIPT, tools, CHUNK / 24), []
    tracemalloc.start()
    try:
        for start in range(0, FRAMES, CHUNK):
            numbers = range(start // SLOT, (start + CHUNK) // SLOT)
            audio = np.zeros((CHUNK, 1000), np.float32)
            for k, number in enumerate(numbers):
                audio[k * SLOT : k * SLOT + SOUND] = (number + 1) / 1000
            words = [(number, number * SECONDS_PER_SLOT) for number in numbers]
            scorer.add(StreamPiece(audio.ravel(), rendered()[start : start + CHUNK], words, 0.5))
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # Compare the same part of both minutes, because segments wait for their words. One number per frame would
    # take 11 520 bytes.
    quarter = len(held) // 4
    assert min(held[-quarter:]) - min(held[quarter : 2 * quarter]) < 30_000
    assert scorer.finish()[0].words == SLOTS


def test_slope_of_a_line_and_its_standard_error() -> None:
    assert slope([(0, 5.0), (1, 5.5), (2, 6.0)]) == pytest.approx((0.5, 0.0))
    assert slope([(0, 5.0), (1, 5.5)]) == pytest.approx((0.5, 0.0))
    noise = np.random.default_rng(0).normal(0, 0.3, (400, 10))
    found = np.asarray([slope(list(enumerate(0.2 * np.arange(10) + row))) for row in noise])
    assert found[:, 0].mean() == pytest.approx(0.2, abs=0.01)
    # The error is the actual scatter of slopes.
    assert np.sqrt(np.square(found[:, 1]).mean()) == pytest.approx(found[:, 0].std(), rel=0.1)


def test_an_empty_stream_is_refused() -> None:
    tools = instruments()
    with pytest.raises(ValueError, match="returned no media"):
        Scorer(SCRIPT, tools, 1.0).finish()


def test_a_sheet_shows_the_first_and_the_last_minute() -> None:
    tools = instruments()
    scorer = Scorer(Script(SCRIPT.sentences, FIRST_IDENTITY, 0, 60.0), tools, CHUNK / 24)
    for number in range(16):
        video = np.full((CHUNK, SIZE, SIZE, 3), number, np.uint8)
        scorer.add(StreamPiece(np.zeros(CHUNK * 1000, np.float32), video, []))
    scores, shown = scorer.finish()
    assert shown.shape == (2, 8, SIZE, SIZE, 3)
    assert (shown[0] == 0).all()
    assert (shown[1] == 15).all()
    assert scores.words == 0
    assert scores.minutes["word errors"] == scores.minutes["place, words"] == [None]
    assert scores.minutes["voice"] == [None]


def test_a_sheet_of_a_long_stream_also_shows_minutes_5_and_10() -> None:
    tools = instruments()
    scorer = Scorer(Script(SCRIPT.sentences, FIRST_IDENTITY, 0, 660.0), tools, CHUNK / 24)
    # Pieces of ten seconds; every pixel is the number of its piece.
    for number in range(66):
        video = np.full((240, SIZE, SIZE, 3), number, np.uint8)
        scorer.add(StreamPiece(np.zeros(240_000, np.float32), video, []))
    scores, shown = scorer.finish()
    assert [set(row.ravel().tolist()) for row in shown] == [{0}, {6}, {30}, {60}]
    assert shown.shape == (4, 8, SIZE, SIZE, 3)
    assert scores.seconds == 660
    assert len(scores.minutes["colour"]) == 11
