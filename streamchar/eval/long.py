"""Long evaluation: streams of minutes, scored as they come and minute by minute, nothing of them kept.

Media are scored and dropped, segment by segment; what stays of a stream are a few numbers a frame and the
words heard. Place in the text, words and lips are found from sound and picture alone, so that the same
measures hold for any source.
"""

import ctypes
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..data.character import Identity
from ..data.visemes import FRAME_RATE
from .align import TimedWord
from .cuts import Cutter, Segment
from .face import FaceMeter, movement
from .identity import Gallery
from .normalise import normalise
from .sources import FIRST_IDENTITY, SAMPLES_PER_FRAME, reference_frame
from .streams import LongSource, Part, Script
from .sync import LipReader, beside_words, sync_score
from .transcript import EdgeCount, Reader, Settled, at_edges, per_minute
from .voice import VoiceStatistics, similarity
from .wer import Audio, HeardWord

MINUTE = 60 * FRAME_RATE
#: Minutes of which a contact sheet shows frames, as far as the stream goes, and how many, one in four.
SHOWN, SHOWN_FRAMES, SHOWN_STEP = (0, 1, 5, 10), 8, 4
_STATM = Path("/proc/self/statm")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
#: Frames between two looks at the memory, which cost the chunk after them a little.
MEMORY_EVERY = 10 * FRAME_RATE

Values = npt.NDArray[np.float64]
Stored = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]


class Listener(Protocol):
    """Say which words are heard, and when."""

    def words(self, audio: Audio) -> list[HeardWord]:
        """Return the words of ``audio``, [samples] fp32 at 24 kHz."""
        ...


class WordAligner(Protocol):
    """Find known words in a recording."""

    def align_words(self, audio: Audio, words: Sequence[str]) -> list[TimedWord] | None:
        """Return words and silences in order, None where they cannot be found."""
        ...


@dataclass(frozen=True)
class Instruments:
    """What streams are measured with.

    Attributes:
        listener: hears words.
        aligner: finds asked words in what was said.
        voice: statistics of the voice that is to be heard.
        size: height and width of all pictures.
        identities: characters of the gallery, at least 2.
    """

    listener: Listener
    aligner: WordAligner
    voice: Values
    size: tuple[int, int]
    identities: int


@dataclass(frozen=True)
class StreamScores:
    """Scores of one stream.

    Attributes:
        minutes: of each measure (see :data:`~streamchar.eval.long_report.MEASURES`) a value a minute, None
            where there was nothing to measure.
        skipped: words asked for and not heard, at the edges of chunks and away from them.
        repeated: words heard again that were asked for once, likewise.
        words: asked for in what was said.
        confirmed: of these, heard right, and found by the aligner: those that the place is measured at.
        seconds: that the stream lasted.
        memory_slope: megabytes a minute that the process grew by after the first minute; None where that is
            not known.
    """

    minutes: dict[str, list[float | None]]
    skipped: EdgeCount
    repeated: EdgeCount
    words: int
    confirmed: int
    seconds: float
    memory_slope: float | None


def score_stream(
    source: LongSource, script: Script, instruments: Instruments, chunk: float
) -> tuple[StreamScores, Frames]:
    """Let a source speak a script, and score it.

    Args:
        source: who speaks.
        script: what.
        instruments: to measure with.
        chunk: seconds between the places where chunks meet, or would.

    Returns:
        The scores, and frames of the minutes :data:`SHOWN`, [rows, columns, height, width, 3].
    """
    scorer = Scorer(script, instruments)
    for part in source.parts(script):
        scorer.add(part)
    return scorer.finish(chunk)


def _numbers() -> "array[float]":
    return array("f")


