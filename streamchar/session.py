"""A session: one character, one voice, one clock, for as long as its user likes.

``for chunk in session.speak(text)`` yields chunks of picture and sound until the text is said; ``async for``
does the same. Text may be given whole or as an iterator of pieces, and pieces may arrive while the character
speaks. Both streams are stamped in samples from the start of the session.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .pacing import Pacer
from .reader import TextReader
from .text import check_text
from .window import TextWindow

if TYPE_CHECKING:
    from .engine import StreamCharEngine
    from .passes import Delivery

#: Said of a session whose decoders stopped half way.
LOST = "the session must be whole, got one that lost a chunk; close it, open another"
#: A pointer that does not move must not keep a session speaking for ever: seconds for a text, for a word, and
#: for a token, of which a number in digits has as many as the words that it is read as.
PATIENCE_SECONDS, PATIENCE_PER_WORD, PATIENCE_PER_TOKEN = 4.0, 1.0, 0.15
#: Tokens of the last word that may be unsaid when a speech ends: it fades within its last one.
LAST_SOUND = 0.5
#: Seconds without a piece of text after which a chunk is made of what has come; iterators that do not wait
#: for anything fill the window, and give the media that the whole text gives.
PAUSE = 0.01
#: Words that an :class:`Interruption` quotes at most.
QUOTED = 1000


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

    What was delivered may lie in a player's buffer: a session with a pacer knows how much of it was played.

    Attributes:
        words: how many words of the session.
        text: those of the current text, joined by spaces, the last :data:`QUOTED` at most.
        sample: the first sample that was not delivered.
        played_words: how many words of the session had been played; ``words`` without a pacer.
        played_sample: the first sample that had not been played; ``sample`` without a pacer. What was never
            handed over was not played.
    """

    words: int
    text: str
    sample: int
    played_words: int
    played_sample: int


@dataclass(eq=False)
class Turn:
    """One request for one chunk, filled in by the engine.

    Attributes:
        session: whose chunk it is.
        window: of its transcript.
        interrupted: whether the chunk is not wanted any more.
        asked: whether the engine was told.
        done: whether it has been served.
        released: set once no pass reads or writes anything of the session for it.
        delivery: the chunk on its way.
        chunk: the chunk.
        error: why there is none.
    """

    session: "Session"
    window: TextWindow
    interrupted: bool = False
    asked: bool = False
    done: bool = False
    released: threading.Event = field(default_factory=threading.Event)
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
        self._interruption: Interruption | None = None
        # Held while a speech begins or is interrupted; again where an iterable of text interrupts, asked for
        # its iterator.
        self._turning = threading.RLock()
        # The last words of all speeches, and samples handed over: what may lie in a player's buffer.
        self._words: deque[SpokenWord] = deque(maxlen=QUOTED)
        self._delivered, self._handing_over = 0, threading.Lock()
        self._closed = self._failed = False

    def speak(
        self, text: str | Iterable[str] | AsyncIterable[str], *, max_seconds: float | None = None
    ) -> "Speech":
        """Say a text; iterate over the result for its chunks.

        Args:
            text: whole, or pieces as they arrive. Pieces are read in a thread of their own from the first
                chunk on, and each chunk is made of what has come; speech waits for them only where all is
                said. An asynchronous iterator runs in the caller's event loop.
            max_seconds: end with the chunk that reaches so much media; by default 4 seconds, 1 for each word
                and 0.15 for each token, which speech does not need.

        Raises:
            TextError: the text is empty, too long, or holds what cannot be spoken; nothing has been said.
            TypeError: it is no text, and no iterable of text.
            ValueError: ``max_seconds`` is not above 0.
            SessionClosedError: after :meth:`close`.
            SessionBusyError: an earlier text is still being said.
        """
        self._require_open()
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0, or None, got {max_seconds}")
        with self._turning:
            if self._speech is not None and not self._speech.ended:
                raise SessionBusyError(
                    "speak() must wait until the text before it ends; call interrupt() to cut it"
                )
            if isinstance(text, str):
                self._take_in(check_text(text, self._engine.tokenizer.script))
                self._speech = Speech(self, None, max_seconds)
            else:
                self._speech = Speech(self, TextReader(text), max_seconds)
            # Last: what was refused is no speech, and its figures stay.
            self._interruption = None
            return self._speech

    def interrupt(self) -> Interruption:
        """Stop speaking, within one step of its chunk, and say what had been spoken.

        The chunk being made is dropped, unless all its steps are done: then it is finished and counts. What
        the character looks and sounds like stays. Called again before the next :meth:`speak` it reports the
        same figures and changes nothing. From another thread, the next text waits until it returns.

        Raises:
            SessionClosedError: after :meth:`close`.
            RuntimeError: called in the thread that makes the chunk, by a signal handler, which would wait for
                itself.
        """
        self._require_open()
        if self._speech is not None and self._speech.made_by == threading.get_ident():
            raise RuntimeError(
                "interrupt() must not run in the thread that makes the chunk, got a signal handler there; "
                "let the handler start a thread or set a flag"
            )
        with self._turning:
            if self._interruption is None:
                self._interruption = self._interrupt()
            return self._interruption

    def _interrupt(self) -> Interruption:
        said: list[SpokenWord] = []
        if self._speech is not None:
            self._speech.interrupt()
            self._speech.settle()
            said = list(self._speech.said)
        words, sample = self._window.cut(), self.next_sample
        played_words, played = words, sample
        if self.pacer is not None:
            with self._handing_over:
                played = self._delivered - round(self.pacer.lead * self._engine.preset.clock.sample_rate)
                self.pacer.restart()
            played_words -= sum(word.sample > played for word in self._words)
        return Interruption(words, " ".join(word.text for word in said), sample, played_words, played)

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
        self._words.extend(words)
        if self._speech is not None:
            self._speech.said.extend(words)
        return tuple(words)

    def hand_over(self, chunk: Chunk) -> None:
        """Take note that a chunk is handed to its user, whose player plays it; called by :class:`Speech`."""
        with self._handing_over:
            self._delivered = chunk.start_sample + self._engine.preset.samples
            if self.pacer is not None:
                self.pacer.delivered(self._engine.preset.seconds)

    def fail(self) -> None:
        """Mark the session as unable to go on; called by the engine when a chunk broke off half way."""
        self._failed = True

    def _take_in(self, text: str) -> None:
        """Append a whole text to the window, or nothing where some of it cannot be spoken."""
        try:
            self._window.append(text)
            self._window.finish()
        except BaseException:
            self._window.cut()
            raise

    def _require_open(self) -> None:
        if self._failed:
            raise SessionClosedError(LOST)
        if self._closed:
            raise SessionClosedError("the session must be open, got a closed one; open another")


