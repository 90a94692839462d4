"""What one session has said, and where its clock stands."""

from collections import deque

from ..config import Preset
from ..text.transcript_window import TextWindow
from ..types import SpokenWord

#: Most words of a text that an :class:`~streamchar.types.Interruption` quotes.
QUOTED_WORDS = 1000


class Timeline:
    """The transcript window and the clock of one session.

    The executor advances it by one chunk at a time; the session reads it. It is all that the runtime knows of
    a session.

    Attributes:
        window: the part of the transcript that the model sees.
        next_sample: first audio sample of the next chunk, counted from the start of the session.
        said: words of the current text said so far, at most the last :data:`QUOTED_WORDS`.
        recent: words of all texts said so far, at most the last :data:`QUOTED_WORDS`.
        lost: whether a chunk failed after some of it was made. The decoders are then out of step with the
            clock, and no further chunk can be made.
    """

    def __init__(self, window: TextWindow, preset: Preset) -> None:
        self.window, self.next_sample, self.lost = window, 0, False
        self.said: deque[SpokenWord] = deque(maxlen=QUOTED_WORDS)
        self.recent: deque[SpokenWord] = deque(maxlen=QUOTED_WORDS)
        self._samples_per_token, self._samples_per_chunk = preset.clock.samples_per_frame, preset.samples

    def begin_text(self) -> None:
        """Forget the words of the text before."""
        self.said = deque(maxlen=QUOTED_WORDS)

    def advance(self, positions: list[float]) -> tuple[SpokenWord, ...]:
        """Advance window and clock by one chunk and return the words said in it.

        Args:
            positions: the pointer's position in the window, one per audio token.
        """
        words = []
        for token, position in enumerate(positions):
            for word in self.window.advance(position):
                sample = self.next_sample + (token + 1) * self._samples_per_token
                words.append(SpokenWord(word.index, word.text, sample))
        self.next_sample += self._samples_per_chunk
        self.recent.extend(words)
        self.said.extend(words)
        return tuple(words)
