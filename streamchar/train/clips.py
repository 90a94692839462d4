"""Pictures of the drawn character for recordings of a corpus."""

import functools

import torch
from torch import Tensor

from ..data.character import FACE_BOX, MOUTH_BOX, Identity, Phone, animate, render
from ..data.corpus import Recording
from ..tokenizers import PhonemeTokenizer

FRAME_RATE = 24
#: Weight of pixels in a loss: a viewer looks at the face, and most of all at the mouth.
FACE_WEIGHT, MOUTH_WEIGHT = 2.0, 12.0


@functools.cache
def _tokenizer() -> PhonemeTokenizer:
    return PhonemeTokenizer()


def phones(recording: Recording) -> list[Phone]:
    """Return the phones of a recording with their times in seconds."""
    symbols = _tokenizer().decode(recording.tokens.tolist())
    starts = [0.0, *(float(end) / FRAME_RATE for end in recording.ends)]
    return [Phone(symbol, a, b) for symbol, a, b in zip(symbols, starts[:-1], starts[1:], strict=True)]


def pose(recording: Recording, seed: int) -> Tensor:
    """Return the character's motion over a recording, [frames, columns]."""
    return animate(phones(recording), recording.frames, seed)


def draw(
    identity: Identity, motion: Tensor, size: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Draw frames, [frames, 3, height, width] fp32 in [-1, 1], on the device or where the motion is."""
    return render(identity, motion, *size, device).float() / 127.5 - 1


def pixel_weights(height: int, width: int) -> Tensor:
    """Return the weight of every pixel in a loss, [height, width], of mean 1."""
    weights = torch.ones(height, width)
    for box, weight in ((FACE_BOX, FACE_WEIGHT), (MOUTH_BOX, MOUTH_WEIGHT)):
        left, top, right, bottom = box
        rows = slice(int(top * height), round(bottom * height))
        weights[rows, int(left * width) : round(right * width)] = weight
    return weights / weights.mean()
