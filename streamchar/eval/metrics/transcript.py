"""Match the words of a long stream to its text, without storing the stream.

Words arrive in segments. The part of the text that a segment covers is found by edit distance, after the next
segments have been heard. The engine's pointer is not used: if it loses its place, the score must still be
right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .edit_path import Pair, edit_path, repeated_words, words_matched
from .wer import HeardWord

#: Segments that must be heard after one before its words are settled.
LOOKAHEAD = 2
# Expected words that unsettled segments may cover: so many per heard word, and so many more.
_REACH_PER_WORD, _REACH = 3, 40
# Words of settled segments that are kept, to detect repetitions across segments: those of two long segments.
_KEPT = 60


@dataclass(frozen=True)
class WordEvent:
    """A word of a stream: expected, heard, or both.

    Attributes:
        time: middle of the word in seconds of the stream; a word that was not heard is placed between its
            neighbours.
        expected: index of the word in the text; None for an insertion.
        heard: the recognised word; None for a deletion.
        right: whether the expected word was heard.
        repeated: whether this insertion repeats words near it.
    """

    time: float
    expected: int | None
    heard: str | None
    right: bool
    repeated: bool = False


@dataclass
class Settled:
    """A segment whose words have been matched to the text.

    Attributes:
        events: words in order.
        first: index of the first expected word with a heard one; None if there is none.
        last: index of the last one.
    """

    events: list[WordEvent]
    first: int | None
    last: int | None


@dataclass
class TranscriptMatcher:
    """Follow a text through the segments of a stream.

    Args:
        expected: the normalised words of the text. Words that are not settled yet may still be changed.
    """

    expected: Sequence[str]
    _position: int = 0
    _heard_before: list[str] = field(default_factory=list)
    _waiting: list[list[HeardWord]] = field(default_factory=list)

    def add(self, words: Sequence[HeardWord]) -> Settled | None:
        """Add the words of the next segment.

        Returns:
            The segment that was added :data:`LOOKAHEAD` calls ago, if any.
        """
        self._waiting.append(list(words))
        return self._settle() if len(self._waiting) > LOOKAHEAD else None

    def finish(self) -> list[Settled]:
        """Return the remaining segments in order."""
        return [self._settle() for _ in range(len(self._waiting))]

    def _settle(self) -> Settled:
        heard = [word for segment in self._waiting for word in segment]
        texts = [word.text for word in heard]
        own = len(self._waiting.pop(0))
        end = self._position + _REACH_PER_WORD * len(heard) + _REACH
        path = edit_path(self.expected[self._position : end], texts, open_end=True)
        repeated = repeated_words(path, texts, self._heard_before)
        # Deletions after the last word of the segment belong to the next segment.
        until = max((index + 1 for index, (_, j) in enumerate(path) if j is not None and j < own), default=0)
        path = path[:until]
        events = [self._event(path, index, heard, repeated) for index in range(until)]
        found = [event.expected for event in events if event.expected is not None and event.heard is not None]
        self._position += sum(i is not None for i, _ in path)
        self._heard_before = [*self._heard_before, *words_matched(path, texts)][-_KEPT:]
        return Settled(events, min(found, default=None), max(found, default=None))

    def _event(
        self, path: Sequence[Pair], index: int, heard: Sequence[HeardWord], repeated: set[int]
    ) -> WordEvent:
        i, j = path[index]
        expected = None if i is None else self._position + i
        if j is not None:
            word = heard[j]
            right = expected is not None and self.expected[expected] == word.text
            return WordEvent((word.start + word.end) / 2, expected, word.text, right, j in repeated)
        # A deletion lies between the words heard before and after it. Every segment ends with a heard word.
        before = next((heard[k] for _, k in path[index::-1] if k is not None), None)
        after = next(heard[k] for _, k in path[index:] if k is not None)
        start = before.end if before is not None else after.start
        run = [k for k in range(len(path)) if path[k][1] is None and _same_run(path, k, index)]
        share = (run.index(index) + 0.5) / len(run)
        return WordEvent(start + share * (after.start - start), expected, None, False)


def _same_run(path: Sequence[Pair], one: int, other: int) -> bool:
    low, high = sorted((one, other))
    return all(j is None for _, j in path[low : high + 1])
