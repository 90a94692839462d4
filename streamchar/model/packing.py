"""The orchestrator's packed sequence, [transcript | audio history | chunk]: its inputs and its layout."""

from typing import NamedTuple

import torch
from torch import Tensor


class Prefix(NamedTuple):
    """The inputs of a chunk that stay the same at all of its denoising steps.

    Attributes:
        text_ids: [batch, transcript_tokens] int64; entries past a row's length are ignored.
        text_lengths: [batch] int32, number of text tokens in use, clamped to the size of the buffer.
        history: [batch, history_tokens, audio_channels], clean audio latents, oldest first; entries past a
            row's length are ignored and may be NaN.
        history_lengths: [batch] int32, number of latents in use, clamped to the size of the buffer.
        progress: [batch] fp32, transcript tokens spoken so far, including fractions; None for 0. Only a
            duration predictor uses it.
    """

    text_ids: Tensor
    text_lengths: Tensor
    history: Tensor
    history_lengths: Tensor
    progress: Tensor | None = None


class Layout(NamedTuple):
    """Which slots of the packed sequence are in use, with their positions and attention mask.

    Attributes:
        valid: [batch, capacity] bool, slots in use.
        rope: cosines and sines of the positions, each [batch, capacity, 1, head_dim / 2], compute dtype.
        mask: [batch, capacity, capacity], 0 where a row attends to a column, else -inf, compute dtype.
        prior: [batch, chunk_tokens, transcript_tokens] fp32, prior of the pointer.
    """

    valid: Tensor
    rope: tuple[Tensor, Tensor]
    mask: Tensor
    prior: Tensor

    def repeat_chunk(self, draws: int, chunk: int) -> "Layout":
        """Repeat the slots of the chunk ``draws`` times; the repeats do not attend to one another.

        Args:
            draws: number of repeats.
            chunk: number of slots of the chunk, at the end of the sequence.
        """
        prefix = self.valid.shape[1] - chunk
        size = prefix + draws * chunk
        mask = self.mask.new_full((len(self.mask), size, size), float("-inf"))
        mask[:, :prefix, :prefix] = self.mask[:, :prefix, :prefix]
        for start in range(prefix, size, chunk):
            rows = slice(start, start + chunk)
            mask[:, rows, :prefix] = self.mask[:, prefix:, :prefix]
            mask[:, rows, rows] = self.mask[:, prefix:, prefix:]

        def repeat(x: Tensor) -> Tensor:
            return torch.cat((x[:, :prefix], *(x[:, prefix:],) * draws), 1)

        cos, sin = self.rope
        return Layout(repeat(self.valid), (repeat(cos), repeat(sin)), mask, self.prior)
