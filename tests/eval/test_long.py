"""A whole stream of two minutes, made up so that every score has a known answer."""

import tracemalloc
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from string import ascii_lowercase

import numpy as np
import pytest

from streamchar.data.character import Identity, Phone, animate, render
from streamchar.eval.align import TimedWord
from streamchar.eval.face import face
from streamchar.eval.long import (
    MEMORY_EVERY,
    Instruments,
    Scorer,
    StreamScores,
    remembered,
    resident_megabytes,
    slope,
)
from streamchar.eval.sources import FIRST_IDENTITY
from streamchar.eval.streams import Part, Script
from streamchar.eval.transcript import EdgeCount
from streamchar.eval.wer import HeardWord

SIZE, MINUTES, CHUNK = 32, 2, 96
FRAMES = MINUTES * 60 * 24
#: Frames from one word to the next, and of its sound; what is left is a pause that a cut may fall in.
SLOT, SOUND = 16, 10
SLOTS = FRAMES // SLOT
#: Frames after which the picture comes again.
PERIOD = 480
# Between two letters that no rule of spelling knows.
WORDS = [f"q{a}{b}q" for a in ascii_lowercase for b in ascii_lowercase][: 2 * SLOTS]
SCRIPT = Script((" ".join(WORDS),), FIRST_IDENTITY, 0, 60.0 * MINUTES)
SECONDS_A_SLOT = SLOT / 24


def spoken(audio: np.ndarray) -> list[tuple[int, float, float]]:
    """Read words off their loudness: number, start and end in seconds."""
    level = np.round(audio.reshape(-1, 1000)[:, 500] * 1000).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], level, [0]])))
    return [(level[a] - 1, a / 24, b / 24) for a, b in pairwise(edges) if level[a]]


