"""A corpus of recordings with phoneme times, built once from a seed and then memory-mapped."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from ..config import CLOCK
from ..errors import StreamCharError
from .digest import digest
from .speech import Speaker, Utterance
from .text.sentences import training_sentences

#: Video frames per latent; recordings are whole latents long.
FRAMES_PER_LATENT = 4
ARRAYS = ("tokens", "ends", "words", "audio", "bounds")
#: Shortest and longest silence after the last word, in seconds; networks learn from it when to stop.
TAIL = (0.5, 2.0)
#: Lowest and highest speed of the speech, relative to the voice's own.
SPEEDS = (0.9, 1.1)
#: Largest sample value of 16-bit audio.
_FULL_SCALE = 32767


@dataclass(frozen=True)
class CorpusConfig:
    """Settings of a corpus; the same settings give the same bytes.

    Attributes:
        hours: approximate hours of audio.
        seed: seed of sentences, grouping, speed and noise.
        sentences: fewest and most sentences of a recording.
    """

    hours: float = 8.0
    seed: int = 0
    sentences: tuple[int, int] = (1, 4)

    @property
    def key(self) -> str:
        """A short hash of the settings; :attr:`Corpus.digest` is the hash of the data."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


class CorpusError(StreamCharError, ValueError):
    """A directory holds the corpus of another config, or an incomplete one."""


class CorpusNotFoundError(StreamCharError, FileNotFoundError):
    """A directory holds no corpus."""


@dataclass(frozen=True)
class Recording:
    """One recording.

    Attributes:
        index: its index in the corpus.
        first_frame: total frames of all recordings before it.
        tokens: [n] int16, phoneme tokens.
        ends: [n] fp32, end of each token, in frames.
        words: [words] int32, number of tokens up to the end of each word.
        audio: [frames * samples per frame] int16.
    """

    index: int
    first_frame: int
    tokens: npt.NDArray[np.int16]
    ends: npt.NDArray[np.float32]
    words: npt.NDArray[np.int32]
    audio: npt.NDArray[np.int16]

    @property
    def frames(self) -> int:
        """Length in video frames, which is also its number of audio tokens."""
        return len(self.audio) // CLOCK.samples_per_frame


def to_float(audio: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return 16-bit samples as fp32 in [-1, 1]."""
    return audio.astype(np.float32) / np.float32(_FULL_SCALE)


class Corpus:
    """The recordings of a directory that :func:`build_corpus` wrote.

    Attributes:
        about: contents of corpus.json: the config, its key, the digest of the arrays, and the sizes.

    Raises:
        CorpusNotFoundError: the directory holds no corpus.
        CorpusError: a file of the corpus cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        meta = directory / "corpus.json"
        if not meta.is_file():
            raise CorpusNotFoundError(f"{directory} holds no corpus; build it with: streamchar train data")
        self.directory = directory
        file = meta
        try:
            self.about = json.loads(meta.read_text())
            self.digest: str = self.about["digest"]
            self._arrays = {}
            for name in ARRAYS:
                file = directory / f"{name}.npy"
                self._arrays[name] = np.load(file, mmap_mode="r")
        except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError) as error:
            raise CorpusError(
                f"{file} must be a complete file of a corpus, got one that cannot be read ({error!r}); "
                f"remove {directory} and run: streamchar train data"
            ) from error

    def __len__(self) -> int:
        return len(self._arrays["bounds"]) - 1

    def __getitem__(self, index: int) -> Recording:
        first, last = self._arrays["bounds"][index], self._arrays["bounds"][index + 1]
        parts = [
            self._arrays[name][first[column] : last[column]]
            for column, name in enumerate(("tokens", "words", "audio"))
        ]
        ends = self._arrays["ends"][first[0] : last[0]]
        first_frame = int(first[2]) // CLOCK.samples_per_frame
        return Recording(index, first_frame, parts[0], ends, parts[1], parts[2])

    def __iter__(self) -> Iterator[Recording]:
        return (self[index] for index in range(len(self)))

    @property
    def frames(self) -> npt.NDArray[np.int64]:
        """Length of every recording in frames, [recordings]."""
        samples: npt.NDArray[np.int64] = np.diff(self._arrays["bounds"][:, 2])
        return samples // CLOCK.samples_per_frame


