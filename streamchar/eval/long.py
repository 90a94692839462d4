"""Long evaluation: streams of minutes, scored as they come and minute by minute, nothing of them kept.

Media are scored and dropped, segment by segment; what stays of a stream are a few numbers a frame and the
words heard. Place in the text, words and lips are found from sound and picture alone, so that the same
measures hold for any source.
"""

import ctypes
import os
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from .minutes import MinuteMeans, Values
from .normalise import normalise
from .sources import FIRST_IDENTITY, SAMPLES_PER_FRAME, reference_frame
from .streams import Part, Script
from .sync import LipReader, beside_words, sync_score
from .transcript import EdgeCount, Event, Reader, Settled, WordCount, at_edges
from .voice import VoiceStatistics, raised, similarity
from .wer import Audio, HeardWord

MINUTE = 60 * FRAME_RATE
#: Minutes of which a contact sheet shows frames, as far as the stream goes, and how many, one in four.
SHOWN, SHOWN_FRAMES, SHOWN_STEP = (0, 1, 5, 10), 8, 4
_STATM = Path("/proc/self/statm")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
#: Frames between two looks at the memory, which cost the chunk after them a little.
MEMORY_EVERY = 10 * FRAME_RATE

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


class Searcher(Protocol):
    """Say which words are not in a recording."""

    def missing(self, audio: Audio, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
        """Return which doubtful words, by their numbers, are missing; None where that cannot be told."""
        ...


@dataclass(frozen=True)
class Instruments:
    """What streams are measured with.

    Attributes:
        listener: hears words.
        aligner: finds asked words in what was said.
        searcher: tells words that are missing from those that the listener does not write down.
        voice: statistics of the voice that is to be heard.
        size: height and width of all pictures.
        identities: characters of the gallery, at least 2.
    """

    listener: Listener
    aligner: WordAligner
    searcher: Searcher
    voice: Values
    size: tuple[int, int]
    identities: int


@dataclass(frozen=True)
class StreamScores:
    """Scores of one stream.

    Attributes:
        minutes: of each measure (see :data:`~streamchar.eval.long_course.MEASURES`) a value a minute, None
            where there was nothing to measure.
        unheard: words asked for and not heard, at the edges of chunks and away from them.
        skipped: those of them that the recording is better explained without, or where that cannot be told.
        repeated: words heard again that were asked for once, likewise.
        planted: words that nobody said, put to the searcher among those that were, one in a segment.
        found: those of them that it found missing.
        words: asked for in what was said.
        confirmed: of these, heard right, and found by the aligner: those that the place is measured at.
        seconds: that the stream lasted.
        memory_slope: megabytes a minute that the process that spoke grew by after the first minute; None
            where that is not known.
    """

    minutes: dict[str, list[float | None]]
    unheard: EdgeCount
    skipped: EdgeCount
    repeated: EdgeCount
    planted: int
    found: int
    words: int
    confirmed: int
    seconds: float
    memory_slope: float | None


def remembered(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield parts that were computed with the memory of this process, every :data:`MEMORY_EVERY` frames."""
    frames = due = 0
    for part in parts:
        if part.seconds is not None and frames >= due:
            part, due = replace(part, memory=resident_megabytes()), frames + MEMORY_EVERY
        frames += len(part.video)
        yield part


class Scorer:
    """Score a stream part by part.

    What is held of it is made here, as large as it will be, or a few bytes a minute.

    Args:
        script: what is asked for.
        instruments: to measure with.
        chunk: seconds between the places where chunks meet, or would.
    """

    def __init__(self, script: Script, instruments: Instruments, chunk: float) -> None:
        self._tools, self._chunk = instruments, chunk
        self._asked = [normalise(word) for word in script.words]
        seeds = range(FIRST_IDENTITY, FIRST_IDENTITY + instruments.identities)
        self._gallery = Gallery(np.stack([reference_frame(seed, *instruments.size) for seed in seeds]))
        self._own = script.identity - FIRST_IDENTITY
        self._lip_reader = LipReader(Identity.sample(script.identity), *instruments.size)
        self._face = FaceMeter(reference_frame(script.identity, *instruments.size))
        self._last_minute = round(script.seconds / 60)
        # One more for what comes after the last, which is reported nowhere.
        minutes = max(self._last_minute, 1) + 1
        self._means, self._count = MinuteMeans(minutes), WordCount(minutes)
        self._planted = self._found = 0
        self._draw = random.Random(script.seed)
        # The segment before and its words.
        self._past: tuple[Audio, list[str]] = np.zeros(0, np.float32), []
        self._frames = 0
        self._before: Frames | None = None
        self._cutter, self._reader = Cutter(), Reader(self._asked)
        self._waiting: list[Segment] = []
        # When the pointer passed each word, and when it was heard; NaN of those that it never was.
        self._pointed, self._heard = np.full((2, len(self._asked)), np.nan)
        # How open the mouth is in frames whose words are not settled yet.
        self._lips = np.zeros(0)
        self._synced: list[tuple[Values, Values]] = []
        self._sync, self._sync_minute = np.full((2, minutes), np.nan), 0
        self._voices, self._others = ([VoiceStatistics() for _ in range(minutes)] for _ in range(2))
        self._shown = np.full((len(SHOWN), SHOWN_FRAMES, *instruments.size, 3), 255, np.uint8)
        self._columns = [0] * len(SHOWN)
        self._memory: list[tuple[float, float]] = []

    def add(self, part: Part) -> None:
        """Take in the next media, whole frames of them."""
        start = self._frames
        self._frames += len(part.video)
        # Long before the reader comes there: it waits for the segments that follow.
        del self._asked[part.dropped.start : part.dropped.stop]
        frames = np.arange(start, self._frames)
        self._lips = np.concatenate([self._lips, self._lip_reader.read(part.video)])
        for name, values in (
            ("identity", self._gallery.nearest(part.video) == self._own),
            ("likeness", self._gallery.similarity(part.video, self._own)),
            ("colour", self._face.colour(part.video)),
            ("sharpness", self._face.sharpness(part.video)),
        ):
            self._means.add(name, frames / MINUTE, values)
        moved = movement(part.video, self._before)
        edges = frames % round(self._chunk * FRAME_RATE) == 0
        # Nothing moved into the first frame of a take.
        within = (frames > start) | (not part.cut and start > 0)
        for name, chosen in (("moved at edges", edges & within), ("moved between", ~edges & within)):
            self._means.add(name, frames[chosen] / MINUTE, moved[chosen])
        self._before = part.video[-1].copy()
        for word, time in part.words:
            self._pointed[word] = time
        self._show(start, part.video)
        for segment in self._cutter.add(part.audio):
            self._listen(segment)
        if part.seconds is not None:
            self._means.add("computed", [start / MINUTE], [part.seconds])
            self._means.add("media", [start / MINUTE], [len(part.video) / FRAME_RATE])
        if part.memory is not None:
            self._memory.append((start / MINUTE, part.memory))

    def finish(self) -> tuple[StreamScores, Frames]:
        """Return the scores of what was taken in, and frames of the minutes :data:`SHOWN`.

        Returns:
            The scores; frames, [rows, columns, height, width, 3].

        Raises:
            ValueError: nothing was.
        """
        if not self._frames:
            raise ValueError("a stream must have media to be scored, got none; ask for a longer one")
        for segment in self._cutter.finish():
            self._listen(segment)
        for settled in self._reader.finish():
            self._settle(settled)
        self._finish_sync()
        seconds = self._frames / FRAME_RATE
        minutes = max(min(self._last_minute, round(self._frames / MINUTE)), 1)
        scores = StreamScores(
            minutes={name: _spelled(values[:minutes]) for name, values in self._minutes().items()},
            unheard=at_edges(self._count.unheard, self._chunk, seconds),
            skipped=at_edges(self._count.skipped, self._chunk, seconds),
            repeated=at_edges(self._count.repeated, self._chunk, seconds),
            planted=self._planted,
            found=self._found,
            words=self._count.words,
            confirmed=int(np.isfinite(self._heard).sum()),
            seconds=seconds,
            memory_slope=self._memory_slope(),
        )
        there = [row for row, columns in enumerate(self._columns) if columns]
        return scores, self._shown[there, : min(self._columns[row] for row in there)]

    def _show(self, start: int, video: Frames) -> None:
        """Keep frames of the minutes asked for, of the last one its last."""
        frames = video[::SHOWN_STEP][:SHOWN_FRAMES]
        for row, minute in enumerate(SHOWN):
            due = not self._columns[row] and start >= minute * MINUTE
            if minute == self._last_minute or (minute < self._last_minute and due):
                self._shown[row, : len(frames)] = frames
                self._columns[row] = len(frames)

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
        lips, self._lips = self._lips[:frames], self._lips[frames:]
        minute = min(int((segment.start + frames / 2) // MINUTE), len(self._voices) - 1)
        self._count.add(settled.events)
        self._search(segment.audio, settled.events)
        self._voices[minute].add(segment.audio)
        self._others[minute].add(raised(segment.audio))
        if minute != self._sync_minute:
            self._finish_sync()
            self._sync_minute = minute
        if settled.first is None or settled.last is None:
            return
        words = self._tools.aligner.align_words(segment.audio, self._asked[settled.first : settled.last + 1])
        if words is None:
            return
        right = {event.asked for event in settled.events if event.right}
        spoken = [word for word in words if word.text]
        for index, word in enumerate(spoken, settled.first):
            if index in right:
                self._heard[index] = segment.start / FRAME_RATE + word.middle
        if spoken:
            self._synced.append(beside_words(lips, [phone for word in words for phone in word.phones]))

    def _search(self, audio: Audio, events: Sequence[Event]) -> None:
        """Look for the words of a segment that were not heard, and for one that nobody said."""
        asked = [event for event in events if event.asked is not None]
        if not asked:
            return
        said = words = [self._asked[number] for event in asked if (number := event.asked) is not None]
        sound = audio
        if asked[0].heard is None:
            # What was not heard between two segments may be at the end of the one before.
            audio, words = np.concatenate([self._past[0], audio]), [*self._past[1], *words]
        self._past = sound, said
        planted = self._draw.randrange(len(words) + 1)
        stranger = self._draw.choice([word for word in self._asked if word not in words])
        text = [*words[:planted], stranger, *words[planted:]]
        before = len(words) - len(said)
        unheard = {before + place: event for place, event in enumerate(asked) if event.heard is None}
        # In the text with the planted word, those behind it have moved up.
        places = {place + (place >= planted): event for place, event in unheard.items()}
        missing = self._tools.searcher.missing(audio, text, {planted, *places})
        if missing is None:
            self._count.skip(places.values())
            return
        self._planted += 1
        self._found += planted in missing
        self._count.skip(event for place, event in places.items() if place in missing)

    def _finish_sync(self) -> None:
        """Compare the lips of the minute at hand with its words, and let go of both."""
        try:
            score = sync_score([lips for lips, _ in self._synced], [asked for _, asked in self._synced])
        except ValueError:  # nothing was aligned, or no mouth moves: a result, not a fault
            pass
        else:
            self._sync[:, self._sync_minute] = score.offset, score.at_zero
        self._synced.clear()

    def _minutes(self) -> dict[str, Values]:
        means, found = self._means.means, self._count.rates() | self._place()
        found |= {name: means(name) for name in ("identity", "likeness", "colour", "sharpness")}
        within = means("moved between")
        found["movement"] = means("moved at edges") / np.where(within > 0, within, np.nan)
        found["lips late by"], found["lip correlation"] = self._sync
        for name, voices in (("voice", self._voices), ("another voice", self._others)):
            found[name] = np.asarray([self._voice(statistics) for statistics in voices])
        rtf = means("computed") / means("media")
        if np.isfinite(rtf).any():
            found["rtf"] = rtf
        if self._memory:
            memory = MinuteMeans(len(self._voices))
            memory.add("memory", *np.asarray(self._memory).T)
            found["memory"] = memory.means("memory")
        return found

    def _place(self) -> dict[str, Values]:
        """Compare when the pointer passed a word with when it was heard."""
        means = MinuteMeans(len(self._voices))
        indices = np.flatnonzero(np.isfinite(self._heard) & np.isfinite(self._pointed))
        if len(indices):
            times, pointed = np.maximum.accumulate(self._heard[indices]), self._pointed[indices]
            late = pointed - times
            means.add("place, seconds", times / 60, np.abs(late))
            means.add("place, words", times / 60, np.abs(indices - np.interp(pointed, times, indices)))
            means.add("pointer late by", times / 60, late)
        return {name: means.means(name) for name in ("place, seconds", "place, words", "pointer late by")}

    def _voice(self, statistics: VoiceStatistics) -> float:
        vector = statistics.vector()
        return np.nan if vector is None else similarity(vector, self._tools.voice)

    def _memory_slope(self) -> float | None:
        later = [pair for pair in self._memory if pair[0] >= 1]
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


def _spelled(values: Values) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
