"""Sources of clips: rendered and synthesised as for training, passed through the codecs, or generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from ..codecs.vae import Vae
from ..codecs.vocoder import Vocoder
from ..config import CLOCK
from ..data.renderer.character import Identity, animate, neutral, render
from ..data.renderer.visemes import Phone
from ..data.speech import Speaker, Utterance
from ..data.text.sentences import everyday_sentences, held_out_sentences
from ..engine import StreamCharEngine
from .arrays import Audio, Frames

#: Seed of the gallery's first character. Training uses seeds from 0 upwards.
FIRST_IDENTITY = 1_000_000
# A clip has whole video latents, and some silence at its end.
_FRAMES_PER_LATENT, _PAUSE_FRAMES = 4, 8


@dataclass(frozen=True)
class Item:
    """A clip to make, the same for every source.

    Attributes:
        text: the words to say.
        kind: "everyday", or "unseen" for sentences of the grammar, half of which contain a word that was
            never trained on.
        identity: seed of the character.
        seed: seed of motion and noise.
    """

    text: str
    kind: str
    identity: int
    seed: int


@dataclass(frozen=True)
class Clip:
    """The media that a source made for an item.

    Attributes:
        audio: [frames * 1000] fp32, 24 kHz.
        video: [frames, height, width, 3] uint8 RGB.
        phones: phones with their true times, if the source knows them.
        compute_seconds: time of computing, if it says something about speed.
        word_middles: when half of each word has been said, in seconds, if the source knows it.
    """

    audio: Audio
    video: Frames
    phones: Sequence[Phone] | None = None
    compute_seconds: float | None = None
    word_middles: Sequence[float] | None = None


class Source(Protocol):
    """Makes clips."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    @property
    def truth(self) -> "GroundTruth | None":
        """Source whose pictures match this source's frame by frame; None if there is none."""
        ...

    def make(self, item: Item) -> Clip:
        """Return the clip of an item."""
        ...


def choose_items(count: int, identities: int, seed: int = 0) -> list[Item]:
    """Return items that alternate between everyday and unseen sentences and cycle through the characters.

    Args:
        count: number of items, at least 1; from the 101st item on all sentences are unseen ones.
        identities: number of characters in the gallery.
        seed: seed of the unseen sentences.

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


def reference_frame(identity: int, height: int, width: int) -> Frames:
    """Return the neutral picture of a character, [height, width, 3] uint8."""
    drawn = render(Identity.sample(identity), neutral(), height, width)[0]
    return np.ascontiguousarray(drawn.permute(1, 2, 0).numpy())


def as_input(frames: Frames) -> torch.Tensor:
    """Convert pictures to the form that networks take.

    Args:
        frames: [..., height, width, 3] uint8.

    Returns:
        [..., 3, height, width] fp32 in [-1, 1].
    """
    return torch.from_numpy(frames.copy()).movedim(-1, -3).float() / 127.5 - 1


class GroundTruth:
    """The synthesiser's speech with the rendering that matches it: the upper bound of every score.

    Args:
        height: height of the pictures in pixels.
        width: width of the pictures in pixels.
        speaker: the synthesiser.
    """

    name = "ground truth"
    truth = None

    def __init__(self, height: int, width: int, speaker: Speaker) -> None:
        self.size, self._speaker = (height, width), speaker
        # Round trips ask for the clip that was just made.
        self.make = lru_cache(maxsize=1)(self._make)

    def _make(self, item: Item) -> Clip:
        utterance = self._speaker.say(item.text, item.seed)
        latents = -(-len(utterance.audio) // (_FRAMES_PER_LATENT * CLOCK.samples_per_frame))
        frames = latents * _FRAMES_PER_LATENT + _PAUSE_FRAMES
        audio = np.zeros(frames * CLOCK.samples_per_frame, np.float32)
        audio[: len(utterance.audio)] = utterance.audio
        starts = [0.0, *utterance.ends[:-1].tolist()]
        phones = [Phone(*timed) for timed in zip(utterance.symbols, starts, utterance.ends.tolist())]
        pose = animate(phones, frames, item.seed)
        video = render(Identity.sample(item.identity), pose, *self.size).permute(0, 2, 3, 1)
        return Clip(audio, np.ascontiguousarray(video.numpy()), phones, word_middles=word_middles(utterance))


def word_middles(utterance: Utterance) -> list[float]:
    """Return when half of the tokens of each word have been said, in seconds; a pointer passes it then."""
    bounds = np.asarray([0, *utterance.word_ends])
    ends = [0.0, *utterance.ends]
    times = np.interp((bounds[1:] + bounds[:-1]) / 2, np.arange(len(ends)), ends)
    return [float(time) for time in times]


class RoundTrip:
    """Ground truth after encoding and decoding: the upper bound for any network between the codecs.

    Args:
        truth: the clips to encode.
        vae: the video codec.
        vocoder: the audio codec.
    """

    name = "codec round trip"

    def __init__(self, truth: GroundTruth, vae: Vae, vocoder: Vocoder) -> None:
        self.truth, self._vae, self._vocoder = truth, vae, vocoder

    @torch.inference_mode()
    def make(self, item: Item) -> Clip:
        """Return the decoded clip."""
        clip = self.truth.make(item)
        weights = self._vae.latents_mean
        # The first frame of a session is the reference.
        reference = reference_frame(item.identity, *self.truth.size)[None]
        frames = as_input(np.concatenate([reference, clip.video]))[None].to(weights.device, weights.dtype)
        decoded = self._vae.decode_clip(self._vae.encode(frames))[0, 1:].float().cpu()
        video = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
        state = self._vocoder.new_state(1)
        latents = self._vocoder.encode(torch.from_numpy(clip.audio)[None].to(weights.device))
        audio = self._vocoder.decode(state, latents.to(weights.dtype))[0].float().cpu()
        return Clip(audio.numpy(), np.ascontiguousarray(video.numpy()), clip.phones)


class Generated:
    """An engine that speaks the text as the character of the reference picture.

    Args:
        name: name for tables, such as "student, 4 steps".
        engine: an engine with room for one more session; its preset sets the number of steps.
    """

    truth = None

    def __init__(self, name: str, engine: StreamCharEngine) -> None:
        self.name, self._engine = name, engine

    def make(self, item: Item) -> Clip:
        """Return the engine's clip of the text, with the time that its chunks took."""
        picture = self._engine.preset.picture
        reference = as_input(reference_frame(item.identity, picture.height, picture.width))
        with self._engine.open(reference, seed=item.seed) as session:
            chunks = list(session.speak(item.text))
        return Clip(
            torch.cat([chunk.audio for chunk in chunks]).float().cpu().numpy(),
            torch.cat([chunk.video for chunk in chunks]).cpu().numpy(),
            compute_seconds=sum(chunk.latency["total"] for chunk in chunks),
        )
