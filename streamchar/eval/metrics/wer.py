"""Word error rate of speech: what a recogniser hears compared with the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jiwer
import numpy as np
import soxr

from ...config import CLOCK
from ..arrays import Audio
from .normalise import normalise
from .sphinx_decoder import MARGIN, base_word, is_filler, process, seconds

#: Samples per second that both recognisers take.
RECOGNISER_RATE = 16_000
# Resamplings of the sentences for the confidence interval of a word error rate, and its quantiles.
_BOOTSTRAP, _INTERVAL = 1000, (0.025, 0.975)


@dataclass(frozen=True)
class HeardWord:
    """A recognised word with its start and end in seconds."""

    text: str
    start: float
    end: float


class Recogniser(Protocol):
    """Transcribes speech."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def transcribe(self, audio: Audio) -> str:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1], 24 kHz."""
        ...


class Sphinx:
    """pocketsphinx with the American English model of its package; nothing is downloaded.

    Raises:
        ImportError: pocketsphinx is not installed.
    """

    name = "pocketsphinx"

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(loglevel="FATAL")

    def transcribe(self, audio: Audio) -> str:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1], 24 kHz; empty if none is recognised."""
        return " ".join(word.text for word in self.words(audio))

    def words(self, audio: Audio) -> list[HeardWord]:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1], 24 kHz, with their times."""
        process(self._decoder, pcm16(padded(audio)))
        return [
            HeardWord(base_word(found.word), seconds(found.start_frame), seconds(found.end_frame + 1))
            for found in self._decoder.seg() or ()
            if not is_filler(found.word)
        ]


class Whisper:
    """Whisper through ``faster-whisper``, with weights from disk; nothing is downloaded.

    Args:
        directory: a model converted for CTranslate2: model.bin, config.json, tokenizer.json, vocabulary.
        threads: number of CPU threads.

    Raises:
        FileNotFoundError: the directory has no model.bin.
        ImportError: faster-whisper is not installed.
    """

    def __init__(self, directory: Path, threads: int = 2) -> None:
        if not (directory / "model.bin").is_file():
            raise FileNotFoundError(
                f"directory must contain model.bin of a Whisper model for faster-whisper, got {directory}; "
                "convert one with ct2-transformers-converter"
            )
        from faster_whisper import WhisperModel

        self.name = f"whisper {directory.name}"
        self._model = WhisperModel(
            str(directory), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def transcribe(self, audio: Audio) -> str:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1], 24 kHz."""
        # Conditioning on earlier text, or a rising temperature, would make the order of clips matter.
        segments, _ = self._model.transcribe(
            resampled(padded(audio)),
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)


@dataclass(frozen=True)
class WordErrors:
    """Word errors of a set of sentences.

    Attributes:
        substitutions: words heard as another word.
        deletions: words not heard.
        insertions: words heard that are not in the text.
        words: words in the text.
        low: 2.5 % quantile of the rate over bootstrap samples of the sentences.
        high: 97.5 % quantile.
    """

    substitutions: int
    deletions: int
    insertions: int
    words: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Errors per word of the text; exceeds 1 if there are many insertions."""
        return (self.substitutions + self.deletions + self.insertions) / self.words


def word_errors(references: Sequence[str], transcripts: Sequence[str], seed: int = 0) -> WordErrors:
    """Count word errors after normalising both sides.

    Args:
        references: the texts; see :func:`~streamchar.eval.metrics.normalise.normalise`.
        transcripts: what a recogniser heard, in the same order.
        seed: seed of the bootstrap samples.

    Raises:
        ValueError: the numbers of references and transcripts differ, there are none, or a reference has no
            words.
    """
    if len(references) != len(transcripts) or not references:
        raise ValueError(
            "references and transcripts must have equal lengths of at least 1, "
            f"got {len(references)} and {len(transcripts)}"
        )
    counts: list[tuple[int, int, int, int]] = []
    for reference, transcript in zip(map(normalise, references), map(normalise, transcripts)):
        if not reference:
            raise ValueError(f"every reference must contain a word, got {references[len(counts)]!r}")
        found = jiwer.process_words(reference, transcript)
        counts.append((found.substitutions, found.deletions, found.insertions, len(reference.split())))
    table = np.asarray(counts)
    samples = np.random.default_rng(seed).integers(0, len(table), (_BOOTSTRAP, len(table)))
    sums = table[samples].sum(1)
    low, high = np.quantile(sums[:, :3].sum(1) / sums[:, 3], _INTERVAL)
    substitutions, deletions, insertions, words = (int(total) for total in table.sum(0))
    return WordErrors(substitutions, deletions, insertions, words, float(low), float(high))


def padded(audio: Audio) -> Audio:
    """Return 24 kHz audio with the margin of silence that the decoder's times assume."""
    return np.pad(audio, round(MARGIN * CLOCK.sample_rate))


def resampled(audio: Audio) -> Audio:
    """Return 24 kHz audio at 16 kHz: [samples * 2 / 3] fp32."""
    return np.asarray(soxr.resample(audio, CLOCK.sample_rate, RECOGNISER_RATE), np.float32)


def pcm16(audio: Audio) -> bytes:
    """Return 24 kHz audio as 16-bit PCM at 16 kHz, clipped to [-1, 1]."""
    return (resampled(audio).clip(-1, 1) * 32767).astype(np.int16).tobytes()
