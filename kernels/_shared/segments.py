"""Host-side tables: the segments of a KV cache, and the slot of each new token.

Values are validated here, once, on the host. The kernels read the resulting device tensors and clamp the
values, so a table that is later changed on the device can select wrong rows, but no rows outside the buffer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from .checks import KernelArgumentError, require

Span = tuple[int, int]


def segment_table(
    rows: Sequence[Sequence[Span]],
    capacity: int,
    device: torch.device | str = "cpu",
    *,
    alignment: int = 1,
) -> torch.Tensor:
    """Build the device table of segments that :func:`joint_attention` attends to.

    Args:
        rows: for each batch row its segments as (start, length) in KV slots; an absent segment has length 0.
            Every row has the same number of segments.
        capacity: number of KV slots in a row of the cache.
        device: device of the table.
        alignment: starts must be multiples of this; fp8 attention needs 16.

    Returns:
        [batch, segments, 2] int32, (start, length).

    Raises:
        KernelArgumentError: a segment is negative, ends past ``capacity``, starts off the alignment or
            overlaps another of its row, or rows differ in their number of segments.
    """
    require(len(rows) > 0, "rows", "at least one batch row", 0)
    for index, row in enumerate(rows):
        name = f"rows[{index}]"
        require(len(row) == len(rows[0]), name, f"{len(rows[0])} segments like rows[0]", len(row))
        _check_spans(name, row, capacity)
        for s, (start, _) in enumerate(row):
            require(start % alignment == 0, f"{name}[{s}].start", f"a multiple of {alignment}", start)
    return torch.tensor([list(map(list, row)) for row in rows], dtype=torch.int32).to(device)


def slot_table(
    rows: Sequence[Sequence[Span]], capacity: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Build the table of the KV slots that new tokens are written to.

    Args:
        rows: for each batch row the spans (start, length) that its tokens fill, in token order; every row
            has the same number of tokens.
        capacity: number of KV slots in a row of the cache.
        device: device of the table.

    Returns:
        [batch, tokens] int32. A kernel skips a token whose slot lies outside [0, capacity).

    Raises:
        KernelArgumentError: a span is negative, ends past ``capacity`` or overlaps another of its row, or
            rows differ in their number of tokens.
    """
    require(len(rows) > 0, "rows", "at least one batch row", 0)
    tokens = sum(length for _, length in rows[0])
    slots = []
    for index, row in enumerate(rows):
        _check_spans(f"rows[{index}]", row, capacity)
        flat = [slot for start, length in row for slot in range(start, start + length)]
        require(len(flat) == tokens, f"rows[{index}]", f"{tokens} tokens like rows[0]", len(flat))
        slots.append(flat)
    return torch.tensor(slots, dtype=torch.int32).reshape(len(rows), tokens).to(device)


def _check_spans(name: str, spans: Sequence[Span], capacity: int) -> None:
    for index, (start, length) in enumerate(spans):
        require(start >= 0, f"{name}[{index}].start", "at least 0", start)
        require(length >= 0, f"{name}[{index}].length", "at least 0", length)
        require(
            start + length <= capacity,
            f"{name}[{index}].start + length",
            f"at most {capacity} (capacity of this cache)",
            start + length,
            "shorten the segment or open a larger cache",
        )
    used = sorted((start, start + length, index) for index, (start, length) in enumerate(spans) if length)
    for (_, end, first), (start, _, second) in pairwise(used):
        if start < end:
            raise KernelArgumentError(
                f"{name}[{second}].start",
                f"at least {end} (end of {name}[{first}])",
                start,
                "segments overlap",
            )
