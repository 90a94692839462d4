"""The Qwen2 architecture: layers with ``transformers``' parameter names, and its checkpoints.

Pre-norm blocks of grouped-query attention (biased q, k, v; half-split RoPE) and SwiGLU, RMSNorm throughout.
Source: Qwen2 (arXiv 2407.10671).
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .checkpoint import CheckpointError
from .config import ConfigError, OrchestratorConfig
from .ranges import span


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
        """Attend; arguments as in :meth:`Qwen2.forward`, the cache that of one layer."""
        batch, tokens, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, tokens, self.heads, self.head_dim), rope)
        k = rotate(self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim), rope)
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim)
        if cache is not None:
            # The tokens at hand are the last of those that the cache shows.
            for cached, new in zip(cache, (k, v)):
                cached[:, -tokens:].copy_(new)
            k, v = cache
        # Heads that share a key become further queries of it: no copy of k and v, and any backend serves.
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
    """SwiGLU."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
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
        """Apply the layer; arguments as in :meth:`Qwen2.forward`, the cache that of one layer."""
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Qwen2(nn.Module):
    """The layers of the language model, from embeddings to normalised states."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.groups = config.heads // config.kv_heads

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the states of ``x``.

        Args:
            x: [batch, tokens, dim], embeddings.
            rope: cosines and sines of the tokens' positions, [batch, tokens, 1, head_dim / 2].
            mask: [batch, 1, groups * tokens, keys], additive; rows from :meth:`fold`.
            cache: k and v, [layers, batch, keys, kv_heads, head_dim]; their last ``tokens`` are written.
        """
        for index, layer in enumerate(self.layers):
            with span("layer", index):
                x = layer(x, rope, mask, None if cache is None else (cache[0][index], cache[1][index]))
        states: Tensor = self.norm(x)
        return states

    def fold(self, mask: Tensor) -> Tensor:
        """Repeat a mask [batch, tokens, keys] for the query heads that share a key."""
        return mask.repeat(1, self.groups, 1)[:, None]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of ``x``, [batch, tokens, heads, head_dim]."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of ``positions``, [batch, tokens], each [batch, tokens, 1, head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    # fp32 and in this order, as the checkpoints were trained.
    angles = positions[..., None, None].float() * (1.0 / theta**exponent)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def load_qwen2(model: Qwen2, config: OrchestratorConfig, directory: str | Path) -> None:
    """Load a checkpoint that ``transformers`` saved into ``model``, in place.

    Tensors are memory-mapped and cast to the parameters' dtype one by one. An output head is left out.

    Args:
        model: built from ``config``.
        config: what config.json must say.
        directory: holds config.json and safetensors, in one file or in shards.

    Raises:
        CheckpointError: config.json describes another model or one with features that are not built
            (sliding windows, scaled RoPE); or a tensor is missing, unexpected, mis-shaped, not finite
            or its file truncated.
    """
    found = read_qwen2_config(directory, config.history_seconds, config.transcript_tokens)
    # What a checkpoint of a language model does not say.
    ours = {name: getattr(config, name) for name in ("tokenizer", "duration_dim", "duration_scale")}
    found = replace(found, **ours)
    if found != config:
        raise CheckpointError(directory, f"must describe {config}, got {found}")
    wanted = dict(model.named_parameters())
    for name, tensor in _tensors(Path(directory)):
        if name == "lm_head.weight":
            continue
        key = name.removeprefix("model.")
        if key not in wanted:
            raise CheckpointError(directory, "is not a part of this model", tensor=name)
        parameter = wanted.pop(key)
        if parameter.shape != tensor.shape:
            raise CheckpointError(
                directory, f"must have shape {list(parameter.shape)}, got {list(tensor.shape)}", tensor=name
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(directory, "must be finite, got NaN or infinity", tensor=name)
        parameter.data.copy_(tensor)
    if wanted:
        raise CheckpointError(directory, f"lacks the tensors {', '.join(sorted(wanted))}")


def read_qwen2_config(
    directory: str | Path, history_seconds: float = 15.0, transcript_tokens: int = 256
) -> OrchestratorConfig:
    """Return the sizes of a Qwen2 checkpoint that ``transformers`` saved.

    Args:
        directory: holds config.json.
        history_seconds: audio history in the packed sequence, at most.
        transcript_tokens: transcript window, in text tokens.

    Raises:
        CheckpointError: there is no config.json, it is of another family, or asks for what is not built.
    """
    file = Path(directory) / "config.json"
    try:
        raw: Any = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(file, f"must be the config.json of a Qwen2 checkpoint; {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(file, f"must hold an object, got {type(raw).__name__}")
    # transformers 5 keeps RoPE's settings together, 4 beside the others.
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta", 1e6)}
    built = {
        "model_type": (raw.get("model_type"), "qwen2"),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "use_sliding_window": (bool(raw.get("use_sliding_window")), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "rope_scaling": (raw.get("rope_scaling"), None),
    }
    for name, (value, limit) in built.items():
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


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield names and memory-mapped tensors of a checkpoint, whole or in shards."""
    index = directory / "model.safetensors.index.json"
    try:
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        for name in names:
            with safe_open(directory / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    yield key, file.get_tensor(key)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(directory, f"must hold whole safetensors files; {error}") from error
