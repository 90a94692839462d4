"""A session: one character with one voice on one clock.

``for chunk in session.speak(text)`` yields chunks of picture and sound until the text is said; ``async for``
does the same. Text may be given whole or as an iterator of pieces, and pieces may arrive while the character
speaks. Both streams are stamped in samples from the start of the session.
"""

import threading
from collections.abc import AsyncIterable, Iterable

from ..errors import ArgumentError, SessionClosedError, StreamCharError
from ..text.feed import TextFeed
from ..text.normalize import check_text
from ..types import Interruption, SpokenWord
from .channel import Channel
from .pacer import Pacer
from .speech import Speech

__all__ = ["Session", "SessionBusyError", "SessionClosedError", "SessionReentryError"]


class SessionBusyError(StreamCharError, RuntimeError):
    """The session is speaking; exhaust or interrupt the current speech first."""


class SessionReentryError(StreamCharError, RuntimeError):
    """A call that waits for a chunk was made in the thread that makes the chunk."""


class Session:
    """One character that speaks; made by :meth:`streamchar.StreamCharEngine.open`.

    Attributes:
        row: index of the engine's row that holds the session's state.
        seed: seed of its noise.
        pacer: holds generation back; None to make chunks as fast as they are requested.
    """

    def __init__(self, channel: Channel, seed: int) -> None:
        self.row, self.seed = channel.row, seed
        self.pacer: Pacer | None = channel.pacer
        self._channel = channel
        self._speech: Speech | None = None
        self._interruption: Interruption | None = None
        # Held while a speech begins or is interrupted. Reentrant: an iterable of text may interrupt when it
        # is asked for its iterator.
        self._changing_speech = threading.RLock()

    @property
    def next_sample(self) -> int:
        """First audio sample of the next chunk, counted from the start of the session."""
        return self._channel.timeline.next_sample

    def speak(
        self, text: str | Iterable[str] | AsyncIterable[str], *, max_seconds: float | None = None
    ) -> Speech:
        """Say a text; iterate over the result for its chunks.

        Args:
            text: the whole text, or pieces as they arrive. Pieces are read in a separate thread from the
                first chunk on. Each chunk is made from the text that has arrived; speech waits for more only
                when all of it is said. An asynchronous iterator runs in the caller's event loop.
            max_seconds: end with the chunk that reaches this much media; by default 4 seconds plus 1 per word
                and 0.15 per token, which speech never needs.

        Raises:
            TextError: the text is empty, too long, or cannot be spoken; nothing has been said.
            TypeError: ``text`` is neither a string nor an iterable of strings.
            ValueError: ``max_seconds`` is not above 0.
            SessionClosedError: the session is closed or lost a chunk.
            SessionBusyError: an earlier text is still being said.
        """
        channel, window = self._channel, self._channel.timeline.window
        channel.require_open()
        if max_seconds is not None and not max_seconds > 0:
            raise ArgumentError("max_seconds", "above 0, or None", max_seconds)
        with self._changing_speech:
            if self._speech is not None and not self._speech.ended:
                raise SessionBusyError(
                    "speak() must wait until the text before it ends; call interrupt() to cut it"
                )
            feed = None
            if isinstance(text, str):
                text = check_text(text, window.tokenizer.script)
                try:
                    window.append(text)
                    window.finish()
                except BaseException:
                    window.discard_unspoken()
                    raise
            else:
                feed = TextFeed(text)
            channel.timeline.begin_text()
            self._speech = Speech(channel, feed, max_seconds)
            # Last: a text that is refused is not a speech, and the figures of the interruption stay.
            self._interruption = None
            return self._speech

    def interrupt(self) -> Interruption:
        """Stop speaking within one denoising step and report what was said.

        The chunk being made is dropped, unless all its steps are done: then it is finished and counts. What
        the character looks and sounds like stays. Called again before the next :meth:`speak` it returns the
        same report and changes nothing. A :meth:`speak` from another thread waits until it returns.

        Raises:
            SessionClosedError: the session is closed or lost a chunk.
            SessionReentryError: called in the thread that makes the chunk, as by a signal handler, which
                would wait for itself.
        """
        self._channel.require_open()
        if self._speech is not None and self._speech.made_by == threading.get_ident():
            raise SessionReentryError(
                "interrupt() must not run in the thread that makes the chunk, got a signal handler there; "
                "let the handler start a thread or set a flag"
            )
        with self._changing_speech:
            if self._interruption is None:
                self._interruption = self._cut_speech()
            return self._interruption

    def close(self) -> None:
        """Free everything that the session holds; a second call does nothing."""
        if self._speech is not None:
            self._speech.interrupt()
        self._channel.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_speech(self) -> Interruption:
        timeline = self._channel.timeline
        said: list[SpokenWord] = []
        if self._speech is not None:
            self._speech.interrupt()
            self._speech.settle()
            said = list(timeline.said)
        words, sample = timeline.window.discard_unspoken(), timeline.next_sample
        played_words, played_sample = words, sample
        played = self._channel.cut_playback()
        if played is not None:
            played_sample = played
            played_words -= sum(word.sample > played for word in timeline.recent)
        return Interruption(words, " ".join(word.text for word in said), sample, played_words, played_sample)
