"""The window of the transcript that the model sees; it advances as the text is spoken.

The unit is the word. Each word is tokenised on its own, with the space before it, so its tokens do not depend
on how the text was split into pieces, and a window never ends inside a word.
"""

import itertools
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..errors import ArgumentError
from .normalize import MAX_CHARACTERS, TextError, clean_text
from .tokenizers import Tokenizer

# Scripts written without spaces: every character is a word, with the punctuation that follows it.
_IDEOGRAPH = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_WORD = re.compile(rf"\s*(?:{_IDEOGRAPH}[^\w\s]*|(?:(?!{_IDEOGRAPH})\S)+)")


@dataclass(frozen=True)
class Word:
    """A word and its token span in the window.

    Attributes:
        index: number of the word since the window was created, from 0. In :attr:`TextWindow.words`, where a
            word longer than the window is split into parts, the number of the part.
        text: the word with its punctuation, without spaces.
        start: first token of the word, counted from the beginning of the window.
        end: one past the last token.
    """

    index: int
    text: str
    start: int
    end: int


class _Entry(NamedTuple):
    """A word, or one part of a word longer than the window; only the last part carries the text."""

    text: str
    ids: tuple[int, ...]


class TextWindow:
    """The part of the transcript that the model sees.

    For each chunk, :meth:`fill` chooses the window, the chunk is made, and :meth:`advance` reports how far
    the speech has come. A window begins a few words before the next word to speak and contains as many words
    as fit. Text can be appended at any time; it enters the window with the next :meth:`fill`. The content
    depends only on the text and the positions, not on how the text was split into pieces. Words spoken long
    ago are forgotten, so memory use does not grow in an endless session.

    Args:
        tokenizer: turns words into tokens.
        capacity: number of tokens in the window.
        keep_words: number of spoken words kept before the next one, if they fit.

    Raises:
        ArgumentError: ``capacity`` is below 1 or ``keep_words`` is below 0.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int, keep_words: int = 4) -> None:
        ArgumentError.require(capacity >= 1, "capacity", "at least 1 token", capacity)
        ArgumentError.require(keep_words >= 0, "keep_words", "at least 0", keep_words)
        self.tokenizer, self.capacity, self.keep_words = tokenizer, capacity, keep_words
        self._entries: list[_Entry] = []  # without the forgotten ones
        self._tail = ""  # the last word, until a space or the end of the text completes it
        self._chars_pending = 0  # of complete words not yet spoken
        self._words: tuple[Word, ...] = ()
        # All of these count from the creation of the window.
        self._entries_forgotten = self._entries_spoken = self._words_spoken = 0
        self._tokens_forgotten = self._tokens_before_window = 0
        self._tokens_spoken = 0.0  # with fractions, and with the tokens that were discarded

    @property
    def words(self) -> tuple[Word, ...]:
        """Words of the current window with their token spans."""
        return self._words

    @property
    def words_spoken(self) -> int:
        """Number of words spoken so far, which is also the index of the next word."""
        return self._words_spoken

    @property
    def words_waiting(self) -> int:
        """Number of complete words not yet spoken."""
        return sum(bool(entry.text) for entry in self._entries[self._next_entry() :])

    @property
    def exhausted(self) -> bool:
        """Whether every complete word has been spoken. :meth:`finish` completes the last word."""
        return self._next_entry() == len(self._entries)

    @property
    def origin(self) -> int:
        """Number of tokens of the text before the current window."""
        return self._tokens_before_window

    @property
    def progress(self) -> float:
        """Tokens of the current window that have been spoken, with fractions."""
        # A word counts as spoken while its second half sounds, so the next window can begin behind the
        # tokens spoken; its progress is then 0.
        return max(self._tokens_spoken - self._tokens_before_window, 0.0)

    @property
    def tokens_reached(self) -> float:
        """Tokens spoken or discarded since the window was created, with fractions."""
        return self._tokens_spoken

    @property
    def tokens_remaining(self) -> float:
        """Tokens of complete words not yet spoken, with fractions; 0 once the last sound has faded."""
        return self._tokens_forgotten + _token_count(self._entries) - self._tokens_spoken

    def append(self, piece: str) -> None:
        """Append a piece of text. A word is complete when a space follows it or :meth:`finish` is called.

        Raises:
            TextError: :func:`clean_text` refuses the piece, more than :data:`MAX_CHARACTERS` characters would
                be waiting to be spoken, or a word has no tokens or more tokens than the window. The window
                is then unchanged.
        """
        text = self._tail + clean_text(piece, self.tokenizer.script, self._tail[-1:])
        if self._chars_pending + len(text) > MAX_CHARACTERS:
            raise TextError(
                f"leave at most {MAX_CHARACTERS} characters waiting to be spoken",
                str(self._chars_pending + len(text)),
                "append more once some of it has been spoken",
            )
        text = unicodedata.normalize("NFC", text)
        words = _WORD.findall(text)
        if text[-1:].isspace() or not words:
            self._add_words(words, text[-1:])
        else:
            self._add_words(words[:-1], words[-1])

    def finish(self) -> None:
        """Complete the last word: no more text belongs to it.

        Raises:
            TextError: the word has no tokens, or more tokens than the window; it is dropped.
        """
        tail, self._tail = self._tail, " "
        self._add_words(_WORD.findall(tail), " ")

    def fill(self, ids: torch.Tensor) -> int:
        """Choose the next window and write its tokens into a buffer, in place.

        Args:
            ids: [capacity] int64; places behind the window get the padding id.

        Returns:
            Number of tokens written. :attr:`words` and the pointer's positions refer to this window.

        Raises:
            ArgumentError: ``ids`` has another shape.
        """
        ArgumentError.require(
            ids.shape == (self.capacity,),
            "ids",
            f"of shape [capacity] = [{self.capacity}]",
            list(ids.shape),
        )
        tokens: list[int] = []
        words: list[Word] = []
        begin = self._window_start()
        self._tokens_before_window = self._tokens_forgotten + _token_count(self._entries[:begin])
        for index, entry in enumerate(
            self._entries[begin : begin + self.capacity], self._entries_forgotten + begin
        ):
            end = len(tokens) + len(entry.ids)
            if end > self.capacity:
                break
            words.append(Word(index, entry.text, len(tokens), end))
            tokens += entry.ids
        self._words = tuple(words)
        ids.copy_(torch.tensor(tokens + [self.tokenizer.pad] * (self.capacity - len(tokens))))
        return len(tokens)

    def advance(self, position: float) -> tuple[Word, ...]:
        """Record the position of the pointer and return the words spoken since the last call.

        A word is spoken once more than half of its tokens are. A position that falls back does not make any
        word unspoken.

        Args:
            position: tokens from the beginning of the current window.
        """
        spoken = tuple(
            word
            for word in self._words
            if word.index >= self._entries_spoken
            and (2 * position > word.start + word.end or position >= word.end)
        )
        # Text behind the end of the window is not spoken, and a position that falls back must not move the
        # next window back.
        end = self._words[-1].end if self._words else 0
        self._tokens_spoken = max(self._tokens_spoken, self._tokens_before_window + min(position, end))
        self._entries_spoken += len(spoken)
        whole = [word for word in spoken if word.text]
        self._chars_pending -= sum(len(word.text) + 1 for word in whole)
        self._forget(max(self._next_entry() - self.keep_words, 0))
        first = self._words_spoken
        self._words_spoken += len(whole)
        return tuple(replace(word, index=index) for index, word in enumerate(whole, first))

    def discard_unspoken(self) -> int:
        """Discard all text not yet spoken, as an interruption does, and return the number of words spoken."""
        del self._entries[self._next_entry() :]
        self._words = tuple(word for word in self._words if word.index < self._entries_spoken)
        self._tail, self._chars_pending = " ", 0
        self._tokens_spoken += self.tokens_remaining
        return self._words_spoken

    def _next_entry(self) -> int:
        """Return the position in the entries of the first one not yet spoken."""
        return self._entries_spoken - self._entries_forgotten

    def _forget(self, count: int) -> None:
        self._tokens_forgotten += _token_count(self._entries[:count])
        del self._entries[:count]
        self._entries_forgotten += count

    def _add_words(self, words: list[str], tail: str) -> None:
        """Tokenise complete words, each with the spaces before it, and keep ``tail`` for the next piece."""
        entries: list[_Entry] = []
        for word in words:
            text = word.lstrip()
            # The first word of all has no word before it that a space would separate.
            spaced = text != word and bool(self._entries_forgotten or self._entries or entries)
            tokens = tuple(self.tokenizer.encode(" " + text if spaced else text))
            if not tokens and any(character.isalnum() for character in text):
                raise TextError(
                    "have words that the voice can read", repr(text[:20]), "write it as it is to be read"
                )
            parts = [tokens] if len(tokens) <= self.capacity else self._split_at_spaces(tokens)
            if (longest := max(map(len, parts))) > self.capacity:
                raise TextError(
                    f"have words of at most {self.capacity} tokens, the size of the window",
                    f"one of {longest} tokens, {text[:20]!r}...",
                    "spell it out with spaces, as it is to be read",
                )
            entries += [_Entry("", part) for part in parts[:-1]] + [_Entry(text, parts[-1])]
        self._entries += entries
        self._chars_pending += sum(len(entry.text) + 1 for entry in entries if entry.text)
        self._tail = tail

    def _split_at_spaces(self, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the spoken words of a long number, each with the space before it."""
        starts = [
            0,
            *(i for i, token in enumerate(tokens) if i and token == self.tokenizer.space),
            len(tokens),
        ]
        return [tokens[start:end] for start, end in itertools.pairwise(starts)]

    def _window_start(self) -> int:
        """Return the entry that starts the window: the earliest one that leaves room for the next word."""
        begin = self._next_entry()
        length = len(self._entries[begin].ids) if begin < len(self._entries) else 0
        while begin > 0 and length + len(self._entries[begin - 1].ids) <= self.capacity:
            begin -= 1
            length += len(self._entries[begin].ids)
        return begin


def _token_count(entries: list[_Entry]) -> int:
    return sum(len(entry.ids) for entry in entries)
