"""The progress pointer: the position in the transcript that each audio token has reached.

Positions are counted in transcript tokens. Token i covers [i, i + 1]: position 0 is the start of the first
token, i + 0.5 the middle of token i, and N the end of a transcript of N tokens. Attention to token i alone
gives i + 0.5; a learned, bounded offset then moves the position within and around that token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .durations import TYPICAL_DURATION, planned_times

#: Smallest time between the middles of two tokens, in frames; avoids division by zero.
_LEAST_GAP = 1e-3


class ProgressPointer(nn.Module):
    """Cross-attention from audio conditions to transcript states that gives the expected position.

    Source: StreamChar (arXiv 2605.25659), progress-aware pointer: softmax-weighted position plus a learned
    offset, clamped to [0, N], trained with smooth L1.

    Args:
        dim: width of conditions and transcript states.
        heads: attention heads, a divisor of ``dim``; their weights are averaged.
        reach: largest offset in either direction, in tokens; 0.5 just reaches the ends of a token.

    Raises:
        ValueError: ``heads`` does not divide ``dim``, or ``reach`` is below 0.5.
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
        """Draw random weights that preserve unit variance; the offset starts near zero."""
        for linear, gain in ((self.query, 1.0), (self.key, 1.0), (self.offset, 0.1)):
            nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)

    def keys(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Project transcript states to keys; needed once per chunk.

        Args:
            states: [batch, capacity, dim]; entries past a row's length are ignored and may be NaN.
            lengths: [batch] int32, number of valid tokens in each row.

        Returns:
            [batch, capacity, dim], dtype of ``states``.
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
            lengths: [batch] int32, number of valid tokens; a row of length 0 gets position 0.
            prior: [batch, tokens, capacity], added to the attention logits if given.

        Returns:
            [batch, tokens], fp32 (fp64 for fp64 input), between 0 and the row's length.
        """
        batch, tokens, _ = conditions.shape
        capacity = keys.shape[1]
        q = self.query(conditions).view(batch, tokens, self.heads, self.head_dim)
        k = keys.view(batch, capacity, self.heads, self.head_dim)
        # bf16 cannot distinguish positions 256 and 257, so use at least fp32 from the logits on.
        wide = torch.promote_types(conditions.dtype, torch.float32)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k).to(wide) / math.sqrt(self.head_dim)
        if prior is not None:
            logits = logits + prior[:, None].to(wide)
        valid = _valid(lengths, capacity)[:, None, None, :]
        # A finite value: an empty row then gives a finite position, which the clamp sets to 0, and not NaN.
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
            lengths: [batch] int32, number of valid tokens in each row.
            prior: [batch, tokens, capacity], added to the attention logits if given.

        Returns:
            [batch, tokens], fp32 (fp64 for fp64 input), between 0 and the row's length.
        """
        return self.locate(conditions, self.keys(states, lengths), lengths, prior)


class PlannedPointer(nn.Module):
    """A pointer that follows the planned durations and ignores the audio; for ablations only.

    Evaluation and rollout training put it in the place of :class:`ProgressPointer` to measure what reading
    the position from the audio is worth. It requires an orchestrator with a duration predictor. Each chunk
    continues where the plan of the previous chunk ended, without correction. It has no weights, and the
    engine never builds one.

    Args:
        frames: number of frames in a chunk, at least 2.

    Raises:
        ValueError: ``frames`` is below 2.
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        if frames < 2:
            raise ValueError(f"frames must be at least 2, got {frames}")
        self.frames = frames

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Do nothing: there are no weights."""

    def keys(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Return zeros, [batch, capacity, dim]; :meth:`locate` does not read them."""
        return torch.zeros_like(states)

    def locate(
        self, conditions: Tensor, keys: Tensor, lengths: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Return the planned position at the end of each frame.

        The position moves linearly from the middle of each token to the middle of the next.

        Args:
            conditions: [batch, tokens, dim]; only the number of tokens is used, a multiple of ``frames``.
            keys: not used.
            lengths: [batch] int32, number of valid tokens; a row of length 0 gets position 0.
            prior: [batch, tokens, capacity], from :func:`streamchar.model.durations.pointer_prior`.

        Returns:
            [batch, tokens], dtype of ``prior``, between 0 and the row's length.

        Raises:
            ValueError: there is no prior, because the orchestrator has no duration predictor.
        """
        if prior is None:
            raise ValueError("prior must be that of a duration predictor, got None; set duration_dim above 0")
        # Several draws of one chunk are concatenated and share its plan.
        times = planned_times(prior[:, : self.frames])
        ends = torch.arange(1, self.frames + 1, device=times.device, dtype=times.dtype)
        index = torch.arange(times.shape[1], device=times.device)
        last = lengths.clamp(0, len(index))[:, None] - 1
        gaps = times.diff(dim=1).clamp_min(_LEAST_GAP)
        # Padding has no duration, so its time is the end of the last token, half a token after its middle:
        # that gap counts twice. A full window has no padding, and its last gap is the typical duration.
        gaps = torch.where(index[:-1] == last, 2 * gaps, gaps)
        gaps = torch.cat((gaps, gaps.new_full((len(gaps), 1), TYPICAL_DURATION)), 1)
        least, most = -0.5 * (index == 0), 1 - 0.5 * (index == last)
        passed = (ends[:, None] - times[:, None]) / gaps[:, None]
        passed = passed.maximum(least.to(passed.dtype)).minimum(most.to(passed.dtype)[:, None])
        position = (passed * (index <= last)[:, None]).sum(2) + 0.5 * (last >= 0)
        return position.repeat(1, conditions.shape[1] // self.frames)

    def forward(
        self, conditions: Tensor, states: Tensor, lengths: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Return the positions from :meth:`locate`; ``states`` are not used."""
        return self.locate(conditions, states, lengths, prior)


def _valid(lengths: Tensor, capacity: int) -> Tensor:
    return torch.arange(capacity, device=lengths.device) < lengths[:, None]


def _clamp_through(position: Tensor, limit: Tensor) -> Tensor:
    """Clamp to [0, limit] with a straight-through gradient, so that positions past an end can recover."""
    clamped = position.clamp_min(0.0).minimum(limit)
    return clamped.detach() + (position - position.detach())


def pointer_loss(position: Tensor, target: Tensor, mask: Tensor, beta: float = 1.0) -> Tensor:
    """Return the mean smooth L1 distance over the positions that have a target.

    Args:
        position: [batch, tokens], predicted positions, in transcript tokens.
        target: [batch, tokens], positions from an alignment; ignored where ``mask`` is false, even if NaN.
        mask: [batch, tokens] bool, whether the alignment gives a target.
        beta: distance in tokens below which the loss is quadratic.

    Returns:
        A scalar; 0 if the mask is empty.
    """
    target = torch.where(mask, target.to(position.dtype), position.detach())
    total = F.smooth_l1_loss(position, target, reduction="sum", beta=beta)
    return total / mask.sum().clamp_min(1)
