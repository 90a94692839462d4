"""Read the pieces of a text in a thread of their own while the text is spoken.

An iterator of pieces may be slow, for example a language model. Speech must not wait for it while there is
text left to speak, and an interruption must not wait for it at all.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Future

from ..errors import ArgumentTypeError

#: Number of pieces read ahead of their use.
READ_AHEAD = 64


class TextFeed:
    """Read the pieces of a text as they arrive, at most :data:`READ_AHEAD` ahead of their use.

    Args:
        pieces: the pieces of text. An async iterator runs in the caller's event loop; then :meth:`take` must
            not be called in the thread of that loop.

    Raises:
        ArgumentTypeError: ``pieces`` is not an iterable of text, or is an async iterable outside a running
            event loop.
    """

    def __init__(self, pieces: Iterable[str] | AsyncIterable[str]) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: Future[str] | None = None
        if isinstance(pieces, (bytes, bytearray)) or not isinstance(pieces, (Iterable, AsyncIterable)):
            kind = type(pieces).__name__
            raise ArgumentTypeError(f"text must be str, or an iterable or async iterable of str, got {kind}")
        if isinstance(pieces, AsyncIterable):
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                raise ArgumentTypeError(
                    "text must be str or an iterable outside a running event loop, got an async iterable; "
                    "call speak() in a coroutine"
                ) from None
            self._pieces = self._from_loop(aiter(pieces), self._loop)
        else:
            self._pieces = iter(pieces)
        self._changed = threading.Condition()
        self._ready: deque[str] = deque()
        self._started = self._ended = self._stopped = False
        self._error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether every piece has been taken, or :meth:`stop` was called."""
        with self._changed:
            return self._stopped or (self._ended and not self._ready and self._error is None)

    def take(self, timeout: float | None) -> str | None:
        """Return the next piece, or None when none arrived in time or none is left.

        Args:
            timeout: seconds to wait; None waits until a piece arrives, the text ends or :meth:`stop` is
                called.

        Raises:
            ArgumentTypeError: the piece is not a str.
            RuntimeError: called in the thread of the event loop that has to deliver the piece.
            BaseException: any error of the iterator, after the pieces before it have been taken.
        """
        if self._loop is not None and _running_loop() is self._loop:
            raise RuntimeError("text from an async iterator must be spoken with 'async for', got 'for'")
        with self._changed:
            if not self._started:
                self._started = True
                threading.Thread(target=self._read, name="streamchar-text", daemon=True).start()
            self._changed.wait_for(lambda: self._ready or self._ended or self._stopped, timeout)
            if self._ready:
                self._changed.notify_all()
                piece = self._ready.popleft()
                if not isinstance(piece, str):
                    raise ArgumentTypeError(f"pieces of text must be str, got {type(piece).__name__}")
                return piece
            if self._error is not None and not self._stopped:
                raise self._error
            return None

    def stop(self) -> None:
        """Stop reading. A piece that arrives later is dropped. Never blocks."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
            if self._pending is not None:
                self._pending.cancel()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            while self._wait_for_room():
                piece = next(self._pieces)
                with self._changed:
                    self._ready.append(piece)
                    self._changed.notify_all()
        except StopIteration:
            pass
        # take() raises it in the thread of the caller.
        except BaseException as raised:
            error = raised
        with self._changed:
            self._error, self._ended = error, True
            if self._stopped:
                self._ready.clear()
            self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until another piece may be read; return False when the feed was stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < READ_AHEAD)
            return not self._stopped

    def _from_loop(self, pieces: AsyncIterator[str], loop: asyncio.AbstractEventLoop) -> Iterator[str]:
        """Iterate over an async iterator from outside its event loop."""
        while True:
            with self._changed:
                if self._stopped:
                    return
                self._pending = asyncio.run_coroutine_threadsafe(_next(pieces), loop)
            try:
                yield self._pending.result()
            except StopAsyncIteration:
                return


async def _next(pieces: AsyncIterator[str]) -> str:
    return await anext(pieces)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
