"""Word error rate of speech: what a recogniser hears against what was to be said."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jiwer
import numpy as np
import numpy.typing as npt
import soxr

from .normalise import normalise

SAMPLE_RATE = 24_000
#: What both recognisers take.
RECOGNISER_RATE = 16_000
#: Silence put around a recording, in seconds: recognisers drop words that begin at once.
MARGIN = 0.2
#: Seconds of a frame of pocketsphinx.
FRAME = 0.01

Audio = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeardWord:
    """A word that a recogniser heard, and when, in seconds."""

    text: str
    start: float
    end: float


class Recogniser(Protocol):
    """Write down what is heard."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def transcribe(self, audio: Audio) -> str:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1] at 24 kHz."""
        ...


class Sphinx:
    """pocketsphinx with the American English model of its package; nothing is downloaded."""

    name = "pocketsphinx"

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(loglevel="FATAL")

    def transcribe(self, audio: Audio) -> str:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1] at 24 kHz; empty where it hears none."""
        return " ".join(word.text for word in self.words(audio))

    def words(self, audio: Audio) -> list[HeardWord]:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1] at 24 kHz, and when they are heard."""
        self._decoder.start_utt()
        self._decoder.process_raw(pcm16(padded(audio)), full_utt=True)
        self._decoder.end_utt()
        # Silence and noise are written in brackets, and which pronunciation it was behind the word.
        return [
            HeardWord(
                found.word.split("(")[0],
                max(found.start_frame * FRAME - MARGIN, 0.0),
                max((found.end_frame + 1) * FRAME - MARGIN, 0.0),
            )
            for found in self._decoder.seg() or ()
            if found.word[0] not in "<["
        ]


class Whisper:
    """Whisper through ``faster-whisper``, from weights on disk; nothing is downloaded.

    Args:
        directory: a model converted for CTranslate2: model.bin, config.json, tokenizer.json, vocabulary.
        threads: CPU threads.

    Raises:
        FileNotFoundError: there is no model.bin, with where one comes from.
    """

    def __init__(self, directory: Path, threads: int = 2) -> None:
        if not (directory / "model.bin").is_file():
            raise FileNotFoundError(
                f"directory must hold model.bin of a Whisper model for faster-whisper, got {directory}; "
                "ct2-transformers-converter writes one"
            )
        from faster_whisper import WhisperModel

        self.name = f"whisper {directory.name}"
        self._model = WhisperModel(
            str(directory), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def transcribe(self, audio: Audio) -> str:
        """Return the words of ``audio``, [samples] fp32 in [-1, 1] at 24 kHz."""
        # What it heard before, or a temperature that rises, would make a score depend on the order of clips.
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
    """Errors of a set of sentences.

    Attributes:
        substitutions: words heard as another.
        deletions: words not heard.
        insertions: words heard and not said.
        words: said.
        low: 2.5 % quantile of the rate when sentences are drawn anew.
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
        """Errors a word said; above 1 where much was heard that was not said."""
        return (self.substitutions + self.deletions + self.insertions) / self.words


def word_errors(said: Sequence[str], heard: Sequence[str], seed: int = 0) -> WordErrors:
    """Count word errors over sentences, after :func:`~streamchar.eval.normalise.normalise` on both sides.

    Args:
        said: transcripts.
        heard: what the recogniser wrote, in the same order.
        seed: of the resampling that gives the interval.

    Raises:
        ValueError: numbers of sentences differ, or a transcript has no word.
    """
    if len(said) != len(heard) or not said:
        raise ValueError(f"said and heard must be as many and at least 1, got {len(said)} and {len(heard)}")
    counts: list[tuple[int, int, int, int]] = []
    for reference, hypothesis in zip(map(normalise, said), map(normalise, heard)):
        if not reference:
            raise ValueError(f"every transcript must have a word, got {said[len(counts)]!r}")
        found = jiwer.process_words(reference, hypothesis)
        counts.append((found.substitutions, found.deletions, found.insertions, len(reference.split())))
    table = np.asarray(counts)
    draws = np.random.default_rng(seed).integers(0, len(table), (1000, len(table)))
    drawn = table[draws].sum(1)
    low, high = np.quantile(drawn[:, :3].sum(1) / drawn[:, 3], (0.025, 0.975))
    substitutions, deletions, insertions, words = (int(total) for total in table.sum(0))
    return WordErrors(substitutions, deletions, insertions, words, float(low), float(high))


def padded(audio: Audio) -> Audio:
    """Return 24 kHz audio with a silence of :data:`MARGIN` before and after it."""
    return np.pad(audio, round(MARGIN * SAMPLE_RATE))


def resampled(audio: Audio) -> Audio:
    """Return 24 kHz audio at 16 kHz: [samples * 2 / 3] fp32."""
    return np.asarray(soxr.resample(audio, SAMPLE_RATE, RECOGNISER_RATE), np.float32)


def pcm16(audio: Audio) -> bytes:
    """Return 24 kHz audio as 16 kHz, 16 bit PCM, clipped to [-1, 1]."""
    return (resampled(audio).clip(-1, 1) * 32767).astype(np.int16).tobytes()
