"""Joint attention in PyTorch: the reference in plain operations, and the path used without Triton."""

import torch
import torch.nn.functional as F


def joint_attention_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: torch.Tensor, softmax_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute (out, log-sum-exp) in plain PyTorch, in fp32 or, for fp64 input, in fp64.

    Shapes as in :func:`.joint_attention`; the log-sum-exp keeps the wide dtype.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    keep = slots_in_segments(segments, k.shape[1])
    group = q.shape[2] // k.shape[2]
    keys, values = (
        torch.where(keep[:, :, None, None], x, 0).to(wide).repeat_interleave(group, dim=2) for x in (k, v)
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(wide), keys) * softmax_scale
    scores = scores.masked_fill(~keep[:, None, None, :], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    p = torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None])
    return torch.einsum("bhqk,bkhd->bqhd", p, values).to(q.dtype), lse


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: torch.Tensor, softmax_scale: float
) -> torch.Tensor:
    """Attend with PyTorch's fused attention; shapes as in :func:`.joint_attention`."""
    if segments.device.type == "cpu" and not torch.compiler.is_compiling():
        return _attend_by_row(q, k, v, segments, softmax_scale)
    return _attend_masked(q, k, v, segments, softmax_scale)


def _attend_masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: torch.Tensor, softmax_scale: float
) -> torch.Tensor:
    """Attend with a mask. No value of the table is read on the host, so the call can be captured."""
    keep = slots_in_segments(segments, k.shape[1])
    k, v = (torch.where(keep[:, :, None, None], x, 0).transpose(1, 2) for x in (k, v))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=keep[:, None, None, :], scale=softmax_scale, enable_gqa=True
    )
    return torch.where(keep.any(1)[:, None, None, None], out.transpose(1, 2), 0)


def _attend_by_row(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: torch.Tensor, softmax_scale: float
) -> torch.Tensor:
    """Attend row by row to the valid slots only. The table is in host memory; a mask would be slower."""
    capacity, rows = k.shape[1], []
    for row, spans in enumerate(segments.tolist()):
        runs: list[list[int]] = []
        for start, length in spans:
            start = min(max(start, 0), capacity)
            end = start + min(max(length, 0), capacity - start)
            if runs and runs[-1][1] == start:
                runs[-1][1] = end
            elif start < end:
                runs.append([start, end])
        if not runs:
            rows.append(torch.zeros_like(q[row : row + 1]))
            continue
        keys, values = (
            torch.cat([x[row : row + 1, start:end] for start, end in runs], 1).transpose(1, 2)
            if len(runs) > 1
            else x[row : row + 1, runs[0][0] : runs[0][1]].transpose(1, 2)
            for x in (k, v)
        )
        queries = q[row : row + 1].transpose(1, 2)
        if q.dtype == torch.bfloat16 and q.requires_grad:
            rows.append(_attend_densely(queries, keys, values, softmax_scale).transpose(1, 2))
            continue
        out = F.scaled_dot_product_attention(queries, keys, values, scale=softmax_scale, enable_gqa=True)
        rows.append(out.transpose(1, 2))
    return torch.cat(rows)


def _attend_densely(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float) -> torch.Tensor:
    """Attend with matrix products; in bf16 on a CPU this takes a third of the time.

    q, k, v: [1, heads, tokens, head_dim].
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x[0].repeat_interleave(group, 0) if group > 1 else x[0] for x in (k, v))
    scores = torch.baddbmm(q.new_zeros(1), q[0], k.transpose(1, 2), beta=0, alpha=softmax_scale)
    return torch.bmm(scores.softmax(-1), v)[None]


def aligned_segments(segments: torch.Tensor, alignment: int) -> torch.Tensor:
    """Round segment starts down as the fp8 kernel does; [batch, num_segments, 2] int32 in and out."""
    start = segments[..., :1]
    return torch.cat([start - start % alignment, segments[..., 1:]], -1)


def slots_in_segments(segments: torch.Tensor, capacity: int) -> torch.Tensor:
    """Return which slots the segments cover, clamped as in the kernel: [batch, capacity] bool."""
    start = segments[..., :1].clamp(0, capacity)
    end = start + torch.minimum(segments[..., 1:].clamp(min=0), capacity - start)
    slot = torch.arange(capacity, device=segments.device)
    return ((slot >= start) & (slot < end)).any(1)