@dataclass
class _Series:
    """A few numbers for every frame and part of a stream.

    One array a measure: many small ones that stay would lie between the large ones that go, and the process
    would grow by as much as if the pictures had been kept.
    """

    lips: "array[float]" = field(default_factory=_numbers)
    identity: "array[float]" = field(default_factory=_numbers)
    likeness: "array[float]" = field(default_factory=_numbers)
    colour: "array[float]" = field(default_factory=_numbers)
    sharpness: "array[float]" = field(default_factory=_numbers)
    movement: "array[float]" = field(default_factory=_numbers)
    computed: list[tuple[float, float, float]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


class Scorer:
    """Score a stream part by part.

    Args:
        script: what is asked for.
        instruments: to measure with.
    """

    def __init__(self, script: Script, instruments: Instruments) -> None:
        self._script, self._tools = script, instruments
        self._asked = [normalise(word) for word in script.words]
        seeds = range(FIRST_IDENTITY, FIRST_IDENTITY + instruments.identities)
        self._gallery = Gallery(np.stack([reference_frame(seed, *instruments.size) for seed in seeds]))
        self._own = script.identity - FIRST_IDENTITY
        self._lip_reader = LipReader(Identity.sample(script.identity), *instruments.size)
        self._face = FaceMeter(reference_frame(script.identity, *instruments.size))
        self._cutter, self._reader = Cutter(), Reader(self._asked)
        self._waiting: list[Segment] = []
        self._series, self._frames = _Series(), 0
        self._before: Frames | None = None
        self._pointed: dict[int, float] = {}
        self._aligned: list[tuple[int, float]] = []
        self._synced: list[tuple[float, Stored, Stored]] = []
        self._voices: dict[int, VoiceStatistics] = {}
        self._shown: dict[int, Frames] = {}

    def add(self, part: Part) -> None:
        """Take in the next media, whole frames of them."""
        series, start = self._series, self._frames
        self._frames += len(part.video)
        series.lips.extend(self._lip_reader.read(part.video))
        series.identity.extend((self._gallery.nearest(part.video) == self._own).astype(np.float64))
        series.likeness.extend(self._gallery.similarity(part.video, self._own))
        series.colour.extend(self._face.colour(part.video))
        series.sharpness.extend(self._face.sharpness(part.video))
        series.movement.extend(movement(part.video, self._before))
        self._before = part.video[-1].copy()
        self._pointed.update(part.words)
        shown = part.video[::SHOWN_STEP][:SHOWN_FRAMES].copy()
        last = round(self._script.seconds / 60)
        for minute in SHOWN:
            if minute == last or (minute < last and minute not in self._shown and start >= minute * MINUTE):
                self._shown[minute] = shown
        for segment in self._cutter.add(part.audio):
            self._listen(segment)
        if part.seconds is not None:
            media = len(part.video) / FRAME_RATE
            series.computed.append((start / MINUTE, part.seconds, media))
            if not series.memory or start >= series.memory[-1][0] * MINUTE + MEMORY_EVERY:
                series.memory.append((start / MINUTE, resident_megabytes()))

    def finish(self, chunk: float) -> tuple[StreamScores, Frames]:
        """Return the scores of what was taken in, as :func:`score_stream` does.

        Raises:
            ValueError: nothing was.
        """
        if not self._frames:
            raise ValueError("a stream must have media to be scored, got none; ask for a longer one")
        for segment in self._cutter.finish():
            self._listen(segment)
        for settled in self._reader.finish():
            self._settle(settled)
        seconds, events = self._frames / FRAME_RATE, self._reader.events
        skipped = [event.time for event in events if event.heard is None]
        repeated = [event.time for event in events if event.again]
        scores = StreamScores(
            minutes={name: _spelled(values) for name, values in self._minutes(chunk).items()},
            skipped=at_edges(skipped, chunk, seconds),
            repeated=at_edges(repeated, chunk, seconds),
            words=sum(event.asked is not None for event in events),
            confirmed=len(self._aligned),
            seconds=seconds,
            memory_slope=self._memory_slope(),
        )
        rows = [self._shown[minute] for minute in sorted(self._shown)]
        columns = min(map(len, rows))
        return scores, np.stack([row[:columns] for row in rows])

    def _listen(self, segment: Segment) -> None:
        start = segment.start / FRAME_RATE
        heard = [
            HeardWord(text, word.start + start, word.end + start)
            for word in self._tools.listener.words(segment.audio)
            if (text := normalise(word.text))
        ]
        self._waiting.append(segment)
        settled = self._reader.hear(heard)
        if settled is not None:
            self._settle(settled)

    def _settle(self, settled: Settled) -> None:
        """Measure voice, place and lips of a segment whose words are known."""
        segment = self._waiting.pop(0)
        frames = len(segment.audio) // SAMPLES_PER_FRAME
        middle = segment.start + frames / 2
        self._voices.setdefault(int(middle // MINUTE), VoiceStatistics()).add(segment.audio)
        if settled.first is None or settled.last is None:
            return
        words = self._tools.aligner.align_words(segment.audio, self._asked[settled.first : settled.last + 1])
        if words is None:
            return
        right = {event.asked for event in settled.events if event.right}
        spoken = [word for word in words if word.text]
        for index, word in enumerate(spoken, settled.first):
            if index in right:
                self._aligned.append((index, segment.start / FRAME_RATE + word.middle))
        phones = [phone for word in words for phone in word.phones]
        if spoken:
            lips = np.asarray(self._series.lips[segment.start : segment.start + frames])
            seen, asked = beside_words(lips, phones)
            self._synced.append((middle / MINUTE, seen.astype(np.float32), asked.astype(np.float32)))

    def _minutes(self, chunk: float) -> dict[str, Values]:
        series = self._series
        minutes = max(min(round(self._script.seconds / 60), round(self._frames / MINUTE)), 1)
        found = per_minute(self._reader.events, minutes)
        found |= self._place(minutes)
        for name in ("identity", "likeness", "colour", "sharpness"):
            values = np.asarray(getattr(series, name))
            found[name] = _means(np.arange(len(values)) / MINUTE, values, minutes)
        found["movement"] = self._movement(round(chunk * FRAME_RATE), minutes)
        sync = [self._sync(minute) for minute in range(minutes)]
        found["lips late by"] = np.asarray([late for late, _ in sync])
        found["lip correlation"] = np.asarray([correlation for _, correlation in sync])
        found["voice"] = np.asarray([self._voice(minute) for minute in range(minutes)])
        if series.computed:
            times, computed, media = np.asarray(series.computed).T
            found["rtf"] = _means(times, computed, minutes) / _means(times, media, minutes)
            times, memory = np.asarray(series.memory).T
            found["memory"] = _means(times, memory, minutes)
        return found

    def _movement(self, chunk: int, minutes: int) -> Values:
        """Return movement into the first frames of chunks over that between all others."""
        moved = np.asarray(self._series.movement, np.float64)[1:]
        frames = np.arange(1, len(moved) + 1)
        edges, times = frames % chunk == 0, frames / MINUTE
        inside = _means(times[~edges], moved[~edges], minutes)
        return _means(times[edges], moved[edges], minutes) / np.where(inside > 0, inside, np.nan)

    def _place(self, minutes: int) -> dict[str, Values]:
        """Compare when the pointer passed a word with when it was heard."""
        names = ("place, seconds", "place, words", "pointer late by")
        both = [(index, time) for index, time in self._aligned if index in self._pointed]
        if not both:
            return {name: np.full(minutes, np.nan) for name in names}
        indices, times = np.asarray(both, np.float64).T
        times = np.maximum.accumulate(times)
        pointed = np.asarray([self._pointed[index] for index, _ in both])
        late = pointed - times
        ahead = indices - np.interp(pointed, times, indices)
        return {
            name: _means(times / 60, values, minutes)
            for name, values in zip(names, (np.abs(late), np.abs(ahead), late))
        }

    def _sync(self, minute: int) -> tuple[float, float]:
        chosen = [pair for time, *pair in self._synced if int(time) == minute]
        lips, asked = ([pair[k].astype(np.float64) for pair in chosen] for k in (0, 1))
        try:
            score = sync_score(lips, asked)
        except ValueError:  # nothing was aligned, or no mouth moves: a result, not a fault
            return np.nan, np.nan
        return score.offset, score.at_zero

    def _voice(self, minute: int) -> float:
        vector = self._voices[minute].vector() if minute in self._voices else None
        return np.nan if vector is None else similarity(vector, self._tools.voice)

    def _memory_slope(self) -> float | None:
        later = [pair for pair in self._series.memory if pair[0] >= 1]
        return slope(later)[0] if len(later) > 1 else None


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of the line through points (x, y), by least squares, and its standard error.

    There must be two different x. Two points alone do not say how sure the slope is: its error is then 0.
    """
    x, y = np.asarray(points, np.float64).T
    found, level = np.polyfit(x, y, 1)
    rest, free = y - found * x - level, len(x) - 2
    spread = np.square(rest).sum() / free if free > 0 else 0.0
    return float(found), float(np.sqrt(spread / np.square(x - x.mean()).sum()))


def resident_megabytes() -> float:
    """Return the memory of this process that is in use, in megabytes.

    What the allocator keeps of freed blocks is handed back first, where it is glibc's: nothing holds it, and
    how much it is jumps with the order in which large blocks came and went.
    """
    if _TRIM is not None:
        _TRIM(0)
    pages = int(_STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _means(minutes: Values, values: Values, count: int) -> Values:
    """Return the mean of the values of each minute, [count]; NaN where there are none."""
    return np.asarray(
        [chosen.mean() if len(chosen := values[minutes.astype(int) == k]) else np.nan for k in range(count)]
    )


def _spelled(values: Values) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
