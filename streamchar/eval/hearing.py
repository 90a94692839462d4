"""The recogniser of long streams in a process of its own, so that its memory is not counted as the engine's.

pocketsphinx takes new memory for tables of its own at any time, a megabyte after five minutes, which says
nothing about who speaks.
"""

import signal
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

from .align import Aligner, TimedWord
from .skips import SkipFinder
from .wer import Audio, HeardWord, Sphinx

# In the process that hears alone.
_sphinx: Sphinx
_aligner: Aligner
_finder: SkipFinder


class Hearing:
    """Hear words, find known ones and tell which are missing, as :class:`~streamchar.eval.wer.Sphinx`,
    :class:`~streamchar.eval.align.Aligner` and :class:`~streamchar.eval.skips.SkipFinder` do.

    A context manager: its process ends with it. A fault there is raised here.

    Raises:
        ImportError: pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        # The process itself could only break.
        import_module("pocketsphinx")
        # A process that is forked would begin with the memory, and the threads' locks, of this one.
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _start)

    def __enter__(self) -> "Hearing":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def words(self, audio: Audio) -> list[HeardWord]:
        """Return what is heard, see :meth:`~streamchar.eval.wer.Sphinx.words`."""
        return self._process.submit(_words, audio).result()

    def align_words(self, audio: Audio, words: Sequence[str]) -> list[TimedWord] | None:
        """Return known words, see :meth:`~streamchar.eval.align.Aligner.align_words`."""
        return self._process.submit(_align_words, audio, words).result()

    def missing(self, audio: Audio, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
        """Return missing words, see :meth:`~streamchar.eval.skips.SkipFinder.missing`."""
        return self._process.submit(_missing, audio, words, doubtful).result()


def _start() -> None:
    from ..tokenizers import PhonemeTokenizer

    global _sphinx, _aligner, _finder
    # Ctrl-C reaches both processes; the one that asks decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _sphinx, _aligner = Sphinx(), Aligner(PhonemeTokenizer().g2p)
    _finder = SkipFinder(_aligner)


def _words(audio: Audio) -> list[HeardWord]:
    return _sphinx.words(audio)


def _align_words(audio: Audio, words: Sequence[str]) -> list[TimedWord] | None:
    return _aligner.align_words(audio, words)


def _missing(audio: Audio, words: Sequence[str], doubtful: Collection[int]) -> set[int] | None:
    return _finder.missing(audio, words, doubtful)
