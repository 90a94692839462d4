"""Score long streams in a separate process, so that the measured memory is only the engine's.

Scoring needs memory too: a megabyte in the first ten minutes, mostly for tables of the recogniser.
"""

import signal
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

from ..arrays import Frames
from ..metrics.align import ForcedAligner
from ..metrics.skips import SkipFinder
from ..metrics.wer import Sphinx
from .instruments import Instruments, voice_statistics
from .memory_use import with_memory
from .scorer import Scorer
from .script import Script
from .stream_scores import StreamScores
from .streams import LongSource, StreamPiece

# Set only in the scoring process.
_instruments: Instruments
_scorer: Scorer


class ScoringProcess:
    """A process that scores streams. Use it as a context manager, which ends the process.

    Args:
        size: height and width of all pictures.
        identities: number of characters in the gallery, at least 2.

    Raises:
        ImportError: pocketsphinx is not installed.
    """

    def __init__(self, size: tuple[int, int], identities: int) -> None:
        # A missing package is reported here; in the other process it would only break the pool.
        import_module("pocketsphinx")
        # A forked process would start with this one's memory and with the locks of its threads.
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _start, (size, identities))

    def __enter__(self) -> "ScoringProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def score(self, source: LongSource, script: Script, chunk_seconds: float) -> tuple[StreamScores, Frames]:
        """Speak a script in this process and score it in the other one.

        The processes take turns, because the time of each chunk is measured.

        Args:
            source: what speaks.
            script: what it says.
            chunk_seconds: length of a chunk; for sources without chunks, the edges of chunks are still
                assumed.

        Returns:
            The scores, and frames of the minutes :data:`~streamchar.eval.long.scorer.SHEET_MINUTES`,
            [rows, columns, height, width, 3] uint8.

        Raises:
            ValueError: the source returned no media.
            Exception: an error of the scoring process, unchanged.
        """
        self._process.submit(_begin, script, chunk_seconds).result()
        for piece in with_memory(source.pieces(script)):
            self._process.submit(_add, piece).result()
        return self._process.submit(_finish).result()


def _start(size: tuple[int, int], identities: int) -> None:
    from ...data.speech import Speaker

    global _instruments
    # Ctrl-C reaches both processes; the speaking process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    speaker = Speaker()
    aligner = ForcedAligner(speaker.tokenizer.g2p)
    _instruments = Instruments(
        listener=Sphinx(),
        aligner=aligner,
        skip_finder=SkipFinder(aligner),
        voice=voice_statistics(speaker),
        size=size,
        identities=identities,
    )


def _begin(script: Script, chunk_seconds: float) -> None:
    global _scorer
    _scorer = Scorer(script, _instruments, chunk_seconds)


def _add(piece: StreamPiece) -> None:
    _scorer.add(piece)


def _finish() -> tuple[StreamScores, Frames]:
    return _scorer.finish()
