"""Streams of minutes: a long text with its character, and who speaks it piece by piece."""

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..data.sentences import held_out_sentences, training_sentences
from ..data.speech import Speaker
from ..engine import StreamCharEngine
from ..model import JointDiT
from ..pointer import PlannedPointer
from ..session import Chunk, Session, Speech
from .normalise import normalise
from .sources import FIRST_IDENTITY, GroundTruth, Item, as_input, everyday_sentences, reference_frame
from .voice import Values, VoiceStatistics
from .wer import SAMPLE_RATE, Audio

#: Added to the number of a script for the seed of its sentences: short evaluations draw by small seeds.
_TEXTS = 1_000_000
#: Words that a script has for each minute: more than are said in it.
WORDS_PER_MINUTE = 260
#: Words a second that nobody says.
_FASTEST = 8
#: Seconds for which there must be text beyond those wanted, in whole chunks.
_MORE = 4
#: When an interruption comes, at the earliest and at the latest: a share of the time that denoising takes.
_DELAY = 0.1, 0.5
#: Sentences that a voice is described by.
_VOICE_SENTENCES = 20


@dataclass(frozen=True)
class Script:
    """What a stream is asked for.

    Attributes:
        sentences: in order; every word is one spoken word.
        identity: seed of the character.
        seed: of motion and noise.
        seconds: of media that are wanted; the text lasts longer.
    """

    sentences: tuple[str, ...]
    identity: int
    seed: int
    seconds: float

    @property
    def words(self) -> list[str]:
        """All words, with their punctuation."""
        return " ".join(self.sentences).split()


