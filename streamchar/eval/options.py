"""Options of the evaluation commands, one dataclass per command; imports nothing that takes time to load."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShortOptions:
    """Options of ``streamchar eval short``.

    Attributes:
        checkpoint: directory of the engine to score; None to score only the ground truth.
        teacher: directory of the many-step engine that it was distilled from.
        whisper: directory of Whisper weights, for a second recogniser.
        sentences: number of sentences.
        identities: number of characters in the gallery.
        side: height and width of the pictures in pixels; used without a checkpoint.
        seed: seed of sentences, motion and noise.
        out: JSON file to write.
    """

    checkpoint: Path | None
    teacher: Path | None
    whisper: Path | None
    sentences: int
    identities: int
    side: int
    seed: int
    out: Path


@dataclass(frozen=True)
class LongOptions:
    """Options of ``streamchar eval long``.

    Attributes:
        checkpoint: directory of the engine to score; None to score only the ground truth.
        name: name of the engine in the table.
        minutes: length of a stream.
        streams: number of streams, each with its own text and character.
        identities: number of characters in the gallery.
        side: height and width of the pictures in pixels; used without a checkpoint.
        sink: latents of the first chunk that stay in the cache; None for the preset's number.
        motion: latents of the last chunk that stay in the cache; None for the preset's number.
        without_pointer: follow planned durations instead of the pointer.
        interrupt_every: mean seconds between interruptions; None for no interruptions.
        each_sentence: speak every sentence in its own session.
        seed: seed of texts, motion and noise.
        out: directory of the results.
    """

    checkpoint: Path | None
    name: str
    minutes: int
    streams: int
    identities: int
    side: int
    sink: int | None
    motion: int | None
    without_pointer: bool
    interrupt_every: float | None
    each_sentence: bool
    seed: int
    out: Path
