"""Split a stream of speech in its pauses, into segments short enough for a recogniser."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...config import CLOCK
from ..arrays import Audio

#: Least and most frames of a segment: 2 and 8 seconds, enough for sentences to end. With longer segments the
#: recogniser made more mistakes on a generated stream than on its separate sentences; with these it does not.
SHORTEST, LONGEST = 48, 192
#: Frames over which energy is summed to find a pause: a third of a second, longer than a plosive's closure.
PAUSE = 8


@dataclass(frozen=True)
class Segment:
    """A part of a stream.

    Attributes:
        start: its first frame, counted from the start of the stream.
        audio: [frames * 1000] fp32, 24 kHz.
    """

    start: int
    audio: Audio


class Segmenter:
    """Split a stream at its quietest places, whatever is said; stores at most one segment."""

    def __init__(self) -> None:
        self._start = 0
        self._audio: Audio = np.zeros(0, np.float32)

    def add(self, audio: Audio) -> Iterator[Segment]:
        """Add audio and yield the segments that are complete.

        Args:
            audio: [frames * 1000] fp32.

        Raises:
            ValueError: the last frame is incomplete.
        """
        samples = CLOCK.samples_per_frame
        if len(audio) % samples:
            raise ValueError(f"length of audio must be a multiple of {samples} samples, got {len(audio)}")
        self._audio = np.concatenate([self._audio, audio])
        while len(self._audio) >= LONGEST * samples:
            yield self._take(SHORTEST + quietest(self._audio, SHORTEST, LONGEST))

    def finish(self) -> Iterator[Segment]:
        """Yield the rest of the stream, if any."""
        if len(self._audio):
            yield self._take(len(self._audio) // CLOCK.samples_per_frame)

    def _take(self, frames: int) -> Segment:
        samples = frames * CLOCK.samples_per_frame
        taken = Segment(self._start, self._audio[:samples].copy())
        self._start, self._audio = self._start + frames, self._audio[samples:]
        return taken


def quietest(audio: Audio, first: int, last: int) -> int:
    """Return the middle of the quietest :data:`PAUSE` frames between two frames, relative to the first."""
    samples = CLOCK.samples_per_frame
    frames = audio[first * samples : last * samples].reshape(-1, samples)
    energy = np.square(frames, dtype=np.float64).sum(1)
    summed = np.convolve(energy, np.ones(PAUSE), "valid")
    return int(summed.argmin()) + PAUSE // 2
