"""Score a stream while it is spoken, minute by minute, without storing it.

Media are measured segment by segment and dropped. Only a few numbers per frame and the recognised words are
kept. The position in the text, the words and the lips are measured from sound and picture alone, so that the
same measures apply to every source.
"""

import random
from collections.abc import Iterable, Sequence

import numpy as np

from ...config import CLOCK
from ...data.renderer.character import Identity
from ..arrays import Audio, Frames, Values
from ..metrics.face import FaceMeter, movement
from ..metrics.identity import Gallery
from ..metrics.normalise import normalise
from ..metrics.sync import LipReader, around_words, sync_score
from ..metrics.transcript import Settled, TranscriptMatcher, WordEvent
from ..metrics.voice import VoiceStatistics, raised, similarity
from ..metrics.wer import HeardWord
from ..metrics.word_counts import WordCounter, count_near_edges
from ..sources import FIRST_IDENTITY, reference_frame
from .instruments import Instruments
from .per_minute import MinuteMeans, slope
from .script import Script
from .segmenter import Segment, Segmenter
from .stream_scores import StreamScores
from .streams import StreamPiece

#: Frames of a minute.
MINUTE = 60 * CLOCK.frame_rate
#: Minutes of which the contact sheet shows frames; the last minute of the stream shows its last frames.
SHEET_MINUTES = (0, 1, 5, 10)
#: Frames shown of each of these minutes, and the distance between them.
SHEET_FRAMES, SHEET_STEP = 8, 4


