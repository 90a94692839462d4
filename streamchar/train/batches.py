"""Random examples of a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..config import Preset
from ..data.corpus import SAMPLES_PER_FRAME, Corpus, Recording
from .parallel import own, world


def random_recordings(
    corpus: Corpus, count: int, generator: torch.Generator, longer_than: int = 0
) -> list[Recording]:
    """Draw recordings of more than so many frames, with a chance in proportion to their length."""
    frames = corpus.frames
    weights = torch.from_numpy(np.where(frames > longer_than, frames, 0).astype(np.float64))
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    return [corpus[int(index)] for index in chosen]


def random_audio(corpus: Corpus, count: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Draw excerpts of so many whole tokens, [count, tokens * 1000] fp32; short recordings end in silence.

    As all that is drawn in rows, these are the process's own of those drawn for all (:mod:`.parallel`).
    """
    audio = torch.zeros(count * world(), tokens * SAMPLES_PER_FRAME)
    for row, recording in zip(audio, random_recordings(corpus, len(audio), generator), strict=True):
        room = max(recording.frames - tokens, 0)
        start = int(torch.randint(room + 1, (), generator=generator)) * SAMPLES_PER_FRAME
        piece = recording.audio[start : start + tokens * SAMPLES_PER_FRAME].astype(np.float32) / 32767
        row[: len(piece)] = torch.from_numpy(piece)
    return own(audio)


def audio_of(corpus: Corpus, index: int) -> Tensor:
    """Return a whole recording, [samples] fp32."""
    return torch.from_numpy(corpus[index].audio.astype(np.float32)) / 32767


@dataclass(frozen=True)
class SpeechBatch:
    """Chunks of speech with what the orchestrator is given for them.

    Attributes:
        text_ids: [batch, transcript_tokens] int64, a window that starts at a word.
        text_lengths: [batch] int32.
        durations: [batch, transcript_tokens] fp32, true ones in frames; 0 past the length.
        progress: [batch] fp32, tokens of the window said when the chunk starts.
        position: [batch, chunk_tokens] fp32, tokens said at the end of each frame.
        history: [batch, history_tokens, channels] fp32, oldest first.
        history_lengths: [batch] int32.
        audio: [batch, chunk_tokens, channels] fp32, clean latents of the chunk.
    """

    text_ids: Tensor
    text_lengths: Tensor
    durations: Tensor
    progress: Tensor
    position: Tensor
    history: Tensor
    history_lengths: Tensor
    audio: Tensor

    def to(self, device: torch.device) -> "SpeechBatch":
        """Return the batch on a device."""
        return SpeechBatch(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    def own(self) -> "SpeechBatch":
        """Return this process's rows of a batch that was drawn for all."""
        return SpeechBatch(**{each.name: own(getattr(self, each.name)) for each in fields(self)})


def speech_batch(
    preset: Preset,
    places: Sequence[tuple[Recording, int]],
    latents: Tensor,
    kept_words: Sequence[int],
) -> SpeechBatch:
    """Cut chunks out of recordings, as a session meets them.

    Args:
        preset: sizes.
        places: recordings and the frame at which the chunk starts.
        latents: [frames of the corpus, channels], of all recordings one after another.
        kept_words: words already said that each window keeps, where there are as many.
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
        # Words already said give way to the one being said, as in the window of a session.
        needed = int(recording.words[min(current, len(recording.words) - 1)])
        first_words = np.concatenate(([0], recording.words))
        while first_word < current and needed - first_words[first_word] > text:
            first_word += 1
        first = int(first_words[first_word])
        # Whole words, as the window holds them.
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
        # A recording ends in silence, whose latent is not zero: that is the mean of all speech.
        batch.audio[row, available:] = batch.audio[row, available - 1].clone()
    return batch
