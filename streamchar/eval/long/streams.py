"""Sources of streams that last for minutes, piece by piece."""

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ...config import CLOCK
from ...engine import StreamCharEngine
from ...session import Session, Speech
from ...types import Chunk
from ..arrays import Audio, Frames
from ..sources import GroundTruth, Item, as_input, reference_frame
from .script import Script

# More words per second than anybody says.
_FASTEST = 8
# Seconds of text beyond the wanted length, because the last chunk is a whole one.
_EXTRA_SECONDS = 4
# Delay of an interruption after the next chunk begins, as a share of the time of denoising.
_DELAY = 0.1, 0.5


@dataclass(frozen=True)
class StreamPiece:
    """Media that continue a stream without a gap.

    Attributes:
        audio: [frames * 1000] fp32, 24 kHz.
        video: [frames, height, width, 3] uint8 RGB.
        words: index of each word said, and the middle of the word in seconds of the stream.
        compute_seconds: time of computing, if it says something about speed.
        dropped: indices of words that are removed from the text here; the words after them move up.
        new_take: whether the picture does not continue the picture of the piece before.
        memory_megabytes: memory of the process that made it, if measured.
    """

    audio: Audio
    video: Frames
    words: Sequence[tuple[int, float]]
    compute_seconds: float | None = None
    dropped: range = range(0)
    new_take: bool = False
    memory_megabytes: float | None = None


class LongSource(Protocol):
    """Speaks scripts."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def pieces(self, script: Script) -> Iterator[StreamPiece]:
        """Yield the media of a script until they have the wanted length."""
        ...


class TrueStream:
    """The synthesiser's speech with the rendering that matches it, sentence after sentence.

    Args:
        truth: makes the clip of each sentence.
    """

    name = "ground truth"

    def __init__(self, truth: GroundTruth) -> None:
        self._truth = truth

    def pieces(self, script: Script) -> Iterator[StreamPiece]:
        """Yield the clips of the sentences."""
        start, first = 0.0, 0
        for index, sentence in enumerate(script.sentences):
            if start >= script.seconds:
                return
            clip = self._truth.make(Item(sentence, "long", script.identity, script.seed + index))
            words = [(first + word, start + time) for word, time in enumerate(clip.word_middles or ())]
            yield StreamPiece(clip.audio, clip.video, words, new_take=True)
            start += len(clip.audio) / CLOCK.sample_rate
            first += len(sentence.split())


class SpokenStream:
    """An engine that speaks a script in one session.

    Args:
        name: name for tables.
        engine: an engine with room for one more session.
        interrupt_every: mean seconds between interruptions; None for no interruptions. An interruption comes
            while a chunk is being made, and drops that chunk. The speech continues with new text, which
            leaves out the rest of the current sentence and the next sentence.
    """

    def __init__(self, name: str, engine: StreamCharEngine, interrupt_every: float | None = None) -> None:
        self.name, self._engine, self._interrupt_every = name, engine, interrupt_every

    def pieces(self, script: Script) -> Iterator[StreamPiece]:
        """Yield the chunks of the session."""
        words_said, dropped = 0, range(0)
        # Each word with the index of its sentence, without dropped words.
        words = [
            (index, word) for index, sentence in enumerate(script.sentences) for word in sentence.split()
        ]
        rng = random.Random(script.seed)
        every = self._interrupt_every
        with _open(self._engine, script, script.seed) as session:
            while words_said < len(words):
                left = script.seconds - session.next_sample / CLOCK.sample_rate
                if left <= 0:
                    return
                seconds = left if every is None else every * rng.uniform(0.5, 1.5)
                count = round(_FASTEST * (min(seconds, left) + _EXTRA_SECONDS))
                text = " ".join(word for _, word in words[words_said : words_said + count])
                speech = session.speak(text, max_seconds=left)
                chunks = speech if every is None else self._interrupted(session, speech, seconds, rng)
                for chunk in chunks:
                    yield replace(_piece(chunk), dropped=dropped)
                    dropped = range(0)
                words_said = session.interrupt().words
                if every is not None:
                    dropped = range(words_said, _new_text(words, words_said))
                    del words[dropped.start : dropped.stop]

    def _interrupted(
        self, session: Session, speech: Speech, seconds: float, rng: random.Random
    ) -> Iterator[Chunk]:
        """Yield ``seconds`` of chunks, then interrupt the session from another thread."""
        chunks = max(round(seconds / self._engine.preset.seconds), 1)
        for count, chunk in enumerate(speech, 1):
            yield chunk
            if count == chunks:
                # The next chunk starts now and is interrupted while it is denoised. It is then dropped, and
                # the exact moment does not affect what follows. If the machine has become faster, the chunk
                # may be finished before; then it is kept, as a player would keep it.
                delay = rng.uniform(*_DELAY) * chunk.latency["denoise"]
                interruption = threading.Timer(delay, session.interrupt)
                interruption.start()
                try:
                    yield from speech
                finally:
                    interruption.join()


class SentenceStream:
    """An engine that speaks every sentence of a script in its own session: the same text without history.

    The difference from :class:`SpokenStream` is what a long stream loses, whatever the text.

    Args:
        name: name for tables.
        engine: an engine with room for one more session.
    """

    def __init__(self, name: str, engine: StreamCharEngine) -> None:
        self.name, self._engine = name, engine

    def pieces(self, script: Script) -> Iterator[StreamPiece]:
        """Yield the chunks of one session after another."""
        start, first = 0.0, 0
        for index, sentence in enumerate(script.sentences):
            left = script.seconds - start
            if left <= 0:
                return
            with _open(self._engine, script, script.seed + index) as session:
                for count, chunk in enumerate(session.speak(sentence, max_seconds=left)):
                    yield replace(_piece(chunk, start, first), new_take=count == 0)
                start += session.next_sample / CLOCK.sample_rate
            first += len(sentence.split())


def _open(engine: StreamCharEngine, script: Script, seed: int) -> Session:
    picture = engine.preset.picture
    reference = as_input(reference_frame(script.identity, picture.height, picture.width))
    return engine.open(reference, seed=seed)


def _new_text(words: Sequence[tuple[int, str]], words_said: int) -> int:
    """Return the index of the first word after the next sentence; words come with their sentence's index."""
    sentence = words[words_said][0] if words_said < len(words) else 0
    later = (k for k in range(words_said, len(words)) if words[k][0] > sentence + 1)
    return next(later, len(words))


def _piece(chunk: Chunk, start: float = 0.0, first: int = 0) -> StreamPiece:
    """Return a chunk of a session that began ``start`` seconds and ``first`` words after the stream did."""
    return StreamPiece(
        chunk.host.audio.float().numpy(),
        chunk.host.video.numpy(),
        [(first + word.index, start + word.sample / CLOCK.sample_rate) for word in chunk.words],
        chunk.latency["total"],
    )
