"""The progress-aware pointer: where in the transcript the audio stands, at every audio token.

The transcript is an axis of N tokens. Token i covers [i, i + 1]: position 0 is before the first token,
i + 0.5 the middle of token i, N the end of everything that is to be said. Attention on token i alone
therefore reads i + 0.5, and a learned, bounded offset moves the reading within and around that token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .durations import TYPICAL, planned_times

#: Frames between the middles of two tokens, at least; a plan has no shorter ones.
_LEAST_GAP = 1e-3


class ProgressPointer(nn.Module):
    """Cross-attend audio conditions to transcript states and read the expected position.

    Source: StreamChar (arXiv 2605.25659), progress-aware pointer: softmax-weighted position plus a learned
    offset, clamped to [0, N], trained with smooth-L1.

    Args:
        dim: width of conditions and transcript states.
        heads: attention heads, a divisor of ``dim``; their weights are averaged.
        reach: largest offset, in tokens, in either direction.

    Raises:
        ValueError: ``heads`` does not divide ``dim``, or ``reach`` is below 0.5, so that neither end of
            a token could be pointed at.
    """

    def __init__(self, dim: int, heads: int = 1, reach: float = 4.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must be a divisor of dim = {dim}, got {heads}")
        if reach < 0.5:
            raise ValueError(f"reach must be at least 0.5 (half a token), got {reach}")
        self.heads, self.head_dim, self.reach = heads, dim // heads, reach
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.offset = nn.Linear(dim, 1)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights that keep a unit-variance input at unit variance; the offset starts near zero."""
        for linear, gain in ((self.query, 1.0), (self.key, 1.0), (self.offset, 0.1)):
            nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)

    def keys(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Project transcript states, once a chunk.

        Args:
            states: [batch, capacity, dim]; what lies past a row's length is never read, NaN included.
            lengths: [batch], int32, valid tokens of each row.

        Returns:
            [batch, capacity, dim], ``states``' dtype.
        """
        valid = _valid(lengths, states.shape[1])
        keys: Tensor = self.key(states.masked_fill(~valid[..., None], 0.0))
        return keys

    def locate(
        self, conditions: Tensor, keys: Tensor, lengths: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Return the position of each condition, given the keys of the transcript.

        Args:
            conditions: [batch, tokens, dim], audio conditions c_a.
            keys: [batch, capacity, dim], from :meth:`keys`.
            lengths: [batch], int32; a row of length 0 has position 0.
            prior: [batch, tokens, capacity], added to the attention's logits, where there is one.

        Returns:
            [batch, tokens], float32 (float64 for float64 input), between 0 and the row's length.
        """
        batch, tokens, _ = conditions.shape
        capacity = keys.shape[1]
        q = self.query(conditions).view(batch, tokens, self.heads, self.head_dim)
        k = keys.view(batch, capacity, self.heads, self.head_dim)
        # bf16 cannot tell tokens 256 and 257 apart, so everything from the logits on is at least fp32.
        wide = torch.promote_types(conditions.dtype, torch.float32)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k).to(wide) / math.sqrt(self.head_dim)
        if prior is not None:
            logits = logits + prior[:, None].to(wide)
        valid = _valid(lengths, capacity)[:, None, None, :]
        # Finite, so that a row without any token gives some number, which the clamp makes 0, and no NaN.
        logits = logits.masked_fill(~valid, torch.finfo(wide).min)
        weights = logits.softmax(-1).mean(1)
        centres = torch.arange(capacity, device=keys.device, dtype=wide) + 0.5
        offset = self.reach * torch.tanh(self.offset(conditions).squeeze(-1).to(wide))
        return _clamp_through(weights @ centres + offset, lengths.clamp(0, capacity).to(wide)[:, None])

    def forward(
        self, conditions: Tensor, states: Tensor, lengths: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Return the position of each condition in the transcript.

        Args:
            conditions: [batch, tokens, dim], audio conditions c_a.
            states: [batch, capacity, dim], transcript states.
            lengths: [batch], int32, valid transcript tokens of each row.
            prior: [batch, tokens, capacity], added to the attention's logits, where there is one.

        Returns:
            [batch, tokens], float32 (float64 for float64 input), between 0 and the row's length.
        """
        return self.locate(conditions, self.keys(states, lengths), lengths, prior)


class PlannedPointer(nn.Module):
    """Stand where the plan of durations says that the speech has come to, whatever has been heard.

    Takes the place of :class:`ProgressPointer` in an orchestrator that has a duration predictor, to show what
    reading the place off the audio is worth. Nothing corrects it: each chunk goes on where the plan of the
    one before ended. It has no weights.

    Args:
        frames: of a chunk, at least 2.

    Raises:
        ValueError: ``frames`` is below 2.
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        if frames < 2:
            raise ValueError(f"frames must be at least 2 to tell times apart, got {frames}")
        self.frames = frames

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw nothing: there are no weights."""

    def keys(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Return what :meth:`locate` is given and does not read, [batch, capacity, dim]."""
        return torch.zeros_like(states)

    def locate(
        self, conditions: Tensor, keys: Tensor, lengths: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Return the position that is planned for the end of each frame.

        It runs evenly from the middle of a token to that of the next.

        Args:
            conditions: [batch, tokens, dim]; only their number counts, that of a chunk or a multiple of it.
            keys: not read.
            lengths: [batch], int32; a row of length 0 has position 0.
            prior: [batch, tokens, capacity], from :func:`streamchar.durations.pointer_prior`.

        Returns:
            [batch, tokens], the prior's dtype, between 0 and the row's length.

        Raises:
            ValueError: there is no prior, so there was no plan.
        """
        if prior is None:
            raise ValueError("prior must be that of a duration predictor, got None; set duration_dim")
        # Draws of one chunk follow one another and share its plan.
        times = planned_times(prior[:, : self.frames])
        ends = torch.arange(1, self.frames + 1, device=times.device, dtype=times.dtype)
        index = torch.arange(times.shape[1], device=times.device)
        last = lengths.clamp(0, len(index))[:, None] - 1
        gaps = times.diff(dim=1).clamp_min(_LEAST_GAP)
        # What follows the last token takes no time and lies at its end, half a token on; where the window is
        # full nothing does.
        gaps = torch.where(index[:-1] == last, 2 * gaps, gaps)
        gaps = torch.cat((gaps, gaps.new_full((len(gaps), 1), TYPICAL)), 1)
        least, most = -0.5 * (index == 0), 1 - 0.5 * (index == last)
        passed = (ends[:, None] - times[:, None]) / gaps[:, None]
        passed = passed.maximum(least.to(passed.dtype)).minimum(most.to(passed.dtype)[:, None])
        position = (passed * (index <= last)[:, None]).sum(2) + 0.5 * (last >= 0)
        return position.repeat(1, conditions.shape[1] // self.frames)

    def forward(
        self, conditions: Tensor, states: Tensor, lengths: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Return :meth:`locate`'s positions; ``states`` are not read."""
        return self.locate(conditions, states, lengths, prior)


def _valid(lengths: Tensor, capacity: int) -> Tensor:
    return torch.arange(capacity, device=lengths.device) < lengths[:, None]


def _clamp_through(position: Tensor, limit: Tensor) -> Tensor:
    """Clamp to [0, limit] and let the gradient through, or a position past the end could never come back."""
    clamped = position.clamp_min(0.0).minimum(limit)
    return clamped.detach() + (position - position.detach())


def pointer_loss(position: Tensor, target: Tensor, mask: Tensor, beta: float = 1.0) -> Tensor:
    """Return the mean smooth-L1 distance over the positions that have a target.

    Args:
        position: [batch, tokens], predicted positions, in transcript tokens.
        target: [batch, tokens], positions from an alignment; ignored, NaN included, where masked out.
        mask: [batch, tokens], bool, True where the alignment says something.
        beta: distance, in tokens, below which the loss is quadratic.

    Returns:
        A scalar; 0 where the mask is empty.
    """
    target = torch.where(mask, target.to(position.dtype), position.detach())
    total = F.smooth_l1_loss(position, target, reduction="sum", beta=beta)
    return total / mask.sum().clamp_min(1)
