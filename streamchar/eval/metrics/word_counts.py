"""Counts of words that were not heard, skipped or repeated, per minute and near the edges of chunks."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Values
from .transcript import WordEvent


@dataclass(frozen=True)
class EdgeCount:
    """Words not heard, skipped or repeated near the edges of chunks and away from them.

    Near means within a quarter of a chunk of an edge, which is half of the time. If the edges cause nothing,
    both counts differ only by chance. A fault that occurs everywhere shows only in :attr:`rate`. The rate of
    words not heard also contains the recogniser's own mistakes, so compare it with the ground truth's.

    Attributes:
        near: number of words within a quarter of a chunk of an edge.
        away: number of the other words.
        edges: number of edges between chunks in the stream.
    """

    near: int
    away: int
    edges: int

    @property
    def rate(self) -> float:
        """Words near an edge, per edge."""
        return self.near / self.edges if self.edges else 0.0

    @property
    def rate_error(self) -> float:
        """Standard error of the rate, for a Poisson count."""
        return float(self.near**0.5 / self.edges) if self.edges else 0.0

    @property
    def excess(self) -> float:
        """Words near an edge minus words away from edges, per edge."""
        return (self.near - self.away) / self.edges if self.edges else 0.0

    @property
    def excess_error(self) -> float:
        """Standard error of the excess, for Poisson counts."""
        return float((self.near + self.away) ** 0.5 / self.edges) if self.edges else 0.0

    @staticmethod
    def total(counts: Iterable["EdgeCount"]) -> "EdgeCount":
        """Return the sum of the counts of several streams."""
        columns = zip(*((count.near, count.away, count.edges) for count in counts))
        return EdgeCount(*map(sum, columns))


def count_near_edges(times: Sequence[float], chunk: float, seconds: float) -> EdgeCount:
    """Count events near the edges of chunks and away from them.

    Args:
        times: times of the events in seconds.
        chunk: length of a chunk in seconds.
        seconds: length of the stream in seconds.
    """
    phase = np.mod(np.asarray(times, np.float64), chunk) / chunk
    near = int((np.minimum(phase, 1 - phase) < 0.25).sum())
    return EdgeCount(near, len(times) - near, max(int(seconds / chunk) - 1, 0))


class WordCounter:
    """Count the word events of a stream as they come.

    Args:
        minutes: length of the stream; later events belong to no minute.

    Attributes:
        words: number of expected words.
        unheard: times of expected words that were not heard, in seconds.
        skipped: times of those among them that were not said.
        repeated: times of words that were heard again.
    """

    def __init__(self, minutes: int) -> None:
        self.words = 0
        self.unheard, self.skipped, self.repeated = array("d"), array("d"), array("d")
        # Rows: expected words, word errors, unheard, repeated and skipped words.
        self._table = np.zeros((5, minutes))

    def add(self, events: Iterable[WordEvent]) -> None:
        """Count the next events."""
        for event in events:
            expected, unheard = event.expected is not None, event.heard is None
            self.words += expected
            self.unheard.extend([event.time] * unheard)
            self.repeated.extend([event.time] * event.repeated)
            self._count(event, (expected, not event.right, unheard, event.repeated, 0))

    def add_skipped(self, events: Iterable[WordEvent]) -> None:
        """Count words that were not said, a subset of the words not heard."""
        for event in events:
            self.skipped.append(event.time)
            self._count(event, (0, 0, 0, 0, 1))

    def _count(self, event: WordEvent, row: Sequence[int]) -> None:
        minute = int(event.time // 60)
        if 0 <= minute < self._table.shape[1]:
            self._table[:, minute] += row

    def rates(self) -> dict[str, Values]:
        """Return "word errors", "unheard", "repeated" and "skipped", per expected word, for each minute.

        NaN in minutes without words.
        """
        rates = self._table[1:] / np.where(self._table[0] > 0, self._table[0], np.nan)
        return dict(zip(("word errors", "unheard", "repeated", "skipped"), rates))
