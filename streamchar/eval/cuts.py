"""A stream of speech cut into segments that a recogniser can take, in the pauses between words."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .sources import SAMPLES_PER_FRAME
from .wer import Audio

#: Frames of a segment, at least and at most: 2 and 8 seconds, in which sentences end. Of longer segments the
#: recogniser got a generated stream wrong by more than of its sentences one by one, of these by as much.
SHORTEST, LONGEST = 48, 192
#: Frames that must be quiet together: a third of a second, a pause and not the closure before a plosive.
PAUSE = 8


@dataclass(frozen=True)
class Segment:
    """A stretch of a stream.

    Attributes:
        start: its first frame, counted from the start of the stream.
        audio: [frames * 1000] fp32, 24 kHz.
    """

    start: int
    audio: Audio


class Cutter:
    """Cut a stream at its quietest places, whatever is said; holds one segment at most."""

    def __init__(self) -> None:
        self._start = 0
        self._audio: Audio = np.zeros(0, np.float32)

    def add(self, audio: Audio) -> Iterator[Segment]:
        """Take in audio of whole frames and yield the segments that are complete.

        Args:
            audio: [frames * 1000] fp32.

        Raises:
            ValueError: a frame is incomplete.
        """
        if len(audio) % SAMPLES_PER_FRAME:
            raise ValueError(f"audio must be a multiple of {SAMPLES_PER_FRAME} samples, got {len(audio)}")
        self._audio = np.concatenate([self._audio, audio])
        while len(self._audio) >= LONGEST * SAMPLES_PER_FRAME:
            yield self._take(SHORTEST + quietest(self._audio, SHORTEST, LONGEST))

    def finish(self) -> Iterator[Segment]:
        """Yield what is left."""
        if len(self._audio):
            yield self._take(len(self._audio) // SAMPLES_PER_FRAME)

    def _take(self, frames: int) -> Segment:
        taken = Segment(self._start, self._audio[: frames * SAMPLES_PER_FRAME].copy())
        self._start, self._audio = self._start + frames, self._audio[frames * SAMPLES_PER_FRAME :]
        return taken


def quietest(audio: Audio, first: int, last: int) -> int:
    """Return the middle of the quietest :data:`PAUSE` frames between two frames, counted from the first."""
    frames = audio[first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
    energy = np.square(frames, dtype=np.float64).sum(1)
    together = np.convolve(energy, np.ones(PAUSE), "valid")
    return int(together.argmin()) + PAUSE // 2
