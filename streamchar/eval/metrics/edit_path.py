"""Edit distance between words, and phrases said twice."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby

import numpy as np

#: Indices of an expected word and of the word heard for it; None on one side for a deletion or an insertion.
Pair = tuple[int | None, int | None]


def edit_path(expected: Sequence[str], heard: Sequence[str], *, open_end: bool = False) -> list[Pair]:
    """Return a shortest edit path between two sequences of words.

    Args:
        expected: words of the text.
        heard: recognised words.
        open_end: whether expected words after the last heard one cost nothing. Among equally short paths, the
            one is chosen that covers about as many expected words as were heard.

    Returns:
        Pairs in order: (i, j) matches or substitutes, (i, None) is a deletion, (None, j) an insertion.
    """
    columns = np.arange(len(expected) + 1)
    cost = np.empty((len(heard) + 1, len(expected) + 1), np.int32)
    cost[0] = columns
    words = np.asarray(expected, dtype=object)
    for row, word in enumerate(heard, 1):
        best = cost[row - 1] + 1
        best[1:] = np.minimum(best[1:], cost[row - 1, :-1] + (words != word))
        # Each deletion costs one; a run of deletions may start at any column.
        cost[row] = np.minimum.accumulate(best - columns) + columns
    i, j = len(expected), len(heard)
    if open_end:
        ends = np.flatnonzero(cost[j] == cost[j].min())
        i = int(ends[np.abs(ends - len(heard)).argmin()])
    path: list[Pair] = []
    while i or j:
        here = cost[j, i]
        if i and j and here == cost[j - 1, i - 1] + (expected[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            path.append((i, j))
        elif i and here == cost[j, i - 1] + 1:
            i -= 1
            path.append((i, None))
        else:
            j -= 1
            path.append((None, j))
    return path[::-1]


def repeated_words(path: Sequence[Pair], heard: Sequence[str], before: Sequence[str] = ()) -> set[int]:
    """Return the indices of inserted words that repeat their neighbourhood.

    Each run of inserted words is searched for, in order, among the words before it and among those after it,
    over 1.5 times the length of the run. The words found count as repeated if they are more than half of the
    run. A looser rule would count many single words that the recogniser made up.

    Args:
        path: result of :func:`edit_path`.
        heard: the words that it was computed from.
        before: expected words that were heard before these.
    """
    repeated: set[int] = set()
    for inserted, steps in groupby(range(len(path)), key=lambda step: path[step][0] is None):
        if not inserted:
            continue
        run = list(steps)
        indices = [j for _, j in path[run[0] : run[-1] + 1] if j is not None]
        words, reach = [heard[j] for j in indices], len(run) * 3 // 2
        words_before = [*before, *words_matched(path[: run[0]], heard)][-reach:]
        words_after = words_matched(path[run[-1] + 1 :], heard)[:reach]
        # If a phrase is said twice, the path may match the start of the first time and the end of the second.
        # Then one part of the run is found after it and the other part before it.
        found = _common(words, words_before) | _common(words, words_after)
        if 2 * len(found) > len(words):
            repeated.update(indices[k] for k in found)
    return repeated


def words_matched(path: Sequence[Pair], heard: Sequence[str]) -> list[str]:
    """Return the heard words of a path that stand for an expected word."""
    return [heard[j] for i, j in path if i is not None and j is not None]


def _common(words: Sequence[str], others: Sequence[str]) -> set[int]:
    """Return the indices of the words that ``others`` contains in the same order."""
    blocks = SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    return {k for block in blocks for k in range(block.a, block.a + block.size)}
