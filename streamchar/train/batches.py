"""Random batches from a corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..config import CLOCK, Preset
from ..data.corpus import Corpus, Recording, to_float
from ..model.packing import Prefix
from .distributed.parallel import local_range, local_rows, rand, randint, randn, world_size

#: Share of chunks without history, as after an interruption that came before any audio was played.
NO_HISTORY = 0.05
#: Standard deviation of the error of the progress, in tokens: the pointer is not exact either.
PROGRESS_NOISE = 0.4
#: Highest level of noise on the history, which the network itself generates at run time.
HISTORY_NOISE = 0.3
#: Words before the current one that a window keeps, fewest and most; sessions keep four, fewer at the start.
KEPT_WORDS = (2, 6)


@dataclass(frozen=True)
class TensorBatch:
    """A batch whose fields are tensors with one row per example, or such batches."""

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def local(self) -> Self:
        """Return this process's rows of a batch that was drawn for all processes."""
        return self._map(local_rows)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return type(self)(
            **{
                name: value._map(change) if isinstance(value, TensorBatch) else change(value)
                for name, value in values.items()
            }
        )


@dataclass(frozen=True)
class SpeechData:
    """A corpus and its audio latents.

    Attributes:
        corpus: the recordings.
        audio: [frames, channels], audio latents of all recordings, concatenated.
    """

    corpus: Corpus
    audio: Tensor


def random_recordings(
    corpus: Corpus, count: int, generator: torch.Generator, longer_than: int = 0
) -> list[Recording]:
    """Draw recordings of more than ``longer_than`` frames, with probability proportional to their length."""
    frames = corpus.frames
    weights = torch.from_numpy(np.where(frames > longer_than, frames, 0).astype(np.float64))
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    return [corpus[int(index)] for index in chosen]


