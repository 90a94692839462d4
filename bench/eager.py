"""Plain PyTorch implementations of the fused passes, as peers.

Each function works in the dtype of its inputs, as model code does, and is timed both eagerly and under
``torch.compile``. They serve to compare speed. The references for accuracy, which compute in fp32 or fp64,
are in the kernel families.
"""

import torch
import torch.nn.functional as F

#: Two tensors of one kind: query and key, video and audio, weight and bias, cosine and sine.
Pair = tuple[torch.Tensor, torch.Tensor]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend with the backend that PyTorch chooses; q, k, v: [batch, tokens, heads, head_dim]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def qkv_prologue(
    qkv: torch.Tensor, norms: Pair, rotation: Pair, slots: torch.Tensor, cache: Pair, num_heads: int
) -> torch.Tensor:
    """Normalize, rotate and store with one call per operation; return the queries.

    Args:
        qkv: [1, tokens, (num_heads + 2 * kv_heads) * head_dim].
        norms: RMSNorm weights of queries and keys, [head_dim] each.
        rotation: cosines and sines, [tokens, head_dim / 2] each.
        slots: [1, tokens], slot of each token in the cache.
        cache: keys and values, [1, capacity, kv_heads, head_dim] each, updated in place.
        num_heads: query heads.
    """
    head_dim, kv_heads = norms[0].shape[0], cache[0].shape[2]
    heads = qkv.view(*qkv.shape[:2], num_heads + 2 * kv_heads, head_dim)
    q, k, v = heads.split([num_heads, kv_heads, kv_heads], dim=2)
    q = _rotate(F.rms_norm(q, (head_dim,), norms[0], 1e-6), *rotation)
    k = _rotate(F.rms_norm(k, (head_dim,), norms[1], 1e-6), *rotation)
    index = slots[0].long()
    cache[0].index_copy_(1, index, k)
    cache[1].index_copy_(1, index, v)
    return q


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def norm_modulate(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, row_index: torch.Tensor
) -> torch.Tensor:
    """Apply RMSNorm, then ``* (1 + scale[row]) + shift[row]``.

    Args:
        x: [1, tokens, dim].
        scale: [1, rows, dim].
        shift: [1, rows, dim].
        row_index: [1, tokens], modulation row of each token.
    """
    row = row_index[0]
    y = F.rms_norm(x, (x.shape[-1],), None, 1e-6)
    return y * (1 + scale[:, row]) + shift[:, row]


def gated_norm_modulate(
    x: torch.Tensor,
    branch: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    row_index: torch.Tensor,
) -> Pair:
    """Add ``gate[row] * branch`` to ``x``, then apply :func:`norm_modulate`; return both results.

    ``modulation`` is gate, scale and shift.
    """
    gate, scale, shift = modulation
    x = torch.addcmul(x, gate[:, row_index[0]], branch)
    return x, norm_modulate(x, scale, shift, row_index)


def expert_up(x: torch.Tensor, video: Pair, audio: Pair, num_video: int) -> Pair:
    """Apply a linear layer (weight, bias) and GELU to each modality's tokens, of which video comes first."""
    up = [
        F.gelu(F.linear(tokens, *layer), approximate="tanh")
        for tokens, layer in ((x[:, :num_video], video), (x[:, num_video:], audio))
    ]
    return up[0], up[1]


def expert_down(
    hidden: Pair,
    video: Pair,
    audio: Pair,
    residual: torch.Tensor,
    gate: torch.Tensor,
    row_index: torch.Tensor,
) -> torch.Tensor:
    """Apply a linear layer (weight, bias) to each modality, gate the result and add it to the residual."""
    h = torch.cat([F.linear(each, *layer) for each, layer in zip(hidden, (video, audio))], dim=1)
    return torch.addcmul(residual, gate[:, row_index[0]], h)


def sampler_step(latents: Pair, velocities: Pair, sigmas: torch.Tensor, step: torch.Tensor) -> None:
    """Predict x0 and re-noise it in place, per modality, with PyTorch's random generator."""
    sigma, following = sigmas[step], sigmas[step + 1]
    for x, v in zip(latents, velocities):
        x0 = x - sigma * v
        x.copy_((1 - following) * x0 + following * torch.randn_like(x))


def frames_rgb(frames: torch.Tensor) -> torch.Tensor:
    """Convert frames [frames, 3, height, width] in [-1, 1] to uint8 [frames, height, width, 3]."""
    return ((frames + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def frames_yuv(frames: torch.Tensor) -> torch.Tensor:
    """Convert frames to BT.709 limited-range I420, uint8 [frames, height * 3 / 2, width]."""
    r, g, b = ((frames.float() + 1) * 0.5).clamp(0, 1).unbind(1)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    planes = [16 + 219 * y]
    for chroma in ((b - y) / 1.8556, (r - y) / 1.5748):
        planes.append(128 + 224 * F.avg_pool2d(chroma[:, None], 2)[:, 0])
    count = frames.shape[0]
    flat = [plane.round().to(torch.uint8).view(count, -1) for plane in planes]
    return torch.cat(flat, dim=1).view(count, -1, frames.shape[-1])
