"""Host-side tables for rotary position embedding over time, height and width.

The pairs of a head are split into three runs, one per axis: pair i of a run with P pairs turns by
``position * theta ** (-i / P)``. Angles are computed in fp64, because the product of a late position and a
fast frequency loses its fraction in fp32. The tables are rounded once, to the fp32 that the kernels read.
"""

import math

import torch

from .checks import KernelArgumentError, require, require_shape


def rope_tables(
    positions: torch.Tensor,
    head_dim: int,
    *,
    time_pairs: int | None = None,
    height_pairs: int | None = None,
    width_pairs: int | None = None,
    theta: float = 10000.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cosine and sine of every token's rotation angles.

    Args:
        positions: [tokens, 3], any float dtype, (time in frames, height, width); negative times are allowed.
        head_dim: elements of a head, even.
        time_pairs: pairs that turn with time. Give all three counts, with sum head_dim / 2, or none. By
            default height and width get a third each, rounded down, and time gets the rest.
        height_pairs: pairs that turn with height.
        width_pairs: pairs that turn with width.
        theta: ratio between the fastest and (just beyond) the slowest frequency, above 0.

    Returns:
        cos, sin: each [tokens, head_dim / 2] fp32 on the device of ``positions``; columns in the order time,
        height, width.

    Raises:
        KernelArgumentError: a shape or dtype does not match, a position is not finite, or the counts of
            pairs do not add up.

    Source: rotary embedding, arXiv 2104.09864 section 3.2; its split over three axes as in Wan's transformer.
    """
    require(head_dim > 0 and head_dim % 2 == 0, "head_dim", "even and at least 2", head_dim)
    require(theta > 0 and math.isfinite(theta), "theta", "finite and above 0", theta)
    pairs = _split_pairs(head_dim // 2, time_pairs, height_pairs, width_pairs)
    require_shape("positions", positions, (None, 3), "[tokens, (time, height, width)]")
    require(positions.is_floating_point(), "positions", "of a float dtype", str(positions.dtype))
    require(bool(torch.isfinite(positions).all()), "positions", "finite", "an infinity or NaN")
    angles = []
    for axis, count in enumerate(pairs):
        exponent = -torch.arange(count, dtype=torch.float64, device=positions.device) / max(count, 1)
        angles.append(positions[:, axis, None].double() * theta**exponent)
    angle = torch.cat(angles, 1)
    return angle.cos().float(), angle.sin().float()


def video_positions(frames: int, height: int, width: int, first_frame: float = 0) -> torch.Tensor:
    """List the positions of a video latent's tokens, width fastest and time slowest.

    Args:
        frames: latent frames, at least 0.
        height: token rows of a frame, at least 1.
        width: token columns of a frame, at least 1.
        first_frame: time of the first frame; negative for conditioning before the chunk.

    Returns:
        [frames * height * width, 3] fp64, (time, height, width).

    Raises:
        KernelArgumentError: a size is out of range or ``first_frame`` is not finite.
    """
    require(frames >= 0, "frames", "at least 0", frames)
    require(height >= 1, "height", "at least 1", height)
    require(width >= 1, "width", "at least 1", width)
    require(math.isfinite(first_frame), "first_frame", "finite", first_frame)
    time = first_frame + torch.arange(frames, dtype=torch.float64)
    rows = torch.arange(height, dtype=torch.float64)
    columns = torch.arange(width, dtype=torch.float64)
    return torch.cartesian_prod(time, rows, columns).reshape(-1, 3)


def audio_positions(tokens: int, tokens_per_frame: float, first_frame: float = 0) -> torch.Tensor:
    """List the positions of audio tokens on the time axis of the video latent.

    Token j has the time ``first_frame + j / tokens_per_frame``, that of the picture it is heard with, and
    height and width 0, which leaves those pairs unrotated.

    Args:
        tokens: audio tokens, at least 0.
        tokens_per_frame: audio tokens per latent frame, above 0.
        first_frame: time of the first token, in latent frames.

    Returns:
        [tokens, 3] fp64, (time, 0, 0).

    Raises:
        KernelArgumentError: a size or rate is out of range or ``first_frame`` is not finite.
    """
    require(tokens >= 0, "tokens", "at least 0", tokens)
    require(
        tokens_per_frame > 0 and math.isfinite(tokens_per_frame),
        "tokens_per_frame",
        "finite and above 0",
        tokens_per_frame,
    )
    require(math.isfinite(first_frame), "first_frame", "finite", first_frame)
    positions = torch.zeros((tokens, 3), dtype=torch.float64)
    positions[:, 0] = first_frame + torch.arange(tokens, dtype=torch.float64) / tokens_per_frame
    return positions


def _split_pairs(pairs: int, time: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
    if time is None and height is None and width is None:
        third = pairs // 3
        return pairs - 2 * third, third, third
    if time is None or height is None or width is None:
        raise KernelArgumentError(
            "time_pairs, height_pairs and width_pairs", "given together, or none", (time, height, width)
        )
    for name, count in {"time_pairs": time, "height_pairs": height, "width_pairs": width}.items():
        require(count >= 0, name, "at least 0", count)
    total = time + height + width
    require(total == pairs, "time_pairs + height_pairs + width_pairs", f"head_dim / 2 = {pairs}", total)
    return time, height, width
