"""Values that a session hands to its user."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SpokenWord:
    """A word and when it was said.

    Attributes:
        index: index of the word in its session, from 0.
        text: the word with its punctuation.
        sample: audio sample on the session's clock at which the word was recognised as said.
    """

    index: int
    text: str
    sample: int


@dataclass(frozen=True)
class Media:
    """Picture and sound of a chunk in one place.

    Attributes:
        video: [frames, height, width, 3] uint8, RGB.
        video_yuv: [frames, height * 3 / 2, width] uint8, the same frames as planar YUV 4:2:0.
        audio: [samples] fp32.
    """

    video: torch.Tensor
    video_yuv: torch.Tensor
    audio: torch.Tensor


@dataclass(frozen=True)
class Chunk:
    """A chunk of media on the engine's device. Its tensors export through DLPack without a copy.

    Attributes:
        index: index of the chunk in its session, from 0.
        start_sample: first sample of both streams, counted from the start of the session.
        video: [frames, height, width, 3] uint8, RGB.
        video_yuv: [frames, height * 3 / 2, width] uint8, the same frames as planar YUV 4:2:0 for encoders.
        audio: [samples] fp32.
        host: the same media in host memory, pinned where there is a GPU; on a CPU the same tensors.
        words: words said in this chunk.
        latency: seconds by stage. ``"commit"`` is that of the chunk before. ``"total"`` runs from the start
            of the pass until the host has the chunk. Stages may overlap.
    """

    index: int
    start_sample: int
    video: torch.Tensor
    video_yuv: torch.Tensor
    audio: torch.Tensor
    host: Media
    words: tuple[SpokenWord, ...]
    latency: dict[str, float]


@dataclass(frozen=True)
class Interruption:
    """What had been said when a session was interrupted.

    Delivered media may still lie in a player's buffer. A session with a pacer knows how much was played.

    Attributes:
        words: number of words that the session has said.
        text: words of the current text, joined by spaces; at most the last 1000.
        sample: first sample that was not delivered.
        played_words: number of words that were played; ``words`` without a pacer.
        played_sample: first sample that was not played; ``sample`` without a pacer. A chunk that was never
            handed over was not played.
    """

    words: int
    text: str
    sample: int
    played_words: int
    played_sample: int
