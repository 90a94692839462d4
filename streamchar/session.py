"""A session: one character, one voice, one clock, for as long as its user likes.

``for chunk in session.speak(text)`` yields chunks of picture and sound until the text is said; ``async for``
does the same. Text may be given whole or as an iterator of pieces, and pieces may arrive while the character
speaks. Both streams are stamped in samples from the start of the session.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .pacing import Pacer
from .text import TextWindow, check_text

if TYPE_CHECKING:
    from .engine import StreamCharEngine
    from .passes import Delivery

#: Said of a session whose decoders stopped half way.
LOST = "the session must be whole, got one that lost a chunk; close it, open another"
#: A pointer that does not move must not keep a session speaking for ever: seconds for a text, and for a word.
PATIENCE_SECONDS, PATIENCE_PER_WORD = 4.0, 1.0
#: Tokens of the last word that may be unsaid when a speech ends: it fades within its last one.
LAST_SOUND = 0.5


class SessionClosedError(RuntimeError):
    """The session was closed; open another."""


class SessionBusyError(RuntimeError):
    """The session is speaking; exhaust or interrupt what it says first."""


@dataclass(frozen=True)
class SpokenWord:
    """A word and when it was said.

    Attributes:
        index: number of the word in its session, from 0.
        text: the word with its punctuation.
        sample: where on the session's clock it was recognised as said, in audio samples.
    """

    index: int
    text: str
    sample: int


@dataclass(frozen=True)
class Media:
    """Picture and sound of a chunk in one place; see :class:`Chunk`."""

    video: torch.Tensor
    video_yuv: torch.Tensor
    audio: torch.Tensor


@dataclass(frozen=True)
class Chunk:
    """A chunk of media, on the engine's device.

    Attributes:
        index: number of the chunk in its session.
        start_sample: of both streams, from the start of the session.
        video: [frames, height, width, 3] uint8, RGB.
        video_yuv: [frames, height * 3 / 2, width] uint8, the same as planar YUV 4:2:0 for encoders.
        audio: [samples] fp32.
        host: the same three in the host's memory, pinned where there is a GPU; on a CPU they are the same.
        words: said in this chunk.
        latency: seconds of each stage, ``"commit"`` that of the chunk before, and in ``"total"`` those from
            the beginning of the pass until the host had the chunk; stages may overlap.

    Tensors export through DLPack without a copy.
    """

    index: int
    start_sample: int
    video: torch.Tensor
    video_yuv: torch.Tensor
    audio: torch.Tensor
    host: Media
    words: tuple[SpokenWord, ...]
    latency: dict[str, float]


@dataclass(frozen=True)
class Interruption:
    """What had been said when a session was interrupted.

    Attributes:
        words: how many words of the session.
        text: those of the current text, joined by spaces.
        sample: the first sample that was not delivered.
    """

    words: int
    text: str
    sample: int


@dataclass(eq=False)
class Turn:
    """One request for one chunk, filled in by the engine."""

    session: "Session"
    window: TextWindow
    interrupted: bool = False
    done: bool = False
    delivery: "Delivery | None" = None
    chunk: Chunk | None = None
    error: BaseException | None = None

    def lose(self, error: BaseException) -> None:
        """Give the chunk up when some of it was made: its session cannot go on."""
        self.session.fail()
        self.delivery = None
        # Ctrl-C is raised where it was pressed, not in the threads of the sessions that it hit.
        self.error = error if isinstance(error, Exception) else SessionClosedError(LOST)


class Session:
    """Made by :meth:`StreamCharEngine.open`.

    Attributes:
        row: the engine's row that holds its state.
        seed: of its noise.
        pacer: what holds generation back, None to make chunks as fast as they are asked for.
        next_sample: first sample of the chunk to come.
    """

    def __init__(self, engine: "StreamCharEngine", row: int, seed: int, pacer: Pacer | None = None) -> None:
        self.row, self.seed, self.pacer, self.next_sample = row, seed, pacer, 0
        self._engine = engine
        self._window = TextWindow(engine.tokenizer, engine.preset.orchestrator.transcript_tokens)
        self._speech: Speech | None = None
        self._closed = self._failed = False

    def speak(self, text: str | Iterable[str], *, max_seconds: float | None = None) -> "Speech":
        """Say a text; iterate over the result for its chunks.

        Args:
            text: whole, or pieces as they arrive; a piece is taken before each chunk, and all of them before
                the text can end.
            max_seconds: end after this much media at the latest; by default 4 seconds and one for each word,
                which speech does not need.

        Raises:
            TextError: the text is empty, too long, or holds what cannot be spoken; nothing has been said.
            SessionClosedError: after :meth:`close`.
            SessionBusyError: an earlier text is still being said.
        """
        self._require_open()
        if self._speech is not None and not self._speech.ended:
            raise SessionBusyError(
                "speak() must wait until the text before it ends; call interrupt() to cut it"
            )
        if isinstance(text, str):
            text = iter((check_text(text, self._engine.tokenizer.script),))
        self._speech = Speech(self, iter(text), max_seconds)
        return self._speech

    def interrupt(self) -> Interruption:
        """Stop speaking, within one denoising step, and say what had been spoken.

        The chunk being made is dropped; what the character looks and sounds like stays. Without speech in
        progress it reports the same figures and changes nothing.

        Raises:
            SessionClosedError: after :meth:`close`.
        """
        self._require_open()
        if self._speech is not None:
            self._speech.interrupt()
        # A chunk past its last denoising step is finished and delivered; the figures count it.
        self._engine.wait()
        if self.pacer is not None:
            self.pacer.restart()
        said = self._speech.said if self._speech is not None else []
        return Interruption(self._window.cut(), " ".join(said), self.next_sample)

    def close(self) -> None:
        """Free everything that the session holds; calling it again does nothing."""
        if not self._closed:
            if self._speech is not None:
                self._speech.interrupt()
            self._closed = True
            self._engine.release(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def note_positions(self, turn: Turn, positions: list[float]) -> tuple[SpokenWord, ...]:
        """Advance transcript and clock by one chunk; called by the engine, positions one an audio token."""
        samples = self._engine.preset.clock.samples_per_frame
        words = []
        for token, position in enumerate(positions):
            for word in turn.window.slide(position):
                words.append(SpokenWord(word.index, word.text, self.next_sample + (token + 1) * samples))
        self.next_sample += self._engine.preset.samples
        if self._speech is not None:
            self._speech.said += [word.text for word in words]
        return tuple(words)

    def fail(self) -> None:
        """Mark the session as unable to go on; called by the engine when a chunk broke off half way."""
        self._failed = True

    def _require_open(self) -> None:
        if self._failed:
            raise SessionClosedError(LOST)
        if self._closed:
            raise SessionClosedError("the session must be open, got a closed one; open another")


class Speech(Iterator[Chunk], AsyncIterator[Chunk]):
    """The chunks of one text, made as they are asked for.

    Attributes:
        ended: whether no chunk will follow.
        said: words of this text said so far.
    """

    def __init__(self, session: Session, pieces: Iterator[str], max_seconds: float | None) -> None:
        self.ended = False
        self._session, self._pieces, self._max_seconds = session, pieces, max_seconds
        self._open = True
        self._turn: Turn | None = None
        self._lock = threading.Lock()
        self.said: list[str] = []
        self._seconds, self._words = 0.0, 0
        self._take_piece()

    def __iter__(self) -> "Speech":
        return self

    def __aiter__(self) -> "Speech":
        return self

    def __next__(self) -> Chunk:
        """Make the next chunk.

        Raises:
            TextError: a piece of the text cannot be spoken; the speech ends.
            Exception: whatever the iterator of pieces raises; the speech ends, the session stays usable.
        """
        session = self._session
        session._require_open()
        self._take_piece()
        while self._open and session._window.exhausted:
            self._take_piece()
        with self._lock:
            if self.ended or self._over():
                self.ended = True
                raise StopIteration
            self._turn = turn = Turn(session, session._window)
        if session.pacer is not None:
            session.pacer.wait()
        session._engine.make_chunk(turn)
        with self._lock:
            self._turn = None
            if turn.error is not None:
                self.ended = True
                raise turn.error
            if turn.chunk is None:
                self.ended = True
                raise StopIteration
        seconds = session._engine.preset.seconds
        if session.pacer is not None:
            session.pacer.delivered(seconds)
        self._seconds += seconds
        return turn.chunk

    async def __anext__(self) -> Chunk:
        """Make the next chunk in a thread, so that the event loop stays free."""
        try:
            return await asyncio.to_thread(self._next_or_raise)
        except _EndOfSpeechError:
            raise StopAsyncIteration from None

    def interrupt(self) -> None:
        """End the speech, dropping the chunk being made."""
        with self._lock:
            self.ended, self._open = True, False
            if self._turn is not None:
                self._turn.interrupted = True

    def _next_or_raise(self) -> Chunk:
        # StopIteration cannot leave a thread's future.
        try:
            return next(self)
        except StopIteration:
            raise _EndOfSpeechError from None

    def _take_piece(self) -> None:
        if not self._open:
            return
        window = self._session._window
        try:
            piece = next(self._pieces)
            window.append(piece)
            self._words += len(piece.split())
        except StopIteration:
            self._open = False
            window.finish()
        except BaseException:
            self.ended, self._open = True, False
            raise

    def _over(self) -> bool:
        limit = self._max_seconds
        if limit is None:
            limit = PATIENCE_SECONDS + PATIENCE_PER_WORD * self._words
        if self._seconds >= limit:
            self._session._window.cut()
            return True
        window = self._session._window
        return window.exhausted and not self._open and window.remaining < LAST_SOUND


class _EndOfSpeechError(Exception):
    """Carries the end of an iteration out of a thread."""