class Scorer:
    """Score a stream piece by piece.

    All state has its final size from the start, except for a few bytes per minute.

    Args:
        script: what the stream says.
        instruments: what it is measured with.
        chunk_seconds: length of a chunk; for sources without chunks, the edges of chunks are still assumed.
    """

    def __init__(self, script: Script, instruments: Instruments, chunk_seconds: float) -> None:
        self._instruments, self._chunk_seconds = instruments, chunk_seconds
        self._expected = [normalise(word) for word in script.words]
        seeds = range(FIRST_IDENTITY, FIRST_IDENTITY + instruments.identities)
        self._gallery = Gallery(np.stack([reference_frame(seed, *instruments.size) for seed in seeds]))
        self._own = script.identity - FIRST_IDENTITY
        self._lip_reader = LipReader(Identity.sample(script.identity), *instruments.size)
        self._face = FaceMeter(reference_frame(script.identity, *instruments.size))
        self._last_minute = round(script.seconds / 60)
        # One more for media after the last minute, which are not reported.
        minutes = max(self._last_minute, 1) + 1
        self._means, self._counter = MinuteMeans(minutes), WordCounter(minutes)
        self._planted = self._found = 0
        self._rng = random.Random(script.seed)
        # Audio and expected words of the segment before.
        self._before: tuple[Audio, list[str]] = np.zeros(0, np.float32), []
        self._frames = 0
        self._frame_before: Frames | None = None
        self._segmenter, self._matcher = Segmenter(), TranscriptMatcher(self._expected)
        self._waiting: list[Segment] = []
        # When the pointer passed each word, and when the word was heard, in seconds; NaN if it never was.
        self._pointed, self._heard = np.full((2, len(self._expected)), np.nan)
        # Gap between the lips in frames whose words are not settled yet.
        self._lips = np.zeros(0)
        # Measured and expected gap between the lips in the current minute.
        self._gaps: list[tuple[Values, Values]] = []
        self._sync, self._sync_minute = np.full((2, minutes), np.nan), 0
        self._voices, self._raised = ([VoiceStatistics() for _ in range(minutes)] for _ in range(2))
        self._sheet = np.full((len(SHEET_MINUTES), SHEET_FRAMES, *instruments.size, 3), 255, np.uint8)
        self._sheet_columns = [0] * len(SHEET_MINUTES)
        # Minute and megabytes of each measurement.
        self._memory: list[tuple[float, float]] = []

    def add(self, piece: StreamPiece) -> None:
        """Add the next media, in whole frames."""
        start = self._frames
        self._frames += len(piece.video)
        # The matcher has not reached these words yet, because it waits for later segments.
        del self._expected[piece.dropped.start : piece.dropped.stop]
        self._measure_frames(start, piece)
        for word, time in piece.words:
            self._pointed[word] = time
        self._keep_for_sheet(start, piece.video)
        for segment in self._segmenter.add(piece.audio):
            self._recognise(segment)
        if piece.compute_seconds is not None:
            self._means.add("computed", [start / MINUTE], [piece.compute_seconds])
            self._means.add("media", [start / MINUTE], [len(piece.video) / CLOCK.frame_rate])
        if piece.memory_megabytes is not None:
            self._memory.append((start / MINUTE, piece.memory_megabytes))

    def finish(self) -> tuple[StreamScores, Frames]:
        """Return the scores of the stream, and frames of the minutes :data:`SHEET_MINUTES`.

        Returns:
            The scores; [rows, columns, height, width, 3] uint8.

        Raises:
            ValueError: nothing was added.
        """
        if not self._frames:
            raise ValueError("the source returned no media for this stream; ask for a longer stream")
        for segment in self._segmenter.finish():
            self._recognise(segment)
        for settled in self._matcher.finish():
            self._settle(settled)
        self._finish_sync()
        seconds, chunk = self._frames / CLOCK.frame_rate, self._chunk_seconds
        minutes = max(min(self._last_minute, round(self._frames / MINUTE)), 1)
        scores = StreamScores(
            minutes={name: _as_json(values[:minutes]) for name, values in self._minutes().items()},
            unheard=count_near_edges(self._counter.unheard, chunk, seconds),
            skipped=count_near_edges(self._counter.skipped, chunk, seconds),
            repeated=count_near_edges(self._counter.repeated, chunk, seconds),
            planted=self._planted,
            found=self._found,
            words=self._counter.words,
            confirmed=int(np.isfinite(self._heard).sum()),
            seconds=seconds,
            memory_slope=self._memory_slope(),
        )
        rows = [row for row, columns in enumerate(self._sheet_columns) if columns]
        return scores, self._sheet[rows, : min(self._sheet_columns[row] for row in rows)]

    def _measure_frames(self, start: int, piece: StreamPiece) -> None:
        video, frames = piece.video, np.arange(start, self._frames)
        self._lips = np.concatenate([self._lips, self._lip_reader.read(video)])
        for name, values in (
            ("identity", self._gallery.nearest(video) == self._own),
            ("likeness", self._gallery.similarity(video, self._own)),
            ("colour", self._face.colour(video)),
            ("sharpness", self._face.sharpness(video)),
        ):
            self._means.add(name, frames / MINUTE, values)
        moved = movement(video, self._frame_before)
        edges = frames % round(self._chunk_seconds * CLOCK.frame_rate) == 0
        # Nothing moves into the first frame of a take.
        within = (frames > start) | (not piece.new_take and start > 0)
        for name, chosen in (("moved at edges", edges & within), ("moved between", ~edges & within)):
            self._means.add(name, frames[chosen] / MINUTE, moved[chosen])
        self._frame_before = video[-1].copy()

    def _keep_for_sheet(self, start: int, video: Frames) -> None:
        frames = video[::SHEET_STEP][:SHEET_FRAMES]
        for row, minute in enumerate(SHEET_MINUTES):
            due = not self._sheet_columns[row] and start >= minute * MINUTE
            if minute == self._last_minute or (minute < self._last_minute and due):
                self._sheet[row, : len(frames)] = frames
                self._sheet_columns[row] = len(frames)

    def _recognise(self, segment: Segment) -> None:
        start = segment.start / CLOCK.frame_rate
        heard = [
            HeardWord(text, word.start + start, word.end + start)
            for word in self._instruments.listener.words(segment.audio)
            if (text := normalise(word.text))
        ]
        self._waiting.append(segment)
        settled = self._matcher.add(heard)
        if settled is not None:
            self._settle(settled)

    def _settle(self, settled: Settled) -> None:
        """Measure voice, position and lips of the oldest segment, whose words are now known."""
        segment = self._waiting.pop(0)
        frames = len(segment.audio) // CLOCK.samples_per_frame
        lips, self._lips = self._lips[:frames], self._lips[frames:]
        minute = min(int((segment.start + frames / 2) // MINUTE), len(self._voices) - 1)
        self._counter.add(settled.events)
        self._find_skips(segment.audio, settled.events)
        self._voices[minute].add(segment.audio)
        self._raised[minute].add(raised(segment.audio))
        if minute != self._sync_minute:
            self._finish_sync()
            self._sync_minute = minute
        if settled.first is None or settled.last is None:
            return
        expected = self._expected[settled.first : settled.last + 1]
        words = self._instruments.aligner.align_words(segment.audio, expected)
        if words is None:
            return
        right = {event.expected for event in settled.events if event.right}
        spoken = [word for word in words if word.text]
        for index, word in enumerate(spoken, settled.first):
            if index in right:
                self._heard[index] = segment.start / CLOCK.frame_rate + word.middle
        if spoken:
            self._gaps.append(around_words(lips, [phone for word in words for phone in word.phones]))

    def _find_skips(self, audio: Audio, events: Sequence[WordEvent]) -> None:
        """Decide which unheard words were skipped, and test the decision on a word that nobody said."""
        expected = [event for event in events if event.expected is not None]
        if not expected:
            return
        own = words = [self._expected[index] for event in expected if (index := event.expected) is not None]
        searched = audio
        if expected[0].heard is None:
            # A word that was not heard between two segments may be at the end of the one before.
            searched, words = np.concatenate([self._before[0], audio]), [*self._before[1], *words]
        self._before = audio, own
        planted = self._rng.randrange(len(words) + 1)
        stranger = self._rng.choice([word for word in self._expected if word not in words])
        text = [*words[:planted], stranger, *words[planted:]]
        before = len(words) - len(own)
        unheard = {before + place: event for place, event in enumerate(expected) if event.heard is None}
        # The planted word moves the words after it up by one.
        doubtful = {place + (place >= planted): event for place, event in unheard.items()}
        missing = self._instruments.skip_finder.missing(searched, text, {planted, *doubtful})
        if missing is None:
            self._counter.add_skipped(doubtful.values())
            return
        self._planted += 1
        self._found += planted in missing
        self._counter.add_skipped(event for place, event in doubtful.items() if place in missing)

    def _finish_sync(self) -> None:
        """Score the lips of the current minute and forget them."""
        try:
            score = sync_score([lips for lips, _ in self._gaps], [expected for _, expected in self._gaps])
        except ValueError:  # Nothing was aligned, or no mouth moves: a result, not an error.
            pass
        else:
            self._sync[:, self._sync_minute] = score.offset, score.at_zero
        self._gaps.clear()

    def _minutes(self) -> dict[str, Values]:
        means, found = self._means.means, self._counter.rates() | self._pointer_errors()
        found |= {name: means(name) for name in ("identity", "likeness", "colour", "sharpness")}
        within = means("moved between")
        found["movement"] = means("moved at edges") / np.where(within > 0, within, np.nan)
        found["lips late by"], found["lip correlation"] = self._sync
        found["voice"] = self._voice_similarity(self._voices)
        found["another voice"] = self._voice_similarity(self._raised)
        rtf = means("computed") / means("media")
        if np.isfinite(rtf).any():
            found["rtf"] = rtf
        if self._memory:
            memory = MinuteMeans(len(self._voices))
            memory.add("memory", *np.asarray(self._memory).T)
            found["memory"] = memory.means("memory")
        return found

    def _pointer_errors(self) -> dict[str, Values]:
        """Compare when the pointer passed each word with when the word was heard."""
        means = MinuteMeans(len(self._voices))
        indices = np.flatnonzero(np.isfinite(self._heard) & np.isfinite(self._pointed))
        if len(indices):
            times, pointed = np.maximum.accumulate(self._heard[indices]), self._pointed[indices]
            late = pointed - times
            means.add("place, seconds", times / 60, np.abs(late))
            means.add("place, words", times / 60, np.abs(indices - np.interp(pointed, times, indices)))
            means.add("pointer late by", times / 60, late)
        return {name: means.means(name) for name in ("place, seconds", "place, words", "pointer late by")}

    def _voice_similarity(self, minutes: Iterable[VoiceStatistics]) -> Values:
        vectors = [statistics.vector() for statistics in minutes]
        voice = self._instruments.voice
        return np.asarray([np.nan if vector is None else similarity(vector, voice) for vector in vectors])

    def _memory_slope(self) -> float | None:
        later = [pair for pair in self._memory if pair[0] >= 1]
        return slope(later)[0] if len(later) > 1 else None


def _as_json(values: Values) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
