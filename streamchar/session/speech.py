"""The chunks of one text, made as they are requested."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

from ..runtime.request import ChunkRequest
from ..text.feed import TextFeed
from ..types import Chunk
from .channel import Channel

#: Seconds allowed for a text, for each word and for each token, so that a pointer that does not move cannot
#: keep a session speaking for ever. A number in digits has as many tokens as the words it is read as.
PATIENCE_SECONDS, PATIENCE_PER_WORD, PATIENCE_PER_TOKEN = 4.0, 1.0, 0.15
#: Tokens of the last word that may be unsaid when a speech ends: the word fades within its last token.
LAST_SOUND_TOKENS = 0.5
#: Seconds without a piece of text after which a chunk is made from what has arrived. Iterators that never
#: wait fill the window within it, and so give the media that the whole text gives.
PAUSE_SECONDS = 0.01


class Speech(Iterator[Chunk], AsyncIterator[Chunk]):
    """The chunks of one text; made by :meth:`Session.speak`.

    Attributes:
        ended: whether no chunk will follow.
        made_by: ident of the thread that is making a chunk; None while none is made.
    """

    def __init__(self, channel: Channel, feed: TextFeed | None, max_seconds: float | None) -> None:
        self.ended = False
        self.made_by: int | None = None
        self._channel, self._feed, self._max_seconds = channel, feed, max_seconds
        self._window = channel.timeline.window
        self._request: ChunkRequest | None = None
        # Guards `ended`, `_request` and the window against an interruption from another thread.
        self._lock = threading.Lock()
        self._interrupted = threading.Event()
        self._next_chunk: asyncio.Future[Chunk] | None = None
        self._chunks_made = 0
        self._words_before, self._tokens_before = self._window.words_spoken, self._window.tokens_reached

    def __iter__(self) -> "Speech":
        return self

    def __aiter__(self) -> "Speech":
        return self

    def __next__(self) -> Chunk:
        """Make the next chunk.

        Raises:
            TextError: a piece of the text cannot be spoken; the speech ends.
            SessionClosedError: the session is closed or lost a chunk.
            Exception: whatever the iterator of pieces raises; the speech ends, the session stays usable.
        """
        channel = self._channel
        channel.require_open()
        self._take_pieces()
        with self._lock:
            if self.ended or self._finished():
                self.ended = True
                raise StopIteration
            self._request = request = channel.request()
        if channel.pacer is not None:
            channel.pacer.wait(self._interrupted)
        self.made_by = threading.get_ident()
        try:
            channel.scheduler.submit(request)
        finally:
            self.made_by = None
        with self._lock:
            self._request = None
            if request.error is not None:
                self._give_up()
                raise request.error
            if request.chunk is None:
                self.ended = True
                raise StopIteration
        channel.hand_over(request.chunk)
        self._chunks_made += 1
        return request.chunk

    async def __anext__(self) -> Chunk:
        """Make the next chunk in a thread, so that the event loop stays free.

        If the wait is cancelled the chunk is not lost: the next call returns it.
        """
        if self._next_chunk is None or self._next_chunk.cancelled():
            loop = asyncio.get_running_loop()
            self._next_chunk = loop.run_in_executor(self._channel.threads, self._next_or_raise)
            # Retrieve the exception: it is no error if nobody asks for the chunk again.
            self._next_chunk.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            chunk = await asyncio.shield(self._next_chunk)
        except asyncio.CancelledError:
            raise
        except _EndOfSpeechError:
            self._next_chunk = None
            raise StopAsyncIteration from None
        except BaseException:
            self._next_chunk = None
            raise
        self._next_chunk = None
        return chunk

    def interrupt(self) -> None:
        """End the speech and drop the chunk being made; does not wait for it."""
        with self._lock:
            self.ended = True
            if self._request is not None:
                self._channel.scheduler.withdraw(self._request)
        if self._feed is not None:
            self._feed.stop()
        self._interrupted.set()

    def settle(self) -> None:
        """Wait until no pass works for this speech; call it after :meth:`interrupt`."""
        with self._lock:
            request = self._request
        if request is not None:
            request.released.wait()

    def _next_or_raise(self) -> Chunk:
        # A future cannot carry StopIteration.
        try:
            return next(self)
        except StopIteration:
            raise _EndOfSpeechError from None

    def _take_pieces(self) -> None:
        """Move arrived text into the window while it has room; wait for text if all of it is said."""
        window, feed = self._window, self._feed
        try:
            while feed is not None and window.tokens_remaining < window.capacity:
                piece = feed.take(None if self._silent() else PAUSE_SECONDS)
                # If the speech was interrupted during the wait, the window is not this speech's any more.
                with self._lock:
                    if self.ended:
                        return
                    if piece is not None:
                        window.append(piece)
                    elif feed.over:
                        window.finish()
                        self._feed = feed = None
                    else:
                        return
        except BaseException:
            with self._lock:
                self._give_up()
            raise

    def _give_up(self) -> None:
        """Drop the rest of the text, but not the text of a later speech."""
        if not self.ended:
            self.ended = True
            self._window.discard_unspoken()
        if self._feed is not None:
            self._feed.stop()

    def _silent(self) -> bool:
        """Whether all the text that has arrived is said, to its last sound."""
        return self._window.exhausted and self._window.tokens_remaining < LAST_SOUND_TOKENS

    def _finished(self) -> bool:
        window, preset, limit = self._window, self._channel.preset, self._max_seconds
        if limit is None:
            words = window.words_spoken + window.words_waiting - self._words_before
            tokens = window.tokens_reached + window.tokens_remaining - self._tokens_before
            limit = PATIENCE_SECONDS + PATIENCE_PER_WORD * words + PATIENCE_PER_TOKEN * tokens
        # Counted in samples: a sum of chunk durations in seconds would fall short of the limit by rounding.
        if self._chunks_made * preset.samples >= limit * preset.clock.sample_rate:
            self._give_up()
            return True
        return self._silent() and self._feed is None


class _EndOfSpeechError(Exception):
    """Carries the end of an iteration out of a thread."""
