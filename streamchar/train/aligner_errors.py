"""Measure the aligner against the true times of recordings that it was not trained on.

``python -m streamchar.train.aligner_errors [DIRECTORY]`` prints a table; DIRECTORY is that of the training.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import preset
from ..data.corpus import Corpus, Recording
from .aligner import FrameClassifier, align, held_out
from .cli import DIRECTORY
from .stages import Workshop

Floats = npt.NDArray[np.float64]
#: Frames of a piece that ends, and mostly begins, in the middle of the text.
PIECE = 64


@dataclass(frozen=True)
class Case:
    """Audio, the text it is held to be, and the truth.

    Attributes:
        latents: [frames, channels] fp32.
        tokens: of the text.
        times: [points] when as many tokens as ``places`` says have been said, in frames; never falling.
        places: [points] tokens.
        words: tokens before each word, and all of them.
        start: tokens said before the audio begins.
    """

    latents: Tensor
    tokens: tuple[int, ...]
    times: Floats
    places: Floats
    words: tuple[int, ...]
    start: float = 0.0

    @classmethod
    def of(cls, recording: Recording, latents: Tensor) -> "Case":
        """Return a recording as it is, given the latents of the whole corpus."""
        times = np.concatenate(([0.0], recording.ends.astype(np.float64)))
        first = recording.first_frame
        return cls(
            latents[first : first + recording.frames].float(),
            tuple(recording.tokens.tolist()),
            times,
            np.arange(len(times), dtype=np.float64),
            (0, *recording.words.tolist()),
        )


def noisy(case: Case, rng: np.random.Generator) -> Case:
    """Add as much noise as the history of a chunk is trained with."""
    noise = torch.from_numpy(rng.standard_normal(tuple(case.latents.shape), np.float32))
    return replace(case, latents=case.latents + 0.3 * noise)


def slower(case: Case, rng: np.random.Generator) -> Case:
    """Stretch by a tenth."""
    return _stretched(case, 1.1)


def faster(case: Case, rng: np.random.Generator) -> Case:
    """Shrink by a tenth."""
    return _stretched(case, 0.9)


def text_lacks_word(case: Case, rng: np.random.Generator) -> Case:
    """Drop a word of the text: while it is said the place stays."""
    first, last = _word(case, rng)
    tokens = case.tokens[:first] + case.tokens[last:]
    times = np.concatenate((case.times[: first + 1], case.times[last:]))
    places = np.concatenate((case.places[: first + 1], case.places[last:] - (last - first)))
    return replace(case, tokens=tokens, times=times, places=places)


def audio_lacks_word(case: Case, rng: np.random.Generator) -> Case:
    """Cut a word out of the audio, to whole frames: the place jumps."""
    first, last = _word(case, rng)
    start, end = round(case.times[first]), round(case.times[last])
    times = np.where(case.times < end, np.minimum(case.times, start), case.times - (end - start))
    return replace(case, latents=torch.cat((case.latents[:start], case.latents[end:])), times=times)


def piece(case: Case, rng: np.random.Generator) -> Case:
    """Cut a piece out of the middle, told where it begins to within 0.4 tokens, as a pointer would."""
    first = int(rng.integers(max(int(case.times[-1]) - PIECE, 1)))
    said = np.interp(first, case.times, case.places) + rng.normal(0, 0.4)
    start = float(np.clip(said, 0, len(case.tokens)))
    return replace(case, latents=case.latents[first : first + PIECE], times=case.times - first, start=start)


#: What is done to recordings, by name.
CHANGES: dict[str, Callable[[Case, np.random.Generator], Case]] = {
    "clean": lambda case, rng: case,
    "noise 0.3": noisy,
    "10 % slower": slower,
    "10 % faster": faster,
    "text lacks a word": text_lacks_word,
    "audio lacks a word": audio_lacks_word,
    "piece": piece,
}


def changed(corpus: Corpus, latents: Tensor, change: str, indices: range) -> Iterator[Case]:
    """Yield recordings after a change, drawn from their numbers."""
    for index in indices:
        yield CHANGES[change](Case.of(corpus[index], latents), np.random.default_rng(index))


@torch.inference_mode()
def errors(classifier: FrameClassifier, case: Case) -> tuple[Floats, Floats]:
    """Return how far off the aligner is.

    Returns:
        Tokens at the end of each frame until the text has ended, and frames at the end of each token that
        ends within the audio and a frame away from its ends.
    """
    count = len(case.latents)
    place = align(classifier(case.latents[None])[0], case.tokens, case.start).double().numpy()
    truth = np.interp(np.arange(1, count + 1), case.times, case.places)
    spoken = min(count, int(np.ceil(case.times[-1])))
    inside = (case.times > 1) & (case.times < count - 1)
    # A place at which the aligner stays is left at its end.
    rising = np.append(case.start, place) + 1e-7 * np.arange(count + 1)
    found = np.interp(case.places[inside], rising, np.arange(count + 1))
    return (place - truth)[:spoken], found - case.times[inside]


def main(directory: Path) -> None:
    """Print the median, the 95th percentile and the largest error after every change."""
    workshop = Workshop(directory, preset("tiny"), torch.device("cpu"))
    classifier, corpus, latents = workshop.aligner(), workshop.corpus(), workshop.audio()
    indices = range(len(corpus) - held_out(corpus), len(corpus))
    print(f"{len(indices)} recordings: errors in tokens, in frames, in tokens at the last frame of a piece")
    for change in CHANGES:
        found = [errors(classifier, case) for case in changed(corpus, latents, change, indices)]
        parts = [np.concatenate(each) for each in zip(*found, strict=True)]
        if change == "piece":
            parts.append(np.array([tokens[-1] for tokens, _ in found]))
        columns = [np.percentile(np.abs(part), (50, 95, 100)) for part in parts]
        print(f"{change:20}" + "".join("{:8.2f}{:6.2f}{:6.1f}".format(*column) for column in columns))


def _stretched(case: Case, factor: float) -> Case:
    count = len(case.latents)
    source = ((np.arange(int(count * factor)) + 0.5) / factor - 0.5).clip(0, count - 1)
    before = np.minimum(source.astype(np.int64), count - 2)
    share = torch.from_numpy((source - before).astype(np.float32))[:, None]
    latents = case.latents[before].lerp(case.latents[before + 1], share)
    return replace(case, latents=latents, times=case.times * factor)


def _word(case: Case, rng: np.random.Generator) -> tuple[int, int]:
    """Return the tokens from and to of a word that is neither the first nor the last."""
    index = int(rng.integers(1, len(case.words) - 2))
    return case.words[index], case.words[index + 1]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else DIRECTORY).expanduser())
