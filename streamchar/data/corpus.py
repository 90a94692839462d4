"""A corpus of recordings with phoneme times, built once from a seed and memory-mapped ever after."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from .digest import digest
from .sentences import training_sentences
from .speech import SAMPLE_RATE, Speaker, Utterance

#: Samples of a video frame, and frames of a latent: recordings hold whole latents.
SAMPLES_PER_FRAME, FRAMES_PER_LATENT = 1000, 4
ARRAYS = ("tokens", "ends", "words", "audio", "bounds")
#: Silence after the last word, so that a network learns to stop, in seconds.
TAIL = (0.5, 2.0)
SPEEDS = (0.9, 1.1)


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of; the same config gives the same bytes.

    Attributes:
        hours: of audio, about.
        seed: of sentences, grouping, speed and noise.
        sentences: in a recording, from and to.
    """

    hours: float = 8.0
    seed: int = 0
    sentences: tuple[int, int] = (1, 4)

    @property
    def key(self) -> str:
        """A short hash that names what is asked for; :attr:`Corpus.digest` names what was made."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


class CorpusError(ValueError):
    """A directory holds the corpus of another config, or one that is not whole."""


@dataclass(frozen=True)
class Recording:
    """One recording.

    Attributes:
        index: its number in the corpus.
        first_frame: frames of all recordings before it.
        tokens: [n] int16, phoneme tokens.
        ends: [n] fp32, when each ends, in frames.
        words: [words] int32, tokens up to and including each word.
        audio: [frames * 1000] int16, 24 kHz.
    """

    index: int
    first_frame: int
    tokens: npt.NDArray[np.int16]
    ends: npt.NDArray[np.float32]
    words: npt.NDArray[np.int32]
    audio: npt.NDArray[np.int16]

    @property
    def frames(self) -> int:
        """Video frames, and audio tokens."""
        return len(self.audio) // SAMPLES_PER_FRAME


class Corpus:
    """Recordings of a directory that :func:`build_corpus` wrote.

    Attributes:
        about: what corpus.json says: the config, its key, the arrays' digest, and how much there is.

    Raises:
        FileNotFoundError: there is none, with the command that builds it.
        CorpusError: one of its files cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        meta = directory / "corpus.json"
        if not meta.is_file():
            raise FileNotFoundError(f"{directory} holds no corpus; build it with: streamchar train data")
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
                f"{file} must be a whole file of a corpus, got one that cannot be read ({error!r}); "
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
        first_frame = int(first[2]) // SAMPLES_PER_FRAME
        return Recording(index, first_frame, parts[0], ends, parts[1], parts[2])

    def __iter__(self) -> Iterator[Recording]:
        return (self[index] for index in range(len(self)))

    @property
    def frames(self) -> npt.NDArray[np.int64]:
        """Frames of every recording, [recordings]."""
        samples: npt.NDArray[np.int64] = np.diff(self._arrays["bounds"][:, 2]) // SAMPLES_PER_FRAME
        return samples


def build_corpus(directory: Path, config: CorpusConfig) -> Corpus:
    """Synthesise the recordings of ``config`` into ``directory``, unless they are there already.

    Raises:
        CorpusError: those of another config are there.
    """
    if not (directory / "corpus.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, config)
    corpus = Corpus(directory)
    # Before it is JSON a tuple, after it a list.
    wanted = json.loads(json.dumps(asdict(config)))
    found = {name: corpus.about.get(name) for name in wanted}
    if found != wanted:
        raise CorpusError(
            f"{directory} must hold the corpus of {wanted}, got that of {found}; "
            "remove it or build in another directory"
        )
    return corpus


def _write(directory: Path, config: CorpusConfig) -> None:
    rng = np.random.default_rng(config.seed)
    speaker = Speaker()
    # Three seconds a sentence is less than what they take, so that there are enough of them.
    sentences = iter(training_sentences(int(config.hours * 1200) + 100, config.seed))
    wanted = round(config.hours * 3600 * SAMPLE_RATE)
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
            columns["ends"].append(utterance.ends * np.float32(SAMPLE_RATE / SAMPLES_PER_FRAME))
            columns["words"].append(np.asarray(utterance.word_ends, np.int32))
            columns["audio"].append(audio)
            tokens, words, samples = bounds[-1]
            bounds.append(
                (tokens + len(utterance.tokens), words + len(utterance.word_ends), samples + len(audio))
            )
    for name, parts in columns.items():
        np.save(directory / f"{name}.npy", np.concatenate(parts))
    np.save(directory / "bounds.npy", np.asarray(bounds, np.int64))
    # Last, so that a directory with this file is whole.
    about = {
        **asdict(config),
        "key": config.key,
        # Another synthesiser or machine may make other arrays of one config.
        "digest": digest(*(directory / f"{name}.npy" for name in ARRAYS)),
        "recordings": len(bounds) - 1,
        "samples": bounds[-1][2],
    }
    (directory / "corpus.json").write_text(json.dumps(about, indent=2) + "\n")


def _take(sentences: Iterator[str], count: int) -> Sequence[str]:
    group = [sentence for _, sentence in zip(range(count), sentences)]
    if not group:
        raise RuntimeError("the sentences ran out before the hours were full; ask for more of them")
    return group


def _whole_latents(utterance: Utterance, tail: float) -> npt.NDArray[np.int16]:
    unit = SAMPLES_PER_FRAME * FRAMES_PER_LATENT
    length = -(-(len(utterance.audio) + round(tail * SAMPLE_RATE)) // unit) * unit
    audio = np.zeros(length, np.float32)
    audio[: len(utterance.audio)] = utterance.audio
    return (audio.clip(-1, 1) * 32767).astype(np.int16)