def build_corpus(directory: Path, config: CorpusConfig) -> Corpus:
    """Synthesise the corpus of ``config`` in ``directory``, unless it is already there, and open it.

    Raises:
        CorpusError: the directory holds the corpus of another config, or there are too few sentences to fill
            the hours.
    """
    if not (directory / "corpus.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, config)
    corpus = Corpus(directory)
    # JSON turns tuples into lists.
    wanted = json.loads(json.dumps(asdict(config)))
    found = {name: corpus.about.get(name) for name in wanted}
    if found != wanted:
        raise CorpusError(
            f"{directory} must hold the corpus of {wanted}, got that of {found}; "
            "remove it or build the corpus in another directory"
        )
    return corpus


def _write(directory: Path, config: CorpusConfig) -> None:
    rng = np.random.default_rng(config.seed)
    speaker = Speaker()
    # A sentence takes more than three seconds, so these are enough.
    sentences = iter(training_sentences(int(config.hours * 1200) + 100, config.seed))
    wanted = round(config.hours * 3600 * CLOCK.sample_rate)
    columns: dict[str, list[npt.NDArray[np.generic]]] = {
        name: [] for name in ("tokens", "ends", "words", "audio")
    }
    bounds = [(0, 0, 0)]
    step = wanted // 100
    for target in track(range(step, wanted + 1, step), description="speech"):
        while bounds[-1][2] < target:
            group = _take(sentences, int(rng.integers(*config.sentences, endpoint=True)))
            utterance = speaker.say(" ".join(group), int(rng.integers(2**31)), float(rng.uniform(*SPEEDS)))
            audio = _whole_latents(utterance, float(rng.uniform(*TAIL)))
            columns["tokens"].append(np.asarray(utterance.tokens, np.int16))
            columns["ends"].append(utterance.ends * np.float32(CLOCK.frame_rate))
            columns["words"].append(np.asarray(utterance.word_ends, np.int32))
            columns["audio"].append(audio)
            tokens, words, samples = bounds[-1]
            bounds.append(
                (tokens + len(utterance.tokens), words + len(utterance.word_ends), samples + len(audio))
            )
    for name, parts in columns.items():
        np.save(directory / f"{name}.npy", np.concatenate(parts))
    np.save(directory / "bounds.npy", np.asarray(bounds, np.int64))
    # This file is written last: a directory that has it is complete.
    about = {
        **asdict(config),
        "key": config.key,
        # A different synthesiser or machine can produce different arrays from the same config.
        "digest": digest(*(directory / f"{name}.npy" for name in ARRAYS)),
        "recordings": len(bounds) - 1,
        "samples": bounds[-1][2],
    }
    (directory / "corpus.json").write_text(json.dumps(about, indent=2) + "\n")


def _take(sentences: Iterator[str], count: int) -> Sequence[str]:
    group = [sentence for _, sentence in zip(range(count), sentences)]
    if not group:
        raise CorpusError("the sentences ran out before the corpus was full; build fewer hours")
    return group


def _whole_latents(utterance: Utterance, tail: float) -> npt.NDArray[np.int16]:
    """Return the audio with ``tail`` seconds of silence, rounded up to whole latents."""
    unit = CLOCK.samples_per_frame * FRAMES_PER_LATENT
    length = -(-(len(utterance.audio) + round(tail * CLOCK.sample_rate)) // unit) * unit
    audio = np.zeros(length, np.float32)
    audio[: len(utterance.audio)] = utterance.audio
    return (audio.clip(-1, 1) * _FULL_SCALE).astype(np.int16)