def random_audio(corpus: Corpus, count: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Draw excerpts that start at a whole audio token; short recordings are padded with silence.

    The excerpts are drawn for all processes, which each keep their own (see
    :mod:`streamchar.train.distributed.parallel`).

    Args:
        corpus: recordings.
        count: excerpts of this process.
        tokens: length in audio tokens, one per video frame.
        generator: in the same state in every process.

    Returns:
        [count, tokens * samples per frame] fp32.
    """
    length = tokens * CLOCK.samples_per_frame
    audio = torch.zeros(count * world_size(), length)
    for row, recording in zip(audio, random_recordings(corpus, len(audio), generator), strict=True):
        room = max(recording.frames - tokens, 0)
        start = int(torch.randint(room + 1, (), generator=generator)) * CLOCK.samples_per_frame
        piece = to_float(recording.audio[start : start + length])
        row[: len(piece)] = torch.from_numpy(piece)
    return local_rows(audio)


def recording_audio(corpus: Corpus, index: int) -> Tensor:
    """Return the audio of a whole recording, [samples] fp32."""
    return torch.from_numpy(to_float(corpus[index].audio))


@dataclass(frozen=True)
class SpeechBatch(TensorBatch):
    """Chunks of speech with the orchestrator's inputs and targets.

    Attributes:
        text_ids: [batch, transcript_tokens] int64, a transcript window that starts at a word.
        text_lengths: [batch] int32, valid tokens of the window.
        durations: [batch, transcript_tokens] fp32, true durations in frames; 0 past the length.
        progress: [batch] fp32, tokens of the window spoken when the chunk starts.
        position: [batch, chunk_tokens] fp32, tokens of the window spoken at the end of each frame.
        history: [batch, history_tokens, channels] fp32, audio latents before the chunk, oldest first.
        history_lengths: [batch] int32, valid tokens of the history.
        audio: [batch, chunk_tokens, channels] fp32, clean audio latents of the chunk.
    """

    text_ids: Tensor
    text_lengths: Tensor
    durations: Tensor
    progress: Tensor
    position: Tensor
    history: Tensor
    history_lengths: Tensor
    audio: Tensor

    def prefix(self, progress: Tensor | None = None, history: Tensor | None = None) -> Prefix:
        """Return the orchestrator's inputs for these chunks, with another progress or history if given."""
        return Prefix(
            self.text_ids,
            self.text_lengths,
            self.history if history is None else history,
            self.history_lengths,
            self.progress if progress is None else progress,
        )


def speech_batch(
    preset: Preset,
    places: Sequence[tuple[Recording, int]],
    latents: Tensor,
    kept_words: Sequence[int],
) -> SpeechBatch:
    """Cut chunks out of recordings, with the transcript window and history that a session would have.

    Args:
        preset: sizes.
        places: for each row, the recording and the frame at which its chunk starts.
        latents: [frames of the corpus, channels], audio latents of all recordings, concatenated.
        kept_words: for each row, spoken words that the window keeps, if there are as many.
    """
    text, chunk, history = preset.orchestrator.transcript_tokens, preset.audio_tokens, preset.history_tokens
    count, channels = len(places), latents.shape[1]
    batch = SpeechBatch(
        torch.zeros(count, text, dtype=torch.int64),
        torch.zeros(count, dtype=torch.int32),
        torch.zeros(count, text),
        torch.zeros(count),
        torch.zeros(count, chunk),
        torch.zeros(count, history, channels),
        torch.zeros(count, dtype=torch.int32),
        torch.zeros(count, chunk, channels),
    )
    for row, ((recording, start), kept) in enumerate(zip(places, kept_words, strict=True)):
        ends = recording.ends
        edges = np.concatenate(([0.0], ends))
        tokens = np.arange(len(edges), dtype=np.float64)
        said = float(np.interp(start, edges, tokens))
        current = int(np.searchsorted(recording.words, said, side="right"))
        first_word = max(current - kept, 0)
        # If the window is too short, spoken words make room for the current word, as in a session.
        needed = int(recording.words[min(current, len(recording.words) - 1)])
        first_words = np.concatenate(([0], recording.words))
        while first_word < current and needed - first_words[first_word] > text:
            first_word += 1
        first = int(first_words[first_word])
        # A window holds whole words only.
        last_word = int(np.searchsorted(recording.words, first + text, side="right"))
        last = int(recording.words[last_word - 1]) if last_word else first
        length = last - first
        batch.text_ids[row, :length] = torch.from_numpy(recording.tokens[first:last].astype(np.int64))
        batch.text_lengths[row] = length
        batch.durations[row, :length] = torch.from_numpy(np.diff(edges)[first:last].astype(np.float32))
        frames = np.interp(np.arange(start + 1, start + chunk + 1), edges, tokens) - first
        batch.progress[row] = min(said - first, length)
        batch.position[row] = torch.from_numpy(frames.clip(0, length).astype(np.float32))
        heard = min(start, history)
        offset = recording.first_frame + start
        batch.history[row, :heard] = latents[offset - heard : offset].float()
        batch.history_lengths[row] = heard
        available = min(chunk, recording.frames - start)
        batch.audio[row, :available] = latents[offset : offset + available].float()
        # A recording ends in silence. Its latent is not zero, which would be the mean of all speech.
        batch.audio[row, available:] = batch.audio[row, available - 1].clone()
    return batch


def random_speech(preset: Preset, data: SpeechData, count: int, generator: torch.Generator) -> SpeechBatch:
    """Draw chunks of a corpus; some start a recording, some lie after its last word."""
    places = []
    for recording in random_recordings(data.corpus, count * world_size(), generator):
        room = max(recording.frames - preset.audio_tokens // 2, 1)
        # Listeners notice the start first, and in a short text one chunk in eight is one.
        early = torch.rand((), generator=generator) < 0.15
        place = torch.randint(1 if early else room, (), generator=generator)
        places.append((recording, int(place)))
    kept = KEPT_WORDS[0] + randint(KEPT_WORDS[1] + 1 - KEPT_WORDS[0], (count,), generator)
    batch = speech_batch(preset, [places[row] for row in local_range(count)], data.audio, kept.tolist())
    forgotten = rand((count,), generator) < NO_HISTORY
    batch.history_lengths.masked_fill_(forgotten, 0)
    return batch


def perturbed_prefix(batch: SpeechBatch, generator: torch.Generator) -> Prefix:
    """Return the orchestrator's inputs with the kind of errors of progress and history that sessions have."""
    count, device = len(batch.progress), batch.progress.device
    jitter = randn((count,), generator).to(device) * PROGRESS_NOISE
    progress = (batch.progress + jitter).clamp(min=0).minimum(batch.text_lengths.float())
    level = rand((count, 1, 1), generator) * HISTORY_NOISE
    history = batch.history + (level * randn(batch.history.shape, generator)).to(device)
    return batch.prefix(progress, history)