class Ear:
    """Hears every word but some, whose sound it knows all the same where it is told to look for it."""

    def __init__(self, deaf: Collection[int] = (), lost: bool = False) -> None:
        self.deaf, self.lost = deaf, lost

    def words(self, audio: np.ndarray) -> list[HeardWord]:
        found = [each for each in spoken(audio) if each[0] not in self.deaf]
        return [HeardWord(WORDS[number], start, end) for number, start, end in found]

    def missing(self, audio: np.ndarray, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
        if self.lost:
            return None
        there = [WORDS[number] for number, _, _ in spoken(audio)]
        return {index for index in doubtful if words[index] not in there}

    def align_words(self, audio: np.ndarray, words: Sequence[str]) -> list[TimedWord] | None:
        found = spoken(audio)
        if len(found) != len(words):
            return None
        # The mouth opens for the second half of a word.
        return [
            TimedWord(word, (Phone("m", start, (start + end) / 2), Phone("ɑ", (start + end) / 2, end)))
            for word, (_, start, end) in zip(words, found)
        ]


@cache
def drawn(identity: int = 0) -> np.ndarray:
    starts = [slot * SLOT / 24 for slot in range(PERIOD // SLOT)]
    half = SOUND / 48
    phones = [
        phone
        for start in starts
        for phone in (Phone("m", start, start + half), Phone("ɑ", start + half, start + 2 * half))
    ]
    pose = animate(phones, PERIOD, 5)
    drawn = render(Identity.sample(FIRST_IDENTITY + identity), pose, SIZE, SIZE)
    return np.tile(drawn.permute(0, 2, 3, 1).numpy(), (FRAMES // PERIOD, 1, 1, 1))


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
    cut: bool = False,
) -> StreamScores:
    """Score a stream that says a word of its text in every slot and points at it so many seconds late.

    Every fifth part may be a take of its own.

    Words that are dropped are taken out of the text where the first of them would be said.
    """
    video = drawn() if video is None else video
    audio = np.zeros((FRAMES, 1000), np.float32)
    pointed: dict[int, float] = {}
    for slot, number in enumerate(said):
        audio[slot * SLOT : slot * SLOT + SOUND] = (number + 1) / 1000
        number -= len(dropped) * (number >= dropped.stop > 0)
        pointed.setdefault(number, (slot * SLOT + SOUND / 2) / 24 + pointer)
    tools = instruments(ear)
    scorer = Scorer(SCRIPT, tools, CHUNK / 24)
    for start in range(0, FRAMES, CHUNK):
        part = slice(start, start + CHUNK)
        words = [(n, t) for n, t in pointed.items() if start <= t * 24 < start + CHUNK]
        taken = dropped if start <= dropped.start * SLOT < start + CHUNK else range(0)
        take = cut and start // CHUNK % 5 == 0
        scorer.add(Part(audio[part].ravel(), video[part], words, seconds, taken, take))
    return scorer.finish()[0]


def total(count: EdgeCount) -> int:
    return count.near + count.away


@pytest.fixture(scope="module")
def clean() -> StreamScores:
    return score()


def test_a_clean_stream_has_no_errors_and_every_word_confirmed(clean: StreamScores) -> None:
    for name in ("word errors", "unheard", "repeated"):
        assert clean.minutes[name] == [0, 0]
    assert clean.words == clean.confirmed == SLOTS
    # A word that nobody said in each of at least 15 segments of 8 seconds.
    assert clean.planted == clean.found >= 15
    assert clean.seconds == 60 * MINUTES
    assert clean.minutes["identity"] == [1, 1]
    assert clean.minutes["lips late by"] == [0, 0]
    assert min(filter(None, clean.minutes["lip correlation"])) > 0.7


def test_a_pointer_that_is_right_has_no_place_error(clean: StreamScores) -> None:
    for name in ("place, seconds", "place, words", "pointer late by"):
        assert clean.minutes[name] == pytest.approx([0, 0], abs=1e-3)


def test_a_pointer_that_is_late_is_so_by_seconds_and_words() -> None:
    found = score(pointer=0.25).minutes
    assert found["pointer late by"] == pytest.approx([0.25, 0.25], abs=0.01)
    assert found["place, seconds"] == pytest.approx([0.25, 0.25], abs=0.01)
    assert found["place, words"] == pytest.approx([0.25 / SECONDS_A_SLOT] * 2, rel=0.05)
    early = score(pointer=-0.1).minutes
    assert early["pointer late by"] == pytest.approx([-0.1, -0.1], abs=0.01)


def test_words_that_are_no_longer_asked_for_are_not_missed() -> None:
    interrupted = [*range(60), *range(75, SLOTS + 15)]
    found = score(interrupted, dropped=range(60, 75))
    assert found.minutes["word errors"] == [0, 0]
    assert found.words == found.confirmed == SLOTS
    assert found.minutes["place, words"] == pytest.approx([0, 0], abs=1e-3)
    assert total(score(interrupted).unheard) == 15


def test_a_phrase_said_again_at_the_start_of_a_segment_is_repeated() -> None:
    # The place in the text jumps back by eight words and goes on from there.
    found = score([*range(60), *range(52, SLOTS - 8)])
    assert total(found.repeated) == 8
    assert total(found.unheard) == 0


def test_words_that_the_recogniser_does_not_write_down_are_not_skipped() -> None:
    # Five words are there and not heard, three are not there.
    said, deaf = [*range(100), *range(103, SLOTS + 3)], {20, 21, 50, 99, 140}
    found = score(said, ear=Ear(deaf))
    assert total(found.unheard) == 8
    assert total(found.skipped) == 3
    assert found.skipped == score(said).skipped
    assert found.planted == found.found > 0


def test_words_count_as_skipped_where_that_cannot_be_told() -> None:
    found = score(ear=Ear({20, 21, 50}, lost=True))
    assert found.skipped == found.unheard
    assert total(found.skipped) == 3
    assert found.planted == found.found == 0


def test_words_said_twice_and_skipped_are_counted_in_their_minutes() -> None:
    # One word of the first minute is said twice, two of the second are left out.
    said = [*range(41), *range(40, 120), *range(122, SLOTS + 1)]
    found = score(said)
    assert total(found.repeated) == 1
    assert total(found.unheard) == total(found.skipped) == 2
    assert found.minutes["repeated"] == pytest.approx([1 / 89, 0], rel=0.05)
    assert found.minutes["unheard"] == pytest.approx([0, 2 / 92], rel=0.05)
    assert found.minutes["skipped"] == found.minutes["unheard"]
    assert found.minutes["word errors"] == pytest.approx([1 / 89, 2 / 92], rel=0.05)
    assert found.minutes["place, seconds"] == pytest.approx([0, 0], abs=1e-3)


def test_a_second_minute_that_is_tinted_blurred_or_anothers_shows_there_alone(clean: StreamScores) -> None:
    half = FRAMES // 2
    tinted = drawn().copy()
    tinted[half:] = np.clip(tinted[half:].astype(int) - 12, 0, 255)
    found = score(video=tinted).minutes["colour"]
    assert found[0] == clean.minutes["colour"][0]
    assert found[1] == pytest.approx(12, abs=2.5)
    grey = drawn().copy()
    grey[half:] //= 2
    assert score(video=grey).minutes["sharpness"][1] == pytest.approx(
        clean.minutes["sharpness"][1] / 4, rel=0.05
    )
    swapped = np.concatenate([drawn()[:half], drawn(1)[half:]])
    found = score(video=swapped).minutes
    assert found["identity"] == [1, 0]
    assert found["likeness"][0] > 0.8 > 0 > found["likeness"][1]


def test_a_picture_that_jumps_where_chunks_meet_moves_more_there(clean: StreamScores) -> None:
    jumping = drawn().copy()
    odd = np.arange(FRAMES) // CHUNK % 2 == 1
    jumping[odd] = np.clip(jumping[odd].astype(int) + 20, 0, 255)
    found, steady = score(video=jumping).minutes["movement"], clean.minutes["movement"]
    within = np.abs(np.diff(face(drawn()).astype(int), axis=0)).mean()
    for jump, rest in zip(found, steady, strict=True):
        assert jump - rest == pytest.approx(20 / within, rel=0.15)
    assert max(steady) < 2


def test_a_picture_that_jumps_from_take_to_take_alone_moves_no_more_where_chunks_meet() -> None:
    takes = drawn().copy()
    odd = np.arange(FRAMES) // (5 * CHUNK) % 2 == 1
    takes[odd] = np.clip(takes[odd].astype(int) + 20, 0, 255)
    assert max(score(video=takes, cut=True).minutes["movement"]) < 2
    assert min(score(video=takes).minutes["movement"]) > 2


def test_lips_that_are_late_are_found_late() -> None:
    assert score(video=np.roll(drawn(), 3, axis=0)).minutes["lips late by"] == [3, 3]


def test_speed_is_known_where_computing_was_timed(clean: StreamScores) -> None:
    assert clean.minutes["rtf"] == pytest.approx([0.5 / (CHUNK / 24)] * 2)
    assert "rtf" not in score(seconds=None).minutes


def test_memory_goes_with_the_parts_that_were_computed_every_ten_seconds() -> None:
    audio, video = np.zeros(CHUNK * 1000, np.float32), drawn()[:CHUNK]
    for seconds in (0.5, None):
        parts = [Part(audio, video, [], seconds)] * 12
        found = [part.memory for part in remembered(parts)]
        looked = [index for index, memory in enumerate(found) if memory is not None]
        every = -(-MEMORY_EVERY // CHUNK)
        assert looked == ([] if seconds is None else list(range(0, 12, every)))
    assert resident_megabytes() == pytest.approx(
        next(remembered([Part(audio, video, [], 0.5)])).memory, rel=0.5
    )


def test_memory_that_grows_after_the_first_minute_has_its_slope(clean: StreamScores) -> None:
    scorer = Scorer(SCRIPT, instruments(), CHUNK / 24)
    for start in range(0, FRAMES, CHUNK):
        minutes = start / (24 * 60)
        # What the first minute takes is not growth.
        memory = 100 + 3 * minutes if minutes >= 1 else 50.0
        part = drawn()[start : start + CHUNK]
        scorer.add(Part(np.zeros(CHUNK * 1000, np.float32), part, [], 0.5, memory=memory))
    grown = scorer.finish()[0]
    assert grown.memory_slope == pytest.approx(3)
    assert grown.minutes["memory"] == pytest.approx([50, 104.5], abs=0.1)
    assert clean.memory_slope is None


def test_memory_that_was_freed_between_what_stays_does_not_count() -> None:
    before = resident_megabytes()
    # Too small for pages of their own, so that they come from one heap.
    mixed = [np.ones(size, np.uint8) for _ in range(1000) for size in (64_000, 100)]
    assert resident_megabytes() - before > 50
    stays = mixed[1::2]
    del mixed
    assert resident_megabytes() - before < 10
    assert len(stays) == 1000


def test_what_is_held_of_a_stream_does_not_grow_with_it() -> None:
    tools = instruments()
    scorer, held = Scorer(SCRIPT, tools, CHUNK / 24), []
    tracemalloc.start()
    try:
        for start in range(0, FRAMES, CHUNK):
            numbers = range(start // SLOT, (start + CHUNK) // SLOT)
            audio = np.zeros((CHUNK, 1000), np.float32)
            for k, number in enumerate(numbers):
                audio[k * SLOT : k * SLOT + SOUND] = (number + 1) / 1000
            words = [(number, number * SECONDS_A_SLOT) for number in numbers]
            scorer.add(Part(audio.ravel(), drawn()[start : start + CHUNK], words, 0.5))
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # The same part of either minute, for segments wait for their words. A number a frame is 11 520 bytes.
    quarter = len(held) // 4
    assert min(held[-quarter:]) - min(held[quarter : 2 * quarter]) < 30_000
    assert scorer.finish()[0].words == SLOTS


def test_a_line_has_its_slope_and_points_beside_it_make_that_unsure() -> None:
    assert slope([(0, 5.0), (1, 5.5), (2, 6.0)]) == pytest.approx((0.5, 0.0))
    assert slope([(0, 5.0), (1, 5.5)]) == pytest.approx((0.5, 0.0))
    noise = np.random.default_rng(0).normal(0, 0.3, (400, 10))
    found = np.asarray([slope(list(enumerate(0.2 * np.arange(10) + row))) for row in noise])
    assert found[:, 0].mean() == pytest.approx(0.2, abs=0.01)
    # What it says of itself is how far slopes really scatter.
    assert np.sqrt(np.square(found[:, 1]).mean()) == pytest.approx(found[:, 0].std(), rel=0.1)


def test_nothing_cannot_be_scored() -> None:
    tools = instruments()
    with pytest.raises(ValueError, match="must have media to be scored"):
        Scorer(SCRIPT, tools, 1.0).finish()


def test_a_sheet_shows_the_beginning_and_each_minute_asked_for_up_to_the_end() -> None:
    tools = instruments()
    scorer = Scorer(Script(SCRIPT.sentences, FIRST_IDENTITY, 0, 60.0), tools, CHUNK / 24)
    for number in range(16):
        video = np.full((CHUNK, SIZE, SIZE, 3), number, np.uint8)
        scorer.add(Part(np.zeros(CHUNK * 1000, np.float32), video, []))
    scores, shown = scorer.finish()
    assert shown.shape == (2, 8, SIZE, SIZE, 3)
    assert (shown[0] == 0).all()
    assert (shown[1] == 15).all()
    assert scores.words == 0
    assert scores.minutes["word errors"] == scores.minutes["place, words"] == [None]
    assert scores.minutes["voice"] == [None]


def test_a_sheet_of_a_long_stream_shows_minutes_five_and_ten_too() -> None:
    tools = instruments()
    scorer = Scorer(Script(SCRIPT.sentences, FIRST_IDENTITY, 0, 660.0), tools, CHUNK / 24)
    # Parts of ten seconds, each of the colour of its number.
    for number in range(66):
        video = np.full((240, SIZE, SIZE, 3), number, np.uint8)
        scorer.add(Part(np.zeros(240_000, np.float32), video, []))
    scores, shown = scorer.finish()
    assert [set(row.ravel().tolist()) for row in shown] == [{0}, {6}, {30}, {60}]
    assert shown.shape == (4, 8, SIZE, SIZE, 3)
    assert scores.seconds == 660
    assert len(scores.minutes["colour"]) == 11
