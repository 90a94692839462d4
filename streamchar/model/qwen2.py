"""The Qwen2 language model with the parameter names of ``transformers``, and its checkpoints.

Pre-norm blocks of grouped-query attention (biased q, k and v, half-split RoPE) and SwiGLU, with RMSNorm.
Source: Qwen2 (arXiv 2407.10671).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_foreign
from ..config import ConfigError, OrchestratorConfig
from ..profiling import span


class Attention(nn.Module):
    """Grouped-query attention with biased q, k, v projections and half-split RoPE."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.dim, config.heads * config.head_dim)
        self.k_proj = nn.Linear(config.dim, config.kv_heads * config.head_dim)
        self.v_proj = nn.Linear(config.dim, config.kv_heads * config.head_dim)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Arguments are those of :meth:`Qwen2.forward`, with the cache of one layer."""
        batch, tokens, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, tokens, self.heads, self.head_dim), rope)
        k = rotate(self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim), rope)
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim)
        if cache is not None:
            # The current tokens take the last slots of the cache.
            for cached, new in zip(cache, (k, v)):
                cached[:, -tokens:].copy_(new)
            k, v = cache
        # Query heads that share a key become further queries: k and v are not copied, and any backend works.
        groups = self.heads // self.kv_heads
        q = q.view(batch, tokens, self.kv_heads, groups, self.head_dim).permute(0, 2, 3, 1, 4)
        out = F.scaled_dot_product_attention(
            q.reshape(batch, self.kv_heads, groups * tokens, self.head_dim),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
        )
        out = out.view(batch, self.kv_heads, groups, tokens, self.head_dim).permute(0, 3, 1, 2, 4)
        projected: Tensor = self.o_proj(out.reshape(batch, tokens, self.heads * self.head_dim))
        return projected


class GatedFFN(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last dimension."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Qwen2Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedFFN(config)
        self.input_layernorm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Arguments are those of :meth:`Qwen2.forward`, with the cache of one layer."""
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Qwen2(nn.Module):
    """The language model without its output head."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.dim)
        self.layers = nn.ModuleList(Qwen2Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.groups = config.heads // config.kv_heads

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the normalised final hidden states, [batch, tokens, dim].

        Args:
            x: [batch, tokens, dim], embeddings.
            rope: cosines and sines of the positions, each [batch, tokens, 1, head_dim / 2].
            mask: [batch, 1, groups * tokens, keys], additive mask from :meth:`fold`.
            cache: k and v, each [layers, batch, keys, kv_heads, head_dim]; the last ``tokens`` slots are
                written. Without it, tokens attend to one another only.
        """
        for index, layer in enumerate(self.layers):
            with span("layer", index):
                x = layer(x, rope, mask, None if cache is None else (cache[0][index], cache[1][index]))
        states: Tensor = self.norm(x)
        return states

    def fold(self, mask: Tensor) -> Tensor:
        """Repeat a mask, [batch, tokens, keys], for the query heads that share a key head."""
        return mask.repeat(1, self.groups, 1)[:, None]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of ``x``, [batch, tokens, heads, head_dim]."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of positions, [batch, tokens], each [batch, tokens, 1, head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    # In fp32 and in this order of operations, as in the training of the checkpoints.
    angles = positions[..., None, None].float() * (1.0 / theta**exponent)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def load_qwen2(model: Qwen2, config: OrchestratorConfig, directory: str | Path) -> None:
    """Load a checkpoint that ``transformers`` saved into ``model``, in place. An output head is ignored.

    Args:
        model: built from ``config``.
        config: sizes that config.json must describe.
        directory: holds config.json and one or several safetensors files.

    Raises:
        CheckpointError: config.json describes another model, or features that are not implemented (sliding
            window, scaled RoPE); or a tensor or file does not fit, see
            :func:`streamchar.checkpoint.load_foreign`.
    """
    found = read_qwen2_config(directory, config.history_seconds, config.transcript_tokens)
    # These fields are not part of a language model's checkpoint.
    ours = {name: getattr(config, name) for name in ("tokenizer", "duration_dim", "duration_scale")}
    found = replace(found, **ours)
    if found != config:
        raise CheckpointError(directory, f"must describe {config}, got {found}")
    load_foreign(model, directory, "model.safetensors", prefix="model.", ignored=("lm_head.weight",))


def read_qwen2_config(
    directory: str | Path, history_seconds: float = 15.0, transcript_tokens: int = 256
) -> OrchestratorConfig:
    """Read the sizes of a Qwen2 checkpoint that ``transformers`` saved.

    Args:
        directory: holds config.json.
        history_seconds: longest audio history in the packed sequence, in seconds.
        transcript_tokens: size of the transcript window, in text tokens.

    Raises:
        CheckpointError: config.json is missing or describes another architecture or features that are not
            implemented.
    """
    file = Path(directory) / "config.json"
    try:
        raw: Any = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(file, f"must be the config.json of a Qwen2 checkpoint; {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(file, f"must hold an object, got {type(raw).__name__}")
    # transformers 5 groups the RoPE settings; version 4 has rope_theta at the top level.
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta", 1e6)}
    implemented = {
        "model_type": (raw.get("model_type"), "qwen2"),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "use_sliding_window": (bool(raw.get("use_sliding_window")), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "rope_scaling": (raw.get("rope_scaling"), None),
    }
    for name, (value, limit) in implemented.items():
        if value != limit:
            raise CheckpointError(file, f"{name} must be {limit!r}, got {value!r}")
    try:
        dim, heads = raw["hidden_size"], raw["num_attention_heads"]
        return OrchestratorConfig(
            dim=dim,
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or dim // heads,
            ffn=raw["intermediate_size"],
            vocabulary=raw["vocab_size"],
            history_seconds=history_seconds,
            transcript_tokens=transcript_tokens,
            rope_theta=float(rope["rope_theta"]),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
        )
    except KeyError as error:
        raise CheckpointError(file, f"must have {error}") from error
    except (ConfigError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise CheckpointError(file, f"must have the sizes of a Qwen2 model; {error}") from error
