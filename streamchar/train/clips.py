"""Pictures of the drawn character for the recordings of a corpus."""

import functools

import torch
from torch import Tensor

from ..config import CLOCK
from ..data.corpus import Recording
from ..data.renderer.character import FACE_BOX, MOUTH_BOX, Identity, Phone, animate, render
from ..text.tokenizers import PhonemeTokenizer

#: Loss weights of pixels in the face and in the mouth, relative to all others: viewers look there.
FACE_WEIGHT, MOUTH_WEIGHT = 2.0, 12.0


@functools.cache
def _tokenizer() -> PhonemeTokenizer:
    return PhonemeTokenizer()


def phones(recording: Recording) -> list[Phone]:
    """Return the phones of a recording with their times in seconds."""
    symbols = _tokenizer().decode(recording.tokens.tolist())
    starts = [0.0, *(float(end) / CLOCK.frame_rate for end in recording.ends)]
    return [Phone(symbol, a, b) for symbol, a, b in zip(symbols, starts[:-1], starts[1:], strict=True)]


def pose(recording: Recording, seed: int) -> Tensor:
    """Return the character's pose in every frame of a recording, [frames, len(Pose)] fp32."""
    return animate(phones(recording), recording.frames, seed)


def draw(
    identity: Identity, motion: Tensor, size: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Draw frames.

    Args:
        identity: the character.
        motion: [frames, len(Pose)], poses.
        size: height and width in pixels.
        device: device of the result; that of ``motion`` by default.

    Returns:
        [frames, 3, height, width] fp32 in [-1, 1].
    """
    return render(identity, motion, *size, device).float() / 127.5 - 1


def pixel_weights(height: int, width: int) -> Tensor:
    """Return the loss weight of every pixel, [height, width], with mean 1."""
    weights = torch.ones(height, width)
    for box, weight in ((FACE_BOX, FACE_WEIGHT), (MOUTH_BOX, MOUTH_WEIGHT)):
        left, top, right, bottom = box
        rows = slice(int(top * height), round(bottom * height))
        weights[rows, int(left * width) : round(right * width)] = weight
    return weights / weights.mean()