def write_script(minutes: int, stream: int, identities: int, seed: int = 0) -> Script:
    """Return the script of one stream: held-out sentences, and every third an everyday one.

    The everyday ones come again, in another order, when all have been said, so that no minute is harder than
    the others.

    Sentences with a word that is spoken as several, such as a number in digits, are left out, so that words
    asked, heard and pointed at have the same numbers.

    Args:
        minutes: of the stream, at least 1.
        stream: number of the stream, from 0.
        identities: characters of the gallery.
        seed: of the texts.

    Raises:
        ValueError: ``minutes`` or ``identities`` is below 1.
    """
    if min(minutes, identities) < 1:
        raise ValueError(f"minutes and identities must be at least 1, got {minutes} and {identities}")
    number = seed * 10_000 + stream
    shuffled = random.Random(f"long {number}")
    everyday: list[str] = []
    wanted = minutes * WORDS_PER_MINUTE
    # A sentence has two words at least.
    unseen = iter(held_out_sentences(wanted // 2, _TEXTS + number))
    chosen: list[str] = []
    while wanted > 0:
        if not everyday:
            everyday = everyday_sentences()
            shuffled.shuffle(everyday)
        sentence = everyday.pop() if len(chosen) % 3 == 2 else next(unseen)
        if all(len(normalise(word).split()) == 1 for word in sentence.split()):
            chosen.append(sentence)
            wanted -= len(sentence.split())
    return Script(tuple(chosen), FIRST_IDENTITY + stream % identities, number, 60.0 * minutes)


@dataclass(frozen=True)
class Part:
    """Media that follow those before them without a gap.

    Attributes:
        audio: [frames * 1000] fp32, 24 kHz.
        video: [frames, height, width, 3] uint8 RGB.
        words: number of each word said, and when half of it was, in seconds of the stream.
        seconds: of computing, where it says something about speed.
        dropped: numbers of words that were asked for until here and are no more; those after them move up.
        cut: whether the picture is another take than that before, and does not move on from it.
        memory: of the process that made it, in megabytes, where it was looked at.
    """

    audio: Audio
    video: npt.NDArray[np.uint8]
    words: Sequence[tuple[int, float]]
    seconds: float | None = None
    dropped: range = range(0)
    cut: bool = False
    memory: float | None = None


class LongSource(Protocol):
    """Speak scripts."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def parts(self, script: Script) -> Iterator[Part]:
        """Yield the media of a script until it has lasted long enough."""
        ...


class TrueStream:
    """The synthesiser's speech and the drawing that goes with it, sentence after sentence.

    Args:
        truth: makes the sentences.
    """

    name = "ground truth"

    def __init__(self, truth: GroundTruth) -> None:
        self._truth = truth

    def parts(self, script: Script) -> Iterator[Part]:
        """Yield the sentences of a script."""
        start, first = 0.0, 0
        for index, sentence in enumerate(script.sentences):
            if start >= script.seconds:
                return
            clip = self._truth.make(Item(sentence, "long", script.identity, script.seed + index))
            words = [(first + word, start + time) for word, time in enumerate(clip.said or ())]
            yield Part(clip.audio, clip.video, words, cut=True)
            start += len(clip.audio) / SAMPLE_RATE
            first += len(sentence.split())


class SpokenStream:
    """An engine that speaks a script in one session.

    Args:
        name: for tables.
        engine: with a free row.
        interrupt_every: seconds, on the average, after which it is interrupted while it makes a chunk, which
            is dropped, and given new text: that after the sentence at hand and the next. None for never.
    """

    def __init__(self, name: str, engine: StreamCharEngine, interrupt_every: float | None = None) -> None:
        self.name, self._engine, self._interrupt_every = name, engine, interrupt_every

    def parts(self, script: Script) -> Iterator[Part]:
        """Yield the chunks of a script."""
        picture, said, dropped = self._engine.preset.picture, 0, range(0)
        # Words with the number of their sentence, without those that are dropped.
        words = [
            (number, word) for number, sentence in enumerate(script.sentences) for word in sentence.split()
        ]
        reference = as_input(reference_frame(script.identity, picture.height, picture.width))
        draw = random.Random(script.seed)
        with self._engine.open(reference, seed=script.seed) as session:
            while said < len(words) and (left := script.seconds - session.next_sample / SAMPLE_RATE) > 0:
                every = self._interrupt_every
                seconds = left if every is None else every * draw.uniform(0.5, 1.5)
                rest = words[said : said + round(_FASTEST * (min(seconds, left) + _MORE))]
                speech = session.speak(" ".join(word for _, word in rest), max_seconds=left)
                chunks = speech if every is None else self._interrupted(session, speech, seconds, draw)
                for chunk in chunks:
                    yield replace(_part(chunk), dropped=dropped)
                    dropped = range(0)
                said = session.interrupt().words
                if every is not None:
                    dropped = range(said, _new_text(words, said))
                    del words[dropped.start : dropped.stop]

    def _interrupted(
        self, session: Session, speech: Speech, seconds: float, draw: random.Random
    ) -> Iterator[Chunk]:
        """Yield so many seconds of chunks, then interrupt the session from another thread."""
        chunks = max(round(seconds / self._engine.preset.seconds), 1)
        for count, chunk in enumerate(speech, 1):
            yield chunk
            if count == chunks:
                # While the next chunk, begun at once, is not denoised yet. It is dropped then, and when that
                # was makes no difference to what follows. On a machine that was busy and is not any more it
                # may be done before: then it is taken, as a player would.
                delay = draw.uniform(*_DELAY) * chunk.latency["denoise"]
                interruption = threading.Timer(delay, session.interrupt)
                interruption.start()
                try:
                    yield from speech
                finally:
                    interruption.join()


def _new_text(words: Sequence[tuple[int, str]], said: int) -> int:
    """Return where the sentence after the next begins, of words with the numbers of their sentences."""
    sentence = words[said][0] if said < len(words) else 0
    return next((k for k in range(said, len(words)) if words[k][0] > sentence + 1), len(words))


class SentenceStream:
    """An engine that speaks every sentence of a script in a session of its own: the same text without a past.

    What a long stream loses shows beside it, whatever the text.

    Args:
        name: for tables.
        engine: with a free row.
    """

    def __init__(self, name: str, engine: StreamCharEngine) -> None:
        self.name, self._engine = name, engine

    def parts(self, script: Script) -> Iterator[Part]:
        """Yield the chunks of one session after another."""
        picture, start, first = self._engine.preset.picture, 0.0, 0
        reference = as_input(reference_frame(script.identity, picture.height, picture.width))
        for index, sentence in enumerate(script.sentences):
            left = script.seconds - start
            if left <= 0:
                return
            with self._engine.open(reference, seed=script.seed + index) as session:
                for count, chunk in enumerate(session.speak(sentence, max_seconds=left)):
                    yield replace(_part(chunk, start, first), cut=count == 0)
                start += session.next_sample / SAMPLE_RATE
            first += len(sentence.split())


def _part(chunk: Chunk, start: float = 0.0, first: int = 0) -> Part:
    """Return a chunk of a session that began so many seconds and words after its stream."""
    return Part(
        chunk.host.audio.float().numpy(),
        chunk.host.video.numpy(),
        [(first + word.index, start + word.sample / SAMPLE_RATE) for word in chunk.words],
        chunk.latency["total"],
    )


def ablated(
    engine: StreamCharEngine, *, sink: int | None = None, motion: int | None = None, pointer: bool = True
) -> StreamCharEngine:
    """Return an engine with the same weights that lacks a part of what it goes by.

    The engine given must not be used any more: both share the language model.

    Args:
        engine: without open sessions.
        sink: latents of the first chunk that are kept, from 0 to a whole chunk's; None as they are.
        motion: latents of the last chunk, likewise.
        pointer: whether the place in the text is read off the audio; otherwise the plan of durations alone
            says it.

    Raises:
        ConfigError: a chunk has not so many latents.
        ValueError: the engine has no plan of durations to go by.
    """
    chunk = engine.preset.chunk
    kept = replace(
        chunk,
        sink_latents=chunk.sink_latents if sink is None else sink,
        motion_latents=chunk.motion_latents if motion is None else motion,
    )
    config = replace(engine.preset, chunk=kept)
    if not pointer:
        if engine.orchestrator.durations is None:
            raise ValueError(
                "orchestrator must have a duration predictor to do without its pointer, got none"
            )
        engine.orchestrator.pointer = PlannedPointer(config.audio_tokens)
    with torch.device("meta"):
        dit = JointDiT(config, engine.dit.backend)
    dit.load_state_dict(engine.dit.state_dict(), assign=True)
    return StreamCharEngine(config, dit, engine.orchestrator, engine.vae, engine.vocoder, engine.tokenizer)


def voice_statistics(speaker: Speaker) -> Values:
    """Return the statistics of a voice, from sentences that no script holds: those to train on."""
    statistics = VoiceStatistics()
    for sentence in training_sentences(_VOICE_SENTENCES, seed=0):
        statistics.add(speaker.say(sentence).audio)
    vector = statistics.vector()
    if vector is None:
        raise ValueError("speaker must make a sound, got silence")
    return vector
