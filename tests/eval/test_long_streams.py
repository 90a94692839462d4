"""Scripts, sources of long streams, interruptions, and ablated engines."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from streamchar.config import ConfigError
from streamchar.data.text.sentences import everyday_sentences, training_sentences
from streamchar.eval.long import streams
from streamchar.eval.long.ablation import ablated
from streamchar.eval.long.instruments import voice_statistics
from streamchar.eval.long.script import WORDS_PER_MINUTE, Script, write_script
from streamchar.eval.long.streams import SentenceStream, SpokenStream, StreamPiece, TrueStream
from streamchar.eval.metrics.normalise import normalise
from streamchar.eval.sources import FIRST_IDENTITY, Clip, Item, choose_items
from streamchar.model.pointer import PlannedPointer
from streamchar.session import Session
from tests.engine.small import SMALL, build
from tests.engine.threads import Steps

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"] * 20
SCRIPT = Script((" ".join(WORDS),), FIRST_IDENTITY, 3, 5.0)
PLANNED = replace(SMALL, orchestrator=replace(SMALL.orchestrator, duration_dim=8))


def test_a_script_is_long_held_out_and_has_one_word_per_word() -> None:
    script = write_script(10, stream=0, identities=4)
    assert len(script.words) >= 10 * WORDS_PER_MINUTE > 1000
    assert script.seconds == 600
    assert all(len(normalise(word).split()) == 1 for word in script.words)
    assert set(script.sentences).isdisjoint(training_sentences(20_000, seed=0))
    assert "The weather is lovely this morning, so let's go for a walk." in script.sentences
    unseen = {item.text for seed in range(3) for item in choose_items(50, 4, seed) if item.kind == "unseen"}
    # Short evaluations use other sentences, except for a few of the public-domain passages.
    assert len(unseen.intersection(script.sentences)) <= 2


def test_everyday_sentences_are_spread_evenly_over_a_script() -> None:
    everyday = set(everyday_sentences())
    script = write_script(30, stream=1, identities=4)
    kinds = np.asarray([sentence in everyday for sentence in script.sentences])
    for minute in np.array_split(kinds, 30):
        assert minute.mean() == pytest.approx(1 / 3, abs=0.12)
    first = [sentence for sentence in script.sentences if sentence in everyday][: len(everyday)]
    assert len(set(first)) > 0.9 * len(everyday)  # All of them come before one is repeated.


def test_scripts_differ_and_are_reproducible() -> None:
    scripts = [write_script(1, stream, identities=2, seed=1) for stream in range(3)]
    assert scripts[0] == write_script(1, 0, identities=2, seed=1)
    assert len({script.sentences for script in scripts}) == len({script.seed for script in scripts}) == 3
    assert [script.identity - FIRST_IDENTITY for script in scripts] == [0, 1, 0]
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        write_script(0, 0, 2)


def spoken(pieces: Iterator[StreamPiece]) -> tuple[list[StreamPiece], float]:
    """Return the pieces of a stream and its seconds."""
    taken = list(pieces)
    return taken, sum(len(piece.audio) for piece in taken) / 24000


def test_an_engine_speaks_chunks_until_the_time_is_up() -> None:
    pieces, seconds = spoken(SpokenStream("small", build()).pieces(SCRIPT))
    assert seconds == pytest.approx(16 / 3)  # The stream ends with the chunk that reaches five seconds.
    assert len(pieces) == 4
    for piece in pieces:
        assert len(piece.audio) == 1000 * len(piece.video)
        assert piece.compute_seconds is not None
    numbers = [number for piece in pieces for number, _ in piece.words]
    assert numbers == list(range(len(numbers)))


class SlowSteps(Steps):
    """Delays every denoising step; counts the passes that have begun."""

    def __init__(self) -> None:
        super().__init__(lambda _: time.sleep(0.06))
        self.passes = 0

    def push(self, name: str) -> None:
        self.passes += name == "chunk"
        super().push(name)


def test_an_interruption_drops_one_chunk_and_continues_with_new_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentences = tuple(" ".join(WORDS[first : first + 4]) for first in range(0, 200, 4))
    script = replace(SCRIPT, sentences=sentences, seconds=4.0)
    speak = Session.speak
    requested: list[tuple[int, str]] = []

    def recorded(session: Session, text: str, **options: float) -> object:
        requested.append((session.interrupt().words, text))
        return speak(session, text, **options)

    monkeypatch.setattr(Session, "speak", recorded)
    # Early enough even if other tests keep the machine busy.
    monkeypatch.setattr(streams, "_DELAY", (0.02, 0.1))

    def interrupted() -> tuple[list[StreamPiece], float]:
        requested.clear()
        engine = ablated(build(config=PLANNED), pointer=False)
        with SlowSteps() as steps:
            pieces, seconds = spoken(SpokenStream("small", engine, interrupt_every=2).pieces(script))
        assert steps.passes - len(pieces) == len(requested) - 1  # The time ends the last speech.
        return pieces, seconds

    pieces, seconds = interrupted()
    assert 4 <= seconds < 5.34
    assert len(requested) >= 2
    # The requested text is the script without the dropped words.
    words, drops = script.words, [piece.dropped for piece in pieces if piece.dropped]
    for (words_said, text), dropped in zip(requested[1:], drops, strict=True):
        assert words_said == dropped.start
        assert 4 <= len(dropped) <= 8  # The rest of a sentence and the whole next one.
        del words[dropped.start : dropped.stop]
        assert " ".join(words[words_said:]).startswith(text)
    numbers = [number for piece in pieces for number, _ in piece.words]
    assert numbers == list(range(len(numbers)))
    again, _ = interrupted()
    assert all(
        np.array_equal(one.video, other.video) and one.dropped == other.dropped
        for one, other in zip(pieces, again, strict=True)
    )


def test_separate_sentences_share_a_clock_and_have_no_history() -> None:
    sentences = tuple(" ".join(WORDS[first : first + 4]) for first in range(0, 40, 4))
    script = replace(SCRIPT, sentences=sentences, seconds=8.0)

    def pieces_of(script: Script) -> list[StreamPiece]:
        return list(SentenceStream("small", ablated(build(config=PLANNED), pointer=False)).pieces(script))

    pieces = pieces_of(script)
    words = [word for piece in pieces for word in piece.words]
    assert [number for number, _ in words] == list(range(len(words)))
    assert len(words) > 8  # Some are in the third sentence or later.
    starts = np.cumsum([0, *(len(piece.audio) for piece in pieces)]) / 24000
    assert 8 <= starts[-1] < 9.34  # The stream ends with the chunk that reaches eight seconds.
    for piece, start, end in zip(pieces, starts, starts[1:]):
        assert all(start <= time <= end for _, time in piece.words)
    # The first words of a sentence may be in its second chunk.
    takes = [index for index, piece in enumerate(pieces) if piece.new_take]
    assert len(takes) == -(-len(words) // 4) == 5
    assert all(min(dict(piece.words), default=0) % 4 == 0 for piece in pieces if piece.new_take)
    # The second sentence is the same as in a stream that begins with it.
    second = next(piece for piece in pieces if 4 in dict(piece.words))
    alone = pieces_of(replace(script, sentences=sentences[1:2], seed=SCRIPT.seed + 1))
    assert np.array_equal(alone[0].audio, second.audio)
    assert np.array_equal(alone[0].video, second.video)


class Sentences:
    """Sentences of two words and two seconds."""

    def make(self, item: Item) -> Clip:
        video = np.zeros((48, 8, 8, 3), np.uint8)
        return Clip(np.zeros(48_000, np.float32), video, word_middles=[0.5, 1.5])


def test_true_sentences_share_a_clock_and_word_indices() -> None:
    script = Script(("One two.", "Three four.", "Five six."), FIRST_IDENTITY, 0, 3.0)
    pieces, seconds = spoken(TrueStream(Sentences()).pieces(script))
    assert seconds == 4
    assert all(piece.new_take for piece in pieces)
    assert [word for piece in pieces for word in piece.words] == [(0, 0.5), (1, 1.5), (2, 2.5), (3, 3.5)]


@pytest.mark.parametrize(("sink", "motion"), [(0, None), (None, 0), (1, 1)])
def test_an_ablated_engine_keeps_its_weights_and_less_conditioning(sink: int, motion: int) -> None:
    engine = build(config=PLANNED)
    weight = engine.dit.blocks[0].qkv.weight
    less = ablated(engine, sink=sink, motion=motion)
    whole = SMALL.chunk.latent_frames
    chunk = less.preset.chunk
    assert chunk.sink_latents == (whole if sink is None else sink)
    assert chunk.motion_latents == (whole if motion is None else motion)
    assert less.dit.blocks[0].qkv.weight.data_ptr() == weight.data_ptr()
    first, later = (
        list(SpokenStream("small", each).pieces(replace(SCRIPT, seconds=2.5)))
        for each in (build(config=PLANNED), less)
    )
    # The cache is empty for the first chunk and differs for the second.
    assert torch.equal(torch.from_numpy(first[0].audio), torch.from_numpy(later[0].audio))
    assert not np.array_equal(first[1].video, later[1].video)


def test_an_engine_without_pointer_follows_the_plan() -> None:
    less = ablated(build(config=PLANNED), pointer=False)
    assert isinstance(less.orchestrator.pointer, PlannedPointer)
    pieces = list(SpokenStream("small", less).pieces(replace(SCRIPT, seconds=2.0)))
    assert sum(len(piece.words) for piece in pieces) > 0


def test_impossible_ablations_are_refused() -> None:
    with pytest.raises(ConfigError, match="sink_latents must be a whole number between 0"):
        ablated(build(), sink=9)
    with pytest.raises(ValueError, match="must have a duration predictor"):
        ablated(build(), pointer=False)


class Silent:
    def say(self, text: str) -> object:
        class Said:
            audio = np.zeros(10, np.float32)

        return Said()


def test_a_silent_voice_is_refused() -> None:
    with pytest.raises(ValueError, match="got silence"):
        voice_statistics(Silent())
