"""What a long stream says against what it was asked to say, word by word, without holding the stream.

Words are heard segment by segment. How far in the transcript a segment reaches is decided by edit distance,
with the segments that follow it at hand, and by nothing that the engine says of itself: a pointer that loses
its place must not lose the score.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby

import numpy as np
import numpy.typing as npt

from .wer import HeardWord

#: Segments heard after one before its words are settled.
LOOKAHEAD = 2
#: Asked words that unsettled segments may reach over: so many for each word heard, and so many more.
_REACH_PER_WORD, _REACH = 3, 40
#: Words of settled segments that are kept, for what is said again after a cut: those of two long segments.
_KEPT = 60

Pair = tuple[int | None, int | None]


@dataclass(frozen=True)
class Event:
    """A word of a stream: asked, heard, or both.

    Attributes:
        time: of its middle, in seconds of the stream; of a word not heard, between those heard around it.
        asked: its number in the transcript, None where it was not asked for.
        heard: what was heard, None where nothing was.
        right: whether the one is the other.
        again: whether it was not asked for and belongs to words that say again what was said beside them.
    """

    time: float
    asked: int | None
    heard: str | None
    right: bool
    again: bool = False


def edit_path(asked: Sequence[str], heard: Sequence[str], *, open_end: bool = False) -> list[Pair]:
    """Return a shortest way from what was asked to what was heard, as pairs of indices.

    Args:
        asked: words.
        heard: words.
        open_end: whether words asked after the last one heard may be left out for nothing; of equal ways the
            one that leaves about as many words as were heard is taken.

    Returns:
        Pairs in order: (i, j) is word i heard as j, (i, None) one not heard, (None, j) one not asked for.
    """
    columns = np.arange(len(asked) + 1)
    cost = np.empty((len(heard) + 1, len(asked) + 1), np.int32)
    cost[0] = columns
    words = np.asarray(asked, dtype=object)
    for row, word in enumerate(heard, 1):
        best = cost[row - 1] + 1
        best[1:] = np.minimum(best[1:], cost[row - 1, :-1] + (words != word))
        # Leaving out words asked costs one each, from whatever is the best place to begin.
        cost[row] = np.minimum.accumulate(best - columns) + columns
    i, j = len(asked), len(heard)
    if open_end:
        ends = np.flatnonzero(cost[j] == cost[j].min())
        i = int(ends[np.abs(ends - len(heard)).argmin()])
    path: list[Pair] = []
    while i or j:
        here = cost[j, i]
        if i and j and here == cost[j - 1, i - 1] + (asked[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            path.append((i, j))
        elif i and here == cost[j, i - 1] + 1:
            i -= 1
            path.append((i, None))
        else:
            j -= 1
            path.append((None, j))
    return path[::-1]


@dataclass
class Settled:
    """A segment whose words have been found in the transcript.

    Attributes:
        events: in order.
        first: number of the first word asked that something was heard for, None where there is none.
        last: of the last one.
    """

    events: list[Event]
    first: int | None
    last: int | None


@dataclass
class Reader:
    """Follow a transcript through the segments of a stream.

    Args:
        asked: the normalised words of the transcript; those not settled yet may still be changed.
    """

    asked: Sequence[str]
    _place: int = 0
    _said: list[str] = field(default_factory=list)
    _waiting: list[list[HeardWord]] = field(default_factory=list)

    def hear(self, words: Sequence[HeardWord]) -> Settled | None:
        """Take in the words of the next segment; return the segment :data:`LOOKAHEAD` before it, if any."""
        self._waiting.append(list(words))
        return self._settle() if len(self._waiting) > LOOKAHEAD else None

    def finish(self) -> list[Settled]:
        """Return the segments that are left, in order."""
        return [self._settle() for _ in range(len(self._waiting))]

    def _settle(self) -> Settled:
        """Find the words of the oldest waiting segment."""
        heard = [word for segment in self._waiting for word in segment]
        own = len(self._waiting.pop(0))
        reach = self._place + _REACH_PER_WORD * len(heard) + _REACH
        asked = self.asked[self._place : reach]
        path = edit_path(asked, [word.text for word in heard], open_end=True)
        again = said_again(path, [word.text for word in heard], self._said)
        # Words not heard behind the last one of the segment belong to the next.
        until = max((index + 1 for index, (_, j) in enumerate(path) if j is not None and j < own), default=0)
        path = path[:until]
        events = [self._event(path, index, heard, again) for index in range(until)]
        found = [event.asked for event in events if event.asked is not None and event.heard is not None]
        self._place += sum(i is not None for i, _ in path)
        self._said = [*self._said, *_said(path, [word.text for word in heard])][-_KEPT:]
        return Settled(events, min(found, default=None), max(found, default=None))

    def _event(self, path: Sequence[Pair], index: int, heard: Sequence[HeardWord], again: set[int]) -> Event:
        i, j = path[index]
        asked = None if i is None else self._place + i
        if j is not None:
            word = heard[j]
            right = asked is not None and self.asked[asked] == word.text
            return Event((word.start + word.end) / 2, asked, word.text, right, j in again)
        # Between what was heard before and after; every segment ends with a word heard.
        before = next((heard[k] for _, k in path[index::-1] if k is not None), None)
        after = next(heard[k] for _, k in path[index:] if k is not None)
        start = before.end if before is not None else after.start
        run = [k for k in range(len(path)) if path[k][1] is None and _same_run(path, k, index)]
        share = (run.index(index) + 0.5) / len(run)
        return Event(start + share * (after.start - start), asked, None, False)


def said_again(path: Sequence[Pair], heard: Sequence[str], said: Sequence[str] = ()) -> set[int]:
    """Return which words of a path were said again: numbers of words heard and not asked for.

    Words inserted together are looked for, in their order, in the words before them and in those after them,
    half as far again as they are many. They count where most of them are found: a single word that a
    recogniser made up has its like somewhere near too often.

    Args:
        path: from :func:`edit_path`.
        heard: the words that it was made of.
        said: words asked for and heard before these.
    """
    again: set[int] = set()
    for inserted, places in groupby(range(len(path)), key=lambda place: path[place][0] is None):
        if not inserted:
            continue
        run = list(places)
        numbers = [j for _, j in path[run[0] : run[-1] + 1] if j is not None]
        words, reach = [heard[j] for j in numbers], len(run) * 3 // 2
        before = [*said, *_said(path[: run[0]], heard)][-reach:]
        after = _said(path[run[-1] + 1 :], heard)[:reach]
        # Of a phrase said twice, the end of the first time and the beginning of the second may be left over:
        # then one part of the run is found after it and the other before it.
        found = _found(words, before) | _found(words, after)
        if 2 * len(found) > len(words):
            again.update(numbers[k] for k in found)
    return again


def _said(path: Sequence[Pair], heard: Sequence[str]) -> list[str]:
    return [heard[j] for i, j in path if i is not None and j is not None]


def _found(words: Sequence[str], others: Sequence[str]) -> set[int]:
    """Return the numbers of those words that are among others in the same order."""
    blocks = SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    return {k for block in blocks for k in range(block.a, block.a + block.size)}


def _same_run(path: Sequence[Pair], one: int, other: int) -> bool:
    low, high = sorted((one, other))
    return all(j is None for _, j in path[low : high + 1])


@dataclass(frozen=True)
class EdgeCount:
    """Words not heard, skipped or repeated near the edges of chunks and away from them.

    Near is within a quarter of a chunk of an edge, which is half of the time: without a cause at the edges
    both counts are the same but for chance. A fault that strikes everywhere shows in the rate alone, as do
    the recogniser's own mistakes in that of words not heard, which has to be seen beside the ground truth's.

    Attributes:
        near: words within a quarter of a chunk.
        away: the others.
        edges: of chunks in the stream.
    """

    near: int
    away: int
    edges: int

    @property
    def rate(self) -> float:
        """Words near an edge, for each edge."""
        return self.near / self.edges if self.edges else 0.0

    @property
    def rate_error(self) -> float:
        """Standard error of the rate, the count being Poisson's."""
        return float(self.near**0.5 / self.edges) if self.edges else 0.0

    @property
    def excess(self) -> float:
        """Words more at an edge than away from it, for each edge."""
        return (self.near - self.away) / self.edges if self.edges else 0.0

    @property
    def error(self) -> float:
        """Standard error of the excess, the counts being Poisson's."""
        return float((self.near + self.away) ** 0.5 / self.edges) if self.edges else 0.0


