"""Who speaks for minutes: the text, chunks of one session, interruptions, and engines that lack a part."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from streamchar.config import ConfigError
from streamchar.data.sentences import training_sentences
from streamchar.engine import StreamCharEngine
from streamchar.eval import streams
from streamchar.eval.normalise import normalise
from streamchar.eval.sources import FIRST_IDENTITY, Clip, Item, choose_items, everyday_sentences
from streamchar.eval.streams import (
    WORDS_PER_MINUTE,
    Part,
    Script,
    SentenceStream,
    SpokenStream,
    TrueStream,
    ablated,
    voice_statistics,
    write_script,
)
from streamchar.pointer import PlannedPointer
from streamchar.session import Session, Turn
from tests.engine.small import SMALL, build

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"] * 20
SCRIPT = Script((" ".join(WORDS),), FIRST_IDENTITY, 3, 5.0)
PLANNED = replace(SMALL, orchestrator=replace(SMALL.orchestrator, duration_dim=8))


def test_a_script_is_long_enough_new_to_the_voice_and_of_single_words() -> None:
    script = write_script(10, stream=0, identities=4)
    assert len(script.words) >= 10 * WORDS_PER_MINUTE > 1000
    assert script.seconds == 600
    assert all(len(normalise(word).split()) == 1 for word in script.words)
    assert set(script.sentences).isdisjoint(training_sentences(20_000, seed=0))
    assert "The weather is lovely this morning, so let's go for a walk." in script.sentences
    unseen = {item.text for seed in range(3) for item in choose_items(50, 4, seed) if item.kind == "unseen"}
    # Short evaluations ask for others, but for a few of the passages, of which there are not many.
    assert len(unseen.intersection(script.sentences)) <= 2


def test_no_part_of_a_long_script_has_fewer_everyday_sentences() -> None:
    everyday = set(everyday_sentences())
    script = write_script(30, stream=1, identities=4)
    kinds = np.asarray([sentence in everyday for sentence in script.sentences])
    for part in np.array_split(kinds, 30):
        assert part.mean() == pytest.approx(1 / 3, abs=0.12)
    first = [sentence for sentence in script.sentences if sentence in everyday][: len(everyday)]
    assert len(set(first)) > 0.9 * len(everyday)  # all of them before any again


def test_streams_differ_and_come_again() -> None:
    scripts = [write_script(1, stream, identities=2, seed=1) for stream in range(3)]
    assert scripts[0] == write_script(1, 0, identities=2, seed=1)
    assert len({script.sentences for script in scripts}) == len({script.seed for script in scripts}) == 3
    assert [script.identity - FIRST_IDENTITY for script in scripts] == [0, 1, 0]
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        write_script(0, 0, 2)


def lasting(parts: Iterator[Part]) -> tuple[list[Part], float]:
    taken = list(parts)
    return taken, sum(len(part.audio) for part in taken) / 24000


def test_an_engine_speaks_chunk_by_chunk_until_the_time_is_up() -> None:
    parts, seconds = lasting(SpokenStream("small", build()).parts(SCRIPT))
    assert seconds == pytest.approx(16 / 3)  # the first whole chunk past five seconds
    assert len(parts) == 4
    for part in parts:
        assert len(part.audio) == 1000 * len(part.video)
        assert part.seconds is not None
    numbers = [number for part in parts for number, _ in part.words]
    assert numbers == list(range(len(numbers)))


def test_an_interruption_drops_the_chunk_being_made_and_goes_on_with_new_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentences = tuple(" ".join(WORDS[first : first + 4]) for first in range(0, 200, 4))
    script = replace(SCRIPT, sentences=sentences, seconds=4.0)
    asked: list[tuple[int, str]] = []
    made: list[bool] = []
    speak, make_chunk = Session.speak, StreamCharEngine.make_chunk

    def recorded(session: Session, text: str, **options: float) -> object:
        asked.append((session._window.spoken, text))
        return speak(session, text, **options)

    def counted(engine: StreamCharEngine, turn: Turn) -> None:
        make_chunk(engine, turn)
        made.append(turn.chunk is not None)

    monkeypatch.setattr(Session, "speak", recorded)
    monkeypatch.setattr(StreamCharEngine, "make_chunk", counted)
    # Soon enough on a machine that is busy with other tests, too.
    monkeypatch.setattr(streams, "_DELAY", (0.02, 0.1))

    def spoken() -> tuple[list[Part], float]:
        asked.clear()
        made.clear()
        engine = ablated(build(config=PLANNED), pointer=False)
        lane = engine._passes.rows[0].lane
        denoise = lane.denoise

        def slow(step: int) -> None:
            time.sleep(0.06)
            denoise(step)

        monkeypatch.setattr(lane, "denoise", slow)
        return lasting(SpokenStream("small", engine, interrupt_every=2).parts(script))

    parts, seconds = spoken()
    assert 4 <= seconds < 5.34
    assert len(asked) >= 2
    assert made.count(False) == len(asked) - 1  # the last speech ends with the time
    # What is asked for is the script without what was dropped.
    words, drops = script.words, [part.dropped for part in parts if part.dropped]
    for (said, text), dropped in zip(asked[1:], drops, strict=True):
        assert said == dropped.start
        assert 4 <= len(dropped) <= 8  # the rest of a sentence and a whole one
        del words[dropped.start : dropped.stop]
        assert " ".join(words[said:]).startswith(text)
    numbers = [number for part in parts for number, _ in part.words]
    assert numbers == list(range(len(numbers)))
    again, _ = spoken()
    assert all(
        np.array_equal(one.video, other.video) and one.dropped == other.dropped
        for one, other in zip(parts, again, strict=True)
    )


def test_sentences_by_themselves_stand_on_one_clock_and_have_no_past() -> None:
    sentences = tuple(" ".join(WORDS[first : first + 4]) for first in range(0, 40, 4))
    script = replace(SCRIPT, sentences=sentences, seconds=8.0)

    def spoken(script: Script) -> list[Part]:
        return list(SentenceStream("small", ablated(build(config=PLANNED), pointer=False)).parts(script))

    parts = spoken(script)
    words = [word for part in parts for word in part.words]
    assert [number for number, _ in words] == list(range(len(words)))
    assert len(words) > 8  # of the third sentence at least
    starts = np.cumsum([0, *(len(part.audio) for part in parts)]) / 24000
    assert 8 <= starts[-1] < 9.34  # the first whole chunk past eight seconds
    for part, start, end in zip(parts, starts, starts[1:]):
        assert all(start <= time <= end for _, time in part.words)
    # A sentence's first words may be said in the second of its chunks.
    takes = [index for index, part in enumerate(parts) if part.cut]
    assert len(takes) == -(-len(words) // 4) == 5
    assert all(min(dict(part.words), default=0) % 4 == 0 for part in parts if part.cut)
    # The second sentence is what a stream of nothing else begins with.
    second = next(part for part in parts if 4 in dict(part.words))
    alone = spoken(replace(script, sentences=sentences[1:2], seed=SCRIPT.seed + 1))
    assert np.array_equal(alone[0].audio, second.audio)
    assert np.array_equal(alone[0].video, second.video)


class Sentences:
    """Two seconds a sentence, its words said at the seconds."""

    def make(self, item: Item) -> Clip:
        video = np.zeros((48, 8, 8, 3), np.uint8)
        return Clip(np.zeros(48_000, np.float32), video, said=[0.5, 1.5])


def test_the_truth_stands_on_one_clock_and_counts_words_through() -> None:
    script = Script(("One two.", "Three four.", "Five six."), FIRST_IDENTITY, 0, 3.0)
    parts, seconds = lasting(TrueStream(Sentences()).parts(script))
    assert seconds == 4
    assert all(part.cut for part in parts)
    assert [word for part in parts for word in part.words] == [(0, 0.5), (1, 1.5), (2, 2.5), (3, 3.5)]


@pytest.mark.parametrize(("sink", "motion"), [(0, None), (None, 0), (1, 1)])
def test_an_ablated_engine_keeps_its_weights_and_loses_what_it_is_told_to(sink: int, motion: int) -> None:
    engine = build(config=PLANNED)
    weight = engine.dit.blocks[0].qkv.weight
    less = ablated(engine, sink=sink, motion=motion)
    whole = SMALL.chunk.latent_frames
    chunk = less.preset.chunk
    assert chunk.sink_latents == (whole if sink is None else sink)
    assert chunk.motion_latents == (whole if motion is None else motion)
    assert less.dit.blocks[0].qkv.weight.data_ptr() == weight.data_ptr()
    first, later = (
        list(SpokenStream("small", each).parts(replace(SCRIPT, seconds=2.5)))
        for each in (build(config=PLANNED), less)
    )
    # Nothing was kept before the first chunk, of which a second one is made.
    assert torch.equal(torch.from_numpy(first[0].audio), torch.from_numpy(later[0].audio))
    assert not np.array_equal(first[1].video, later[1].video)


def test_an_engine_without_its_pointer_goes_by_the_plan() -> None:
    less = ablated(build(config=PLANNED), pointer=False)
    assert isinstance(less.orchestrator.pointer, PlannedPointer)
    parts = list(SpokenStream("small", less).parts(replace(SCRIPT, seconds=2.0)))
    assert sum(len(part.words) for part in parts) > 0


def test_what_cannot_be_left_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="sink_latents must be a whole number between 0"):
        ablated(build(), sink=9)
    with pytest.raises(ValueError, match="must have a duration predictor"):
        ablated(build(), pointer=False)


class Silent:
    def say(self, text: str) -> object:
        class Said:
            audio = np.zeros(10, np.float32)

        return Said()


def test_a_voice_that_makes_no_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="got silence"):
        voice_statistics(Silent())
