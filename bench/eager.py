"""What one would write in PyTorch without this package: the peers of the fused passes.

Each function works in the dtype it is given, as model code does, and is timed as it stands and under
``torch.compile``. They are peers for speed, not references for accuracy.
"""

import torch
import torch.nn.functional as F


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend with whatever backend PyTorch picks; q, k, v: [batch, tokens, heads, head_dim]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def qkv_prologue(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Norm, rotate and store with one call an operation; arguments as the fused function's."""
    head_dim, kv_heads = q_norm.shape[0], k_cache.shape[2]
    heads = qkv.view(*qkv.shape[:2], num_heads + 2 * kv_heads, head_dim)
    q, k, v = heads.split([num_heads, kv_heads, kv_heads], dim=2)
    q = _rotate(F.rms_norm(q, (head_dim,), q_norm, 1e-6), cos, sin)
    k = _rotate(F.rms_norm(k, (head_dim,), k_norm, 1e-6), cos, sin)
    index = slots[0].long()
    k_cache.index_copy_(1, index, k)
    v_cache.index_copy_(1, index, v)
    return q


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def norm_modulate(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, row_index: torch.Tensor
) -> torch.Tensor:
    """RMSNorm, then ``* (1 + scale[row]) + shift[row]``; one modulation row a token, batch 1."""
    row = row_index[0]
    y = F.rms_norm(x, (x.shape[-1],), None, 1e-6)
    return y * (1 + scale[:, row]) + shift[:, row]


def gated_norm_modulate(
    x: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    row_index: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gated residual, then :func:`norm_modulate`."""
    x = torch.addcmul(x, gate[:, row_index[0]], branch)
    return x, norm_modulate(x, scale, shift, row_index)


def expert_up(
    x: torch.Tensor,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    num_video: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two linear layers, each with GELU."""
    video = F.gelu(F.linear(x[:, :num_video], w_video, b_video), approximate="tanh")
    audio = F.gelu(F.linear(x[:, num_video:], w_audio, b_audio), approximate="tanh")
    return video, audio


def expert_down(
    h_video: torch.Tensor,
    h_audio: torch.Tensor,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    residual: torch.Tensor,
    gate: torch.Tensor,
    row_index: torch.Tensor,
) -> torch.Tensor:
    """Two linear layers, joined, gated and added."""
    h = torch.cat((F.linear(h_video, w_video, b_video), F.linear(h_audio, w_audio, b_audio)), dim=1)
    return torch.addcmul(residual, gate[:, row_index[0]], h)


def sampler_step(
    x_video: torch.Tensor,
    x_audio: torch.Tensor,
    v_video: torch.Tensor,
    v_audio: torch.Tensor,
    sigmas: torch.Tensor,
    step: torch.Tensor,
) -> None:
    """Predict x0 and re-noise it, one modality after the other, with PyTorch's generator."""
    sigma, following = sigmas[step], sigmas[step + 1]
    for x, v in ((x_video, v_video), (x_audio, v_audio)):
        x0 = x - sigma * v
        x.copy_((1 - following) * x0 + following * torch.randn_like(x))


def egress_rgb(frames: torch.Tensor) -> torch.Tensor:
    """Bytes of frames [F, 3, H, W] as [F, H, W, 3]."""
    return ((frames + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def egress_yuv(frames: torch.Tensor) -> torch.Tensor:
    """BT.709 limited-range I420 of frames [F, 3, H, W] as [F, H * 3 / 2, W]."""
    r, g, b = ((frames.float() + 1) * 0.5).clamp(0, 1).unbind(1)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    planes = [16 + 219 * y]
    for chroma in ((b - y) / 1.8556, (r - y) / 1.5748):
        planes.append(128 + 224 * F.avg_pool2d(chroma[:, None], 2)[:, 0])
    count = frames.shape[0]
    flat = [plane.round().to(torch.uint8).view(count, -1) for plane in planes]
    return torch.cat(flat, dim=1).view(count, -1, frames.shape[-1])
