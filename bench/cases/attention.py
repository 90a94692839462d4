"""Cases of joint attention."""

from collections.abc import Iterator

import torch

from bench import peers
from bench.cases.base import Call, Case, Setting, bind
from streamchar import kernels as K
from streamchar.kernels._shared.compat import FP8

#: Latent frames per chunk in the paper, T.
PAPER_LATENT_FRAMES = 9


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Yield attention of the chunk, the first chunk, the paper's chunk, and a square shape for comparison."""
    preset, dit = setting.preset, setting.preset.dit
    chunk, cached = preset.noisy_tokens, preset.cached_tokens
    nine = preset.with_latent_frames(PAPER_LATENT_FRAMES)
    lengths = {
        "chunk": (chunk, cached + chunk, dit.heads, dit.head_dim),
        "first chunk": (chunk, preset.reference_tokens + chunk, dit.heads, dit.head_dim),
        f"chunk of T = {PAPER_LATENT_FRAMES}": (
            nine.noisy_tokens,
            nine.cached_tokens + nine.noisy_tokens,
            dit.heads,
            dit.head_dim,
        ),
        "square": (2 * chunk, 2 * chunk, dit.heads, dit.head_dim),
        "chunk, other head_dim": (chunk, cached + chunk, dit.dim // 64, 64)
        if dit.head_dim == 128
        else (chunk, cached + chunk, max(dit.dim // 128, 1), 128),
    }
    for label, (q_len, kv_len, heads, head_dim) in lengths.items():
        yield _attention(setting, label, q_len, kv_len, heads, head_dim)
        if setting.device.type == "cuda":
            yield _attention_fp8(setting, label, q_len, kv_len, heads, head_dim)


def _attention(setting: Setting, label: str, q_len: int, kv_len: int, heads: int, head_dim: int) -> Case:
    rivals = peers.attention(setting.device, setting.compiled)

    def build(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        q = draw(1, q_len, heads, head_dim)
        k, v = draw(1, kv_len, heads, head_dim), draw(1, kv_len, heads, head_dim)
        table = _segments(setting, kv_len)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.joint_attention(q, k, v, table, backend=setting.ours)
        }
        return calls | {name: bind(function, q, k, v) for name, function in rivals.items()}

    width = heads * head_dim * torch.empty(0, dtype=setting.dtype).element_size()
    return Case(
        f"attention {label} {q_len} x {kv_len}, {heads} x {head_dim}",
        "attention",
        build,
        flop=4.0 * q_len * kv_len * heads * head_dim,
        bytes=2.0 * (q_len + kv_len) * width,
        unit="bf16",
        targets=dict.fromkeys(rivals, 0.9),
    )


def _attention_fp8(setting: Setting, label: str, q_len: int, kv_len: int, heads: int, head_dim: int) -> Case:
    rivals = peers.attention(setting.device, setting.compiled)
    rivals_fp8 = peers.attention_fp8(setting.device)
    capacity = -(-kv_len // 16) * 16

    def build(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        wide = [draw(1, length, heads, head_dim) for length in (q_len, capacity, capacity)]
        # The largest of this many normal values is about 5, so scaled by 64 they stay below 448.
        q8, k8, v8 = ((x.float() * 64).clamp(-448, 448).to(FP8) for x in wide)
        v8_t = v8.permute(0, 2, 3, 1).contiguous()
        scale = torch.full((1, heads), 1 / 64, device=setting.device)
        table = _segments(setting, kv_len, alignment=16)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.joint_attention_fp8(q8, k8, v8_t, table, scale, scale, scale)
        }
        q, k, v = (x[:, :length] for x, length in zip(wide, (q_len, kv_len, kv_len), strict=True))
        calls |= {name: bind(function, q, k, v) for name, function in rivals.items()}
        eight = (q8, k8[:, :kv_len], v8[:, :kv_len], scale)
        return calls | {name: bind(function, *eight) for name, function in rivals_fp8.items()}

    return Case(
        f"attention fp8 {label} {q_len} x {kv_len}, {heads} x {head_dim}",
        "attention",
        build,
        flop=4.0 * q_len * kv_len * heads * head_dim,
        bytes=(3.0 * q_len + 2.0 * kv_len) * heads * head_dim,
        unit="fp8",
        targets=dict.fromkeys(rivals, 1.0) | dict.fromkeys(rivals_fp8, 0.9),
    )


def _segments(setting: Setting, kv_len: int, alignment: int = 1) -> torch.Tensor:
    """Divide kv_len slots into the model's segments, truncated to fit; the work is that of one segment."""
    preset = setting.preset
    spans, start = [], 0
    for length in (preset.reference_tokens, preset.sink_tokens, preset.motion_tokens):
        length = min(length, kv_len - start)
        spans.append((start, length))
        start += length
    spans.append((start, kv_len - start))
    return K.segment_table([spans], kv_len, setting.device, alignment=alignment)
