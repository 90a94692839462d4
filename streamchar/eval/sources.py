"""Where clips come from: drawn and synthesised as for training, through the codecs and back, or generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..codecs.vae import Vae
from ..codecs.vocoder import Vocoder
from ..data.character import Identity, animate, neutral, render
from ..data.sentences import held_out_sentences
from ..data.speech import Speaker, Utterance
from ..data.visemes import Phone
from ..engine import StreamCharEngine

SAMPLES_PER_FRAME = 1000
#: Seed of the first character of the gallery; training draws its own from 0 upwards.
FIRST_IDENTITY = 1_000_000


@dataclass(frozen=True)
class Item:
    """What every source is asked for.

    Attributes:
        text: what is to be said.
        kind: "everyday", or "unseen" for sentences of the grammar, half of them with a word never trained on.
        identity: seed of the character.
        seed: of motion and noise.
    """

    text: str
    kind: str
    identity: int
    seed: int


@dataclass(frozen=True)
class Clip:
    """What a source made of an item.

    Attributes:
        audio: [frames * 1000] fp32, 24 kHz.
        video: [frames, height, width, 3] uint8 RGB.
        phones: with true times where the source knows them.
        seconds: of computing, where it says something about speed.
        said: when half of each word is said, in seconds, where the source knows it.
    """

    audio: npt.NDArray[np.float32]
    video: npt.NDArray[np.uint8]
    phones: Sequence[Phone] | None = None
    seconds: float | None = None
    said: Sequence[float] | None = None


class Source(Protocol):
    """Make clips."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    @property
    def truth(self) -> "GroundTruth | None":
        """What its pictures can be compared with frame by frame, None where they say the same otherwise."""
        ...

    def make(self, item: Item) -> Clip:
        """Return the clip of an item."""
        ...


def choose_items(count: int, identities: int, seed: int = 0) -> list[Item]:
    """Return ``count`` items, everyday sentences and unseen ones by turns, characters one after another.

    Args:
        count: at least 1; from the 101st on all are unseen ones.
        identities: characters of the gallery.
        seed: of the unseen sentences.

    Raises:
        ValueError: ``count`` or ``identities`` is below 1.
    """
    if min(count, identities) < 1:
        raise ValueError(f"count and identities must be at least 1, got {count} and {identities}")
    everyday = everyday_sentences()[: (count + 1) // 2]
    unseen = held_out_sentences(count - len(everyday), seed)
    texts = [(text, "everyday") for text in everyday]
    for position, text in enumerate(unseen):
        texts.insert(2 * position + 1, (text, "unseen"))
    return [
        Item(text, kind, FIRST_IDENTITY + index % identities, seed * 10_000 + index)
        for index, (text, kind) in enumerate(texts)
    ]


def everyday_sentences() -> list[str]:
    """Return sentences of everyday speech, written for this."""
    return (files(__package__) / "everyday.txt").read_text(encoding="utf-8").splitlines()


def reference_frame(identity: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the neutral picture of a character, [height, width, 3] uint8."""
    drawn = render(Identity.sample(identity), neutral(), height, width)[0]
    return np.ascontiguousarray(drawn.permute(1, 2, 0).numpy())


def as_input(frames: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return [..., height, width, 3] uint8 as networks take it, [..., 3, height, width] fp32 in [-1, 1]."""
    return torch.from_numpy(frames.copy()).movedim(-1, -3).float() / 127.5 - 1


class GroundTruth:
    """The synthesiser's speech and the drawing that goes with it: the ceiling of every score.

    Args:
        height: of the pictures, in pixels.
        width: of the pictures.
        speaker: the voice.
    """

    name = "ground truth"
    truth = None

    def __init__(self, height: int, width: int, speaker: Speaker) -> None:
        self.size, self._speaker = (height, width), speaker
        # Round trips ask for the clip that was just made.
        self.make = lru_cache(maxsize=1)(self._make)

    def _make(self, item: Item) -> Clip:
        said = self._speaker.say(item.text, item.seed)
        # Whole latents of four frames, with a pause at the end.
        frames = -(-len(said.audio) // (4 * SAMPLES_PER_FRAME)) * 4 + 8
        audio = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
        audio[: len(said.audio)] = said.audio
        starts = [0.0, *said.ends[:-1].tolist()]
        phones = [Phone(*timed) for timed in zip(said.symbols, starts, said.ends.tolist())]
        pose = animate(phones, frames, item.seed)
        video = render(Identity.sample(item.identity), pose, *self.size).permute(0, 2, 3, 1)
        return Clip(audio, np.ascontiguousarray(video.numpy()), phones, said=half_said(said))


def half_said(said: Utterance) -> list[float]:
    """Return when half of the tokens of each word are said, in seconds: where a pointer passes the word."""
    bounds = np.asarray([0, *said.word_ends])
    times = np.interp((bounds[1:] + bounds[:-1]) / 2, np.arange(len(said.ends) + 1), [0.0, *said.ends])
    return [float(time) for time in times]


class RoundTrip:
    """Ground truth through the encoders and the decoders: what no network behind them can surpass.

    Args:
        truth: what is encoded.
        vae: the video codec.
        vocoder: the audio codec.
    """

    name = "codec round trip"

    def __init__(self, truth: GroundTruth, vae: Vae, vocoder: Vocoder) -> None:
        self.truth, self._vae, self._vocoder = truth, vae, vocoder

    @torch.inference_mode()
    def make(self, item: Item) -> Clip:
        """Return the clip that comes back."""
        clip = self.truth.make(item)
        weights = self._vae.latents_mean
        # The reference opens the stream, as it does in a session.
        opening = reference_frame(item.identity, *self.truth.size)[None]
        frames = as_input(np.concatenate([opening, clip.video]))[None].to(weights.device, weights.dtype)
        decoded = self._vae.decode_clip(self._vae.encode(frames))[0, 1:].float().cpu()
        video = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
        state = self._vocoder.new_state(1)
        latents = self._vocoder.encode(torch.from_numpy(clip.audio)[None].to(weights.device))
        audio = self._vocoder.decode(state, latents.to(weights.dtype))[0].float().cpu()
        return Clip(audio.numpy(), np.ascontiguousarray(video.numpy()), clip.phones)


class Generated:
    """An engine that speaks the text with the character of the reference picture.

    Args:
        name: for tables, such as "student, 4 steps".
        engine: with a free row; its preset decides the steps.
    """

    truth = None

    def __init__(self, name: str, engine: StreamCharEngine) -> None:
        self.name, self._engine = name, engine

    def make(self, item: Item) -> Clip:
        """Return what the engine makes of the text, with the seconds that its chunks took."""
        picture = self._engine.preset.picture
        reference = as_input(reference_frame(item.identity, picture.height, picture.width))
        with self._engine.open(reference, seed=item.seed) as session:
            chunks = list(session.speak(item.text))
        return Clip(
            torch.cat([chunk.audio for chunk in chunks]).float().cpu().numpy(),
            torch.cat([chunk.video for chunk in chunks]).cpu().numpy(),
            seconds=sum(chunk.latency["total"] for chunk in chunks),
        )