class Speech(Iterator[Chunk], AsyncIterator[Chunk]):
    """The chunks of one text, made as they are asked for.

    Attributes:
        ended: whether no chunk will follow.
        said: words of this text said so far, the last :data:`QUOTED` of them.
        made_by: ident of the thread that makes a chunk, None while none does.
    """

    def __init__(self, session: Session, reader: TextReader | None, max_seconds: float | None) -> None:
        self.ended = False
        self.made_by: int | None = None
        self.said: deque[SpokenWord] = deque(maxlen=QUOTED)
        self._session, self._reader, self._max_seconds = session, reader, max_seconds
        self._turn: Turn | None = None
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._under_way: asyncio.Future[Chunk] | None = None
        self._chunks, self._words_before = 0, session._window.spoken
        self._tokens_before = session._window.reached

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
        self._take_pieces()
        with self._lock:
            if self.ended or self._over():
                self.ended = True
                raise StopIteration
            self._turn = turn = Turn(session, session._window)
        if session.pacer is not None:
            session.pacer.wait(self._cancelled)
        self.made_by = threading.get_ident()
        try:
            session._engine.make_chunk(turn)
        finally:
            self.made_by = None
        with self._lock:
            self._turn = None
            if turn.error is not None:
                self._give_up()
                raise turn.error
            if turn.chunk is None:
                self.ended = True
                raise StopIteration
        session.hand_over(turn.chunk)
        self._chunks += 1
        return turn.chunk

    async def __anext__(self) -> Chunk:
        """Make the next chunk in a thread, so that the event loop stays free.

        Where the wait for it is cancelled the chunk is not lost: the next call gives it.
        """
        if self._under_way is None or self._under_way.cancelled():
            loop, threads = asyncio.get_running_loop(), self._session._engine.threads
            self._under_way = loop.run_in_executor(threads, self._next_or_raise)
            # Nobody may ask again, and that is no error.
            self._under_way.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            chunk = await asyncio.shield(self._under_way)
        except asyncio.CancelledError:
            raise
        except _EndOfSpeechError:
            self._under_way = None
            raise StopAsyncIteration from None
        except BaseException:
            self._under_way = None
            raise
        self._under_way = None
        return chunk

    def interrupt(self) -> None:
        """End the speech, dropping the chunk being made; does not wait for that."""
        with self._lock:
            self.ended = True
            if self._turn is not None:
                self._session._engine.withdraw(self._turn)
        if self._reader is not None:
            self._reader.stop()
        self._cancelled.set()

    def settle(self) -> None:
        """Return once no chunk of an interrupted speech is being denoised."""
        with self._lock:
            turn = self._turn
        if turn is not None:
            turn.released.wait()

    def _next_or_raise(self) -> Chunk:
        # StopIteration cannot leave a thread's future.
        try:
            return next(self)
        except StopIteration:
            raise _EndOfSpeechError from None

    def _take_pieces(self) -> None:
        """Take in the text that has come, as far as the window holds it; wait where all of it is said."""
        window, reader = self._session._window, self._reader
        try:
            while reader is not None and window.remaining < window.capacity:
                piece = reader.take(None if self._silent() else PAUSE)
                # After an interruption while the reader waited the window is not this speech's any more.
                with self._lock:
                    if self.ended:
                        return
                    if piece is not None:
                        window.append(piece)
                    elif reader.over:
                        window.finish()
                        self._reader = reader = None
                    else:
                        return
        except BaseException:
            with self._lock:
                self._give_up()
            raise

    def _give_up(self) -> None:
        """Drop the rest of the text, but not that of a speech which came after an interruption."""
        if not self.ended:
            self.ended = True
            self._session._window.cut()
        if self._reader is not None:
            self._reader.stop()

    def _silent(self) -> bool:
        """Whether all that has come is said, to its last sound."""
        window = self._session._window
        return window.exhausted and window.remaining < LAST_SOUND

    def _over(self) -> bool:
        window, preset, limit = self._session._window, self._session._engine.preset, self._max_seconds
        if limit is None:
            words = window.spoken + window.waiting - self._words_before
            tokens = window.reached + window.remaining - self._tokens_before
            limit = PATIENCE_SECONDS + PATIENCE_PER_WORD * words + PATIENCE_PER_TOKEN * tokens
        # Counted in samples: sums of a chunk's seconds fall short of the limit that they should reach.
        if self._chunks * preset.samples >= limit * preset.clock.sample_rate:
            self._give_up()
            return True
        return self._silent() and self._reader is None


class _EndOfSpeechError(Exception):
    """Carries the end of an iteration out of a thread."""
