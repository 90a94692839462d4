"""Measure the errors of the aligner on held-out recordings with known token times.

``python -m streamchar.train.stages.aligner_errors [DIRECTORY]`` prints a table. DIRECTORY is the directory of
``streamchar train``.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...config import preset
from ...data.corpus import Corpus, Recording
from ..cli import DIRECTORY
from ..workshop import Workshop
from .aligner import FrameClassifier, align, held_out

Floats = npt.NDArray[np.float64]
#: Frames of an excerpt.
EXCERPT = 64


@dataclass(frozen=True)
class AlignmentCase:
    """Audio, the text to align it with, and the true alignment.

    Attributes:
        latents: [frames, channels] fp32, the audio.
        tokens: tokens of the text.
        times: [points], times in frames, non-decreasing.
        places: [points], tokens spoken at these times.
        words: number of tokens before each word, then the total.
        start: tokens spoken before the audio begins.
    """

    latents: Tensor
    tokens: tuple[int, ...]
    times: Floats
    places: Floats
    words: tuple[int, ...]
    start: float = 0.0

    @classmethod
    def of(cls, recording: Recording, latents: Tensor) -> "AlignmentCase":
        """Return the unchanged recording, given the audio latents of the whole corpus."""
        times = np.concatenate(([0.0], recording.ends.astype(np.float64)))
        first = recording.first_frame
        return cls(
            latents[first : first + recording.frames].float(),
            tuple(recording.tokens.tolist()),
            times,
            np.arange(len(times), dtype=np.float64),
            (0, *recording.words.tolist()),
        )


def noisy(case: AlignmentCase, rng: np.random.Generator) -> AlignmentCase:
    """Add noise at the highest level of the training history."""
    noise = torch.from_numpy(rng.standard_normal(tuple(case.latents.shape), np.float32))
    return replace(case, latents=case.latents + 0.3 * noise)


def slower(case: AlignmentCase, rng: np.random.Generator) -> AlignmentCase:
    """Stretch the audio by a tenth."""
    return _stretched(case, 1.1)


def faster(case: AlignmentCase, rng: np.random.Generator) -> AlignmentCase:
    """Shorten the audio by a tenth."""
    return _stretched(case, 0.9)


def text_lacks_word(case: AlignmentCase, rng: np.random.Generator) -> AlignmentCase:
    """Remove a word from the text; the position stays constant while the word sounds."""
    first, last = _word(case, rng)
    tokens = case.tokens[:first] + case.tokens[last:]
    times = np.concatenate((case.times[: first + 1], case.times[last:]))
    places = np.concatenate((case.places[: first + 1], case.places[last:] - (last - first)))
    return replace(case, tokens=tokens, times=times, places=places)


def audio_lacks_word(case: AlignmentCase, rng: np.random.Generator) -> AlignmentCase:
    """Remove a word from the audio, in whole frames; the position jumps over it."""
    first, last = _word(case, rng)
    start, end = round(case.times[first]), round(case.times[last])
    times = np.where(case.times < end, np.minimum(case.times, start), case.times - (end - start))
    return replace(case, latents=torch.cat((case.latents[:start], case.latents[end:])), times=times)


def excerpt(case: AlignmentCase, rng: np.random.Generator) -> AlignmentCase:
    """Cut out an excerpt; its start is known with the error of a pointer, a deviation of 0.4 tokens."""
    first = int(rng.integers(max(int(case.times[-1]) - EXCERPT, 1)))
    said = np.interp(first, case.times, case.places) + rng.normal(0, 0.4)
    start = float(np.clip(said, 0, len(case.tokens)))
    return replace(case, latents=case.latents[first : first + EXCERPT], times=case.times - first, start=start)


#: Changes of a recording that the aligner is measured under, by name.
CHANGES: dict[str, Callable[[AlignmentCase, np.random.Generator], AlignmentCase]] = {
    "clean": lambda case, rng: case,
    "noise 0.3": noisy,
    "10 % slower": slower,
    "10 % faster": faster,
    "text lacks a word": text_lacks_word,
    "audio lacks a word": audio_lacks_word,
    "excerpt": excerpt,
}


def changed(corpus: Corpus, latents: Tensor, change: str, indices: range) -> Iterator[AlignmentCase]:
    """Yield recordings after a change; its random numbers are seeded with the index of the recording."""
    for index in indices:
        yield CHANGES[change](AlignmentCase.of(corpus[index], latents), np.random.default_rng(index))


@torch.inference_mode()
def errors(classifier: FrameClassifier, case: AlignmentCase) -> tuple[Floats, Floats]:
    """Return the errors of the aligner.

    Returns:
        Errors of the position in tokens, for each frame until the text has ended; and errors of the time in
        frames, for the end of each token that is more than a frame away from both ends of the audio.
    """
    count = len(case.latents)
    place = align(classifier(case.latents[None])[0], case.tokens, case.start).double().numpy()
    truth = np.interp(np.arange(1, count + 1), case.times, case.places)
    spoken = min(count, int(np.ceil(case.times[-1])))
    inside = (case.times > 1) & (case.times < count - 1)
    # Strictly rising, so that a position held for several frames is found at the last of them.
    rising = np.append(case.start, place) + 1e-7 * np.arange(count + 1)
    found = np.interp(case.places[inside], rising, np.arange(count + 1))
    return (place - truth)[:spoken], found - case.times[inside]


def main(directory: Path) -> None:
    """Print the median, the 95th percentile and the maximum of the errors under every change."""
    workshop = Workshop(directory, preset("tiny"), torch.device("cpu"))
    classifier, corpus, latents = workshop.aligner(), workshop.corpus(), workshop.audio()
    indices = range(len(corpus) - held_out(corpus), len(corpus))
    print(
        f"{len(indices)} recordings: errors in tokens, in frames, in tokens at the last frame of an excerpt"
    )
    for change in CHANGES:
        found = [errors(classifier, case) for case in changed(corpus, latents, change, indices)]
        parts = [np.concatenate(each) for each in zip(*found, strict=True)]
        if change == "excerpt":
            parts.append(np.array([tokens[-1] for tokens, _ in found]))
        columns = [np.percentile(np.abs(part), (50, 95, 100)) for part in parts]
        print(f"{change:20}" + "".join("{:8.2f}{:6.2f}{:6.1f}".format(*column) for column in columns))


def _stretched(case: AlignmentCase, factor: float) -> AlignmentCase:
    count = len(case.latents)
    source = ((np.arange(int(count * factor)) + 0.5) / factor - 0.5).clip(0, count - 1)
    before = np.minimum(source.astype(np.int64), count - 2)
    share = torch.from_numpy((source - before).astype(np.float32))[:, None]
    latents = case.latents[before].lerp(case.latents[before + 1], share)
    return replace(case, latents=latents, times=case.times * factor)


def _word(case: AlignmentCase, rng: np.random.Generator) -> tuple[int, int]:
    """Return the token range of a random word that is neither the first nor the last."""
    index = int(rng.integers(1, len(case.words) - 2))
    return case.words[index], case.words[index + 1]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else DIRECTORY).expanduser())
