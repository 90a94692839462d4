"""Long streams scored in a process of its own, so that the memory of the one that speaks is its engine's.

What scores takes memory too: a megabyte in the first ten minutes, mostly the recogniser's tables.
"""

import signal
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

from .align import Aligner
from .long import Frames, Instruments, Scorer, StreamScores, remembered
from .skips import SkipFinder
from .streams import LongSource, Part, Script, voice_statistics
from .wer import Sphinx

# In the process that scores alone.
_instruments: Instruments
_scorer: Scorer


class Judge:
    """Score streams.

    A context manager: its process ends with it.

    Args:
        size: height and width of all pictures.
        identities: characters of the gallery, at least 2.

    Raises:
        ImportError: pocketsphinx is not installed.
    """

    def __init__(self, size: tuple[int, int], identities: int) -> None:
        # The process itself could only break.
        import_module("pocketsphinx")
        # One that is forked would begin with the memory, and the locks of the threads, of this one.
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _start, (size, identities))

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def score(self, source: LongSource, script: Script, chunk: float) -> tuple[StreamScores, Frames]:
        """Let a source speak a script here, and score it there.

        Neither works while the other does: what a chunk takes is measured.

        Args:
            source: who speaks.
            script: what.
            chunk: seconds between the places where chunks meet, or would.

        Returns:
            The scores, and frames of the minutes :data:`~streamchar.eval.long.SHOWN`,
            [rows, columns, height, width, 3].

        Raises:
            ValueError: nothing was spoken. A fault of scoring is raised as it was.
        """
        self._process.submit(_begin, script, chunk).result()
        for part in remembered(source.parts(script)):
            self._process.submit(_add, part).result()
        return self._process.submit(_finish).result()


def _start(size: tuple[int, int], identities: int) -> None:
    from ..data.speech import Speaker

    global _instruments
    # Ctrl-C reaches both processes, and the one that speaks ends the other.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    speaker = Speaker()
    aligner = Aligner(speaker.tokenizer.g2p)
    hearing = Sphinx(), aligner, SkipFinder(aligner)
    _instruments = Instruments(*hearing, voice_statistics(speaker), size, identities)


def _begin(script: Script, chunk: float) -> None:
    global _scorer
    _scorer = Scorer(script, _instruments, chunk)


def _add(part: Part) -> None:
    _scorer.add(part)


def _finish() -> tuple[StreamScores, Frames]:
    return _scorer.finish()