def at_edges(times: Sequence[float], chunk: float, seconds: float) -> EdgeCount:
    """Count events near the edges of chunks.

    Args:
        times: of the events, in seconds.
        chunk: length of a chunk in seconds.
        seconds: length of the stream.
    """
    phase = np.mod(np.asarray(times, np.float64), chunk) / chunk
    near = int((np.minimum(phase, 1 - phase) < 0.25).sum())
    return EdgeCount(near, len(times) - near, max(int(seconds / chunk) - 1, 0))


class WordCount:
    """Count the events of a stream as they come.

    Args:
        minutes: of the stream; later events are in no minute.

    Attributes:
        words: that were asked for.
        unheard: times of words asked for and not heard, in seconds.
        skipped: of those of them that were not said.
        repeated: of words heard again.
    """

    def __init__(self, minutes: int) -> None:
        self.words = 0
        self.unheard, self.skipped, self.repeated = array("d"), array("d"), array("d")
        self._table = np.zeros((5, minutes))

    def add(self, events: Iterable[Event]) -> None:
        """Take in the next events."""
        for event in events:
            asked, unheard = event.asked is not None, event.heard is None
            self.words += asked
            self.unheard.extend([event.time] * unheard)
            self.repeated.extend([event.time] * event.again)
            self._count(event, (asked, not event.right, unheard, event.again, 0))

    def skip(self, events: Iterable[Event]) -> None:
        """Take in which words, of those not heard, were not said."""
        for event in events:
            self.skipped.append(event.time)
            self._count(event, (0, 0, 0, 0, 1))

    def _count(self, event: Event, row: Sequence[int]) -> None:
        minute = int(event.time // 60)
        if 0 <= minute < self._table.shape[1]:
            self._table[:, minute] += row

    def rates(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return "word errors", "unheard", "repeated" and "skipped" of each minute, a word asked.

        NaN in a minute without words.
        """
        rates = self._table[1:] / np.where(self._table[0] > 0, self._table[0], np.nan)
        return dict(zip(("word errors", "unheard", "repeated", "skipped"), rates))
