"""The window of the transcript that the model sees, sliding as it is spoken.

Words are the unit: each is tokenised on its own with the space before it, so that its tokens do not depend
on how the text was cut into pieces, and a window edge never falls inside one.
"""

import itertools
import re
import unicodedata
from dataclasses import dataclass, replace

import torch

from .text import MAX_CHARACTERS, TextError, clean_text
from .tokenizers import Tokenizer

# Scripts written without spaces: every character is a word, with the punctuation that follows it.
_IDEOGRAPH = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_WORD = re.compile(rf"\s*(?:{_IDEOGRAPH}[^\w\s]*|(?:(?!{_IDEOGRAPH})\S)+)")


@dataclass(frozen=True)
class Word:
    """A word and its place.

    Attributes:
        index: number of the word since the window was made, from 0; in :attr:`TextWindow.words`, where words
            longer than the window come in parts, of the part.
        text: the word with its punctuation, without spaces.
        start: first of its tokens, counted from the beginning of the window.
        end: one past its last token.
    """

    index: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Entry:
    """A word; or a part of one that is longer than the window, the text with the last."""

    text: str
    ids: tuple[int, ...]


class TextWindow:
    """The part of the transcript that the model sees, sliding as it is spoken.

    The cycle of a chunk: :meth:`fill` chooses the window, the chunk is made, :meth:`slide` says how far it
    came. A window begins a few words before the first one still to be said and holds as many as fit after
    that. Text may be appended at any time; it enters with the next :meth:`fill`. The content depends on the
    text and the positions alone, not on how the text was cut into pieces. Words long said are forgotten, so
    an endless session does not grow.

    Args:
        tokenizer: turns words into tokens.
        capacity: tokens that the window holds.
        keep_words: said words kept before the current one, where they fit.

    Raises:
        ValueError: ``capacity`` is below 1 or ``keep_words`` below 0.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int, keep_words: int = 4) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 token, got {capacity}")
        if keep_words < 0:
            raise ValueError(f"keep_words must be at least 0, got {keep_words}")
        self.tokenizer, self.capacity, self.keep_words = tokenizer, capacity, keep_words
        self._entries: list[_Entry] = []
        self._first = 0  # number of the first word that is still stored
        self._spoken = self._words_spoken = 0  # entries said, and words completed by them
        self._tail = ""  # the last word, until a space or the end of the text completes it
        self._waiting = 0  # characters of complete words still to be said
        # Tokens counted since the window was made: of forgotten words, before the window, said so far.
        self._forgotten = self._origin = 0
        self._reached = 0.0
        self._words: tuple[Word, ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        """Words of the window that :meth:`fill` chose last, with their token spans."""
        return self._words

    @property
    def spoken(self) -> int:
        """Words said so far, which is also the number of the next word."""
        return self._words_spoken

    @property
    def waiting(self) -> int:
        """Words still to be said, the last one as soon as it is complete."""
        return sum(bool(entry.text) for entry in self._entries[self._spoken - self._first :])

    @property
    def exhausted(self) -> bool:
        """Whether every complete word has been said; :meth:`finish` completes the last one."""
        return self._spoken == self._first + len(self._entries)

    @property
    def origin(self) -> int:
        """Tokens of the text before the window that :meth:`fill` chose last."""
        return self._origin

    @property
    def progress(self) -> float:
        """Tokens of the window that :meth:`fill` chose last that have been said, fractions included."""
        # A word counts as said while its second half sounds; a window that begins behind it is not begun.
        return max(self._reached - self._origin, 0.0)

    @property
    def reached(self) -> float:
        """Tokens said since the window was made, fractions included, and those that were cut."""
        return self._reached

    @property
    def remaining(self) -> float:
        """Tokens of complete words not yet said, fractions included: 0 once the last sound has faded."""
        return self._forgotten + sum(len(entry.ids) for entry in self._entries) - self._reached

    def append(self, piece: str) -> None:
        """Add a piece of text; a word is complete when a space follows it or :meth:`finish` is called.

        Raises:
            TextError: as :func:`clean_text`; more than :data:`MAX_CHARACTERS` characters wait to be spoken;
                or a word has no tokens, or more than the window. Nothing of the piece is then added.
        """
        text = self._tail + clean_text(piece, self.tokenizer.script, self._tail[-1:])
        if self._waiting + len(text) > MAX_CHARACTERS:
            raise TextError(
                f"leave at most {MAX_CHARACTERS} characters waiting to be spoken",
                str(self._waiting + len(text)),
                "append more once some of it has been said",
            )
        text = unicodedata.normalize("NFC", text)
        words = _WORD.findall(text)
        if text[-1:].isspace() or not words:
            self._add(words, text[-1:])
        else:
            self._add(words[:-1], words[-1])

    def finish(self) -> None:
        """Complete the last word: no more text belongs to it.

        Raises:
            TextError: the word has no tokens, or more than the window; it is dropped.
        """
        tail, self._tail = self._tail, " "
        self._add(_WORD.findall(tail), " ")

    def fill(self, ids: torch.Tensor) -> int:
        """Choose the window and write it into a buffer in place.

        Args:
            ids: [capacity], int64; places past the window get the padding id.

        Returns:
            Tokens written. Positions of the pointer and :attr:`words` refer to this window.

        Raises:
            ValueError: ``ids`` has another shape.
        """
        if ids.shape != (self.capacity,):
            raise ValueError(f"ids must have shape [capacity] = [{self.capacity}], got {list(ids.shape)}")
        tokens: list[int] = []
        words: list[Word] = []
        begin = self._begin()
        self._origin = self._forgotten + sum(len(entry.ids) for entry in self._entries[:begin])
        for index, entry in enumerate(self._entries[begin : begin + self.capacity], self._first + begin):
            end = len(tokens) + len(entry.ids)
            if end > self.capacity:
                break
            words.append(Word(index, entry.text, len(tokens), end))
            tokens += entry.ids
        self._words = tuple(words)
        ids.copy_(torch.tensor(tokens + [self.tokenizer.pad] * (self.capacity - len(tokens))))
        return len(tokens)

    def slide(self, position: float) -> tuple[Word, ...]:
        """Take note of where the pointer stands and return the words said since the last call.

        A word is said once more than half of its tokens are; a position that falls back takes none back.

        Args:
            position: tokens from the beginning of the window that :meth:`fill` chose last.
        """
        said = tuple(
            word
            for word in self._words
            if word.index >= self._spoken and (2 * position > word.start + word.end or position >= word.end)
        )
        # A later window starts where this one came to, so a reading that falls back must not move it.
        end = self._words[-1].end if self._words else 0
        self._reached = max(self._reached, self._origin + min(position, end))
        self._spoken += len(said)
        whole = [word for word in said if word.text]
        self._waiting -= sum(len(word.text) + 1 for word in whole)
        forgotten = max(self._spoken - self.keep_words - self._first, 0)
        self._forgotten += sum(len(entry.ids) for entry in self._entries[:forgotten])
        del self._entries[:forgotten]
        self._first += forgotten
        self._words_spoken += len(whole)
        first = self._words_spoken - len(whole)
        return tuple(replace(word, index=index) for index, word in enumerate(whole, first))

    def cut(self) -> int:
        """Drop everything not yet said, as an interruption does, and return how many words were said."""
        del self._entries[self._spoken - self._first :]
        self._words = tuple(word for word in self._words if word.index < self._spoken)
        self._tail, self._waiting = " ", 0
        self._reached += self.remaining
        return self._words_spoken

    def _add(self, words: list[str], tail: str) -> None:
        """Tokenise complete words, each with the spaces before it, and keep ``tail`` for the next piece."""
        entries: list[_Entry] = []
        for word in words:
            text = word.lstrip()
            # At the very beginning there is nothing that a space could separate.
            spaced = text != word and bool(self._first or self._entries or entries)
            tokens = tuple(self.tokenizer.encode(" " + text if spaced else text))
            if not tokens and any(character.isalnum() for character in text):
                raise TextError(
                    "have words that the voice can read", repr(text[:20]), "write it as it is to be read"
                )
            parts = [tokens] if len(tokens) <= self.capacity else self._parted(tokens)
            if (longest := max(map(len, parts))) > self.capacity:
                raise TextError(
                    f"have words of at most {self.capacity} tokens, the size of the window",
                    f"one of {longest} tokens, {text[:20]!r}...",
                    "spell it out with spaces, as it is to be read",
                )
            entries += [_Entry("", part) for part in parts[:-1]] + [_Entry(text, parts[-1])]
        self._entries += entries
        self._waiting += sum(len(entry.text) + 1 for entry in entries if entry.text)
        self._tail = tail

    def _parted(self, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the words that a long number is read as, each with the space before it."""
        starts = [
            0,
            *(i for i, token in enumerate(tokens) if i and token == self.tokenizer.space),
            len(tokens),
        ]
        return [tokens[start:end] for start, end in itertools.pairwise(starts)]

    def _begin(self) -> int:
        """Return where the window starts: as many kept words as leave room for the next one."""
        begin = self._spoken - self._first
        length = len(self._entries[begin].ids) if begin < len(self._entries) else 0
        while begin > 0 and length + len(self._entries[begin - 1].ids) <= self.capacity:
            begin -= 1
            length += len(self._entries[begin].ids)
        return begin
