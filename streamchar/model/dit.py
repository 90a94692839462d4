"""The joint audio-video diffusion transformer, which maps noisy latents and conditions to velocities.

The tokens of a denoising step are ``[video | audio]``. A block computes

    y        = modulated_norm(x)
    q, k, v  = rope(rms(y W_q)), rope(rms(y W_k)), y W_v          k and v are written to the KV cache
    x        = x + gate * attention(q, cache) W_o
    x        = x + gate * expert(modulated_norm(x))               one expert per modality

with shift, scale and gate computed from the noise level of the token (adaLN-single: one small network shared
by all blocks, plus a learned table per block). The conditioning tokens (reference, sink and motion) are
clean. :meth:`JointDiT.commit` runs them once at sigma 0 and writes their keys and values to the KV cache, so
:meth:`JointDiT.step` computes only the tokens of the chunk itself. The network predicts the velocity
v = eps - z of the rectified flow x = (1 - sigma) z + sigma eps.

All functions can be captured in a CUDA graph: they read no device value on the host and keep no new
allocation.

Source: adaLN-single, arXiv 2310.00426 section 2.3; rectified flow, arXiv 2209.03003; QK norm, arXiv
2302.05442 section 2.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..config import DiTConfig, Preset
from ..kernels import (
    Backend,
    expert_down,
    expert_up,
    gated_norm_modulate,
    joint_attention,
    norm_modulate,
    qkv_prologue,
)
from ..kernels._shared.checks import require, require_dtype, require_shape
from ..profiling import span
from .kv_cache import ROLES, KVCache, Role, RoleTables

#: Number of sinusoidal features of a noise level, and the factor on sigma before they are computed.
_TIMESTEP_DIM = 256
_TIMESTEP_SCALE = 1000.0


class Modulation(NamedTuple):
    """Shifts, scales and gates for a list of noise levels. Row 0 is sigma 0, row i + 1 is the i-th level.

    Attributes:
        blocks: [layers, 6, rows, dim], fp32 (fp64 for an fp64 model): shift, scale and gate of the attention,
            then those of the experts.
        final: [2, rows, dim], same dtype: shift and scale before the output heads.
    """

    blocks: torch.Tensor
    final: torch.Tensor

    def copy_(self, other: "Modulation") -> None:
        """Copy ``other`` into these tensors in place, so that captured graphs see the new values."""
        self.blocks.copy_(other.blocks)
        self.final.copy_(other.final)


class DiTBlock(nn.Module):
    """One transformer block, applied to the tokens of one role."""

    def __init__(self, config: DiTConfig, backend: Backend) -> None:
        super().__init__()
        self.heads, self.backend = config.heads, backend
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.video_up = nn.Linear(config.dim, config.video_ffn)
        self.video_down = nn.Linear(config.video_ffn, config.dim)
        self.audio_up = nn.Linear(config.dim, config.audio_ffn)
        self.audio_down = nn.Linear(config.audio_ffn, config.dim)

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        row_index: torch.Tensor,
        tables: RoleTables,
        k: torch.Tensor,
        v: torch.Tensor,
        num_video: int | None,
    ) -> torch.Tensor:
        """Run the block, or only write the tokens' keys and values to the cache.

        Args:
            x: [batch, tokens, dim], the residual stream.
            modulation: [6, rows, dim], this block's slice of :attr:`Modulation.blocks`.
            row_index: [batch, tokens] int32, the modulation row of each token.
            tables: slots, segments and rotary tables of the tokens' role.
            k: [batch, capacity, heads, head_dim], this layer's cached keys, written in place.
            v: [batch, capacity, heads, head_dim], this layer's cached values, written in place.
            num_video: number of video tokens, which come first; the rest are audio. With None the block
                stops after writing keys and values.

        Returns:
            [batch, tokens, dim], the residual stream after the block. With ``num_video=None``, the queries,
            [batch, tokens, heads, head_dim].
        """
        shift, scale = (row.expand(len(x), -1, -1) for row in modulation[:2])
        y = norm_modulate(x, scale, shift, row_index, backend=self.backend)
        q = qkv_prologue(
            self.qkv(y),
            self.q_norm,
            self.k_norm,
            tables.cos,
            tables.sin,
            tables.slots,
            k,
            v,
            num_heads=self.heads,
            backend=self.backend,
        )
        if num_video is None:
            return q
        if torch.is_grad_enabled() and k.requires_grad:
            # Later steps overwrite the cache in place; the backward pass needs the current keys and values.
            k, v = k.clone(), v.clone()
        branch = self.out(joint_attention(q, k, v, tables.segments, backend=self.backend).flatten(2))
        gate, ffn_shift, ffn_scale, ffn_gate = (row.expand(len(x), -1, -1) for row in modulation[2:])
        x, y = gated_norm_modulate(x, branch, gate, ffn_scale, ffn_shift, row_index, backend=self.backend)
        up = (self.video_up.weight, self.video_up.bias, self.audio_up.weight, self.audio_up.bias)
        hidden = expert_up(y, *up, num_video=num_video, backend=self.backend)
        down = (self.video_down.weight, self.video_down.bias, self.audio_down.weight, self.audio_down.bias)
        return expert_down(*hidden, *down, x, ffn_gate, row_index, backend=self.backend)


class JointDiT(nn.Module):
    """The joint audio-video diffusion transformer of a preset, with random weights.

    Args:
        preset: all sizes.
        backend: backend of the kernels: ``"auto"``, ``"triton"`` or ``"torch"``.
    """

    def __init__(self, preset: Preset, backend: Backend = "auto") -> None:
        super().__init__()
        config = preset.dit
        self.preset, self.backend = preset, backend
        patch = preset.picture.channels * preset.picture.patch**2
        self.video_in = nn.Linear(patch, config.dim)
        self.audio_in = nn.Linear(config.audio_channels, config.dim)
        self.condition_in = nn.Linear(preset.orchestrator.dim, config.dim, bias=False)
        self.timestep_in = nn.Linear(_TIMESTEP_DIM, config.dim)
        self.timestep_out = nn.Linear(config.dim, config.dim)
        self.modulation_out = nn.Linear(config.dim, 6 * config.dim)
        self.table = nn.Parameter(torch.empty(config.layers, 6, config.dim))
        self.final_table = nn.Parameter(torch.empty(2, config.dim))
        self.blocks = nn.ModuleList(DiTBlock(config, backend) for _ in range(config.layers))
        self.video_out = nn.Linear(config.dim, patch)
        self.audio_out = nn.Linear(config.dim, config.audio_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw random weights from PyTorch's global generator that keep activations at a scale of about 1.

        Modulation starts small but not at zero, so every part of the network affects the output from the
        start. Gates of about 0.2 let the residual stream grow by half over 30 layers. Output heads start
        small.
        """
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif isinstance(module, DiTBlock):
                    nn.init.ones_(module.q_norm)
                    nn.init.ones_(module.k_norm)
            # An audio token is the sum of two projections; each contributes half of the variance.
            self.audio_in.weight.mul_(0.5**0.5)
            self.condition_in.weight.mul_(0.5**0.5)
            self.timestep_out.weight.mul_(0.5)
            for head in (self.video_out, self.audio_out):
                head.weight.mul_(0.1)
            nn.init.normal_(self.table, std=0.2)
            nn.init.normal_(self.final_table, std=0.2)

    def modulation(self, sigmas: torch.Tensor) -> Modulation:
        """Compute the modulation for sigma 0 and for each given noise level.

        The result depends only on the weights and the levels, so inference computes it once per schedule.

        Args:
            sigmas: [levels], float, noise levels in [0, 1].

        Returns:
            The :class:`Modulation` with levels + 1 rows, in fp32 even if the weights are narrower.

        Raises:
            KernelArgumentError: ``sigmas`` is not a floating-point vector.
        """
        require_shape("sigmas", sigmas, (None,), "[levels]")
        require(sigmas.is_floating_point(), "sigmas", "of a float dtype", sigmas.dtype)
        wide = torch.float64 if self.table.dtype == torch.float64 else torch.float32

        def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, layer.weight.to(wide), layer.bias.to(wide))

        levels = torch.cat((sigmas.new_zeros(1), sigmas)).to(wide)
        half = _TIMESTEP_DIM // 2
        index = torch.arange(half, dtype=wide, device=levels.device)
        angle = _TIMESTEP_SCALE * levels[:, None] * torch.exp(-math.log(10000.0) / half * index)
        t = linear(self.timestep_in, torch.cat((angle.cos(), angle.sin()), -1))
        t = linear(self.timestep_out, F.silu(t))
        shared = linear(self.modulation_out, F.silu(t)).unflatten(-1, (6, -1)).transpose(0, 1)
        return Modulation(self.table.to(wide)[:, :, None] + shared, self.final_table.to(wide)[:, None] + t)

    def step(
        self,
        x_video: torch.Tensor,
        x_audio: torch.Tensor,
        c_a: torch.Tensor,
        step: torch.Tensor,
        modulation: Modulation,
        cache: KVCache,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the velocity of a noisy chunk.

        Args:
            x_video: [batch, latent_frames, channels, height, width], noisy video latents, any float dtype.
            x_audio: [batch, audio_tokens, audio_channels], noisy audio latents, any float dtype.
            c_a: [batch, audio_tokens, orchestrator dim], conditions from the orchestrator, any float dtype.
            step: [batch] int32, index of each row's noise level among those given to :meth:`modulation`.
            modulation: from :meth:`modulation`.
            cache: keys and values that the chunk attends to; the chunk's own slots are overwritten.

        Returns:
            v_video and v_audio, contiguous, with the shapes of x_video and x_audio and the model's dtype.

        Raises:
            KernelArgumentError: a shape, a dtype or the cache does not fit this model.
        """
        preset = self.preset
        batch = cache.batch
        self._check_cache(cache)
        self._check_latents("x_video", x_video, batch, preset.chunk.latent_frames)
        audio_shape = (batch, preset.audio_tokens, preset.dit.audio_channels)
        require_shape("x_audio", x_audio, audio_shape, "[batch, audio_tokens, audio_channels]")
        condition_shape = (batch, preset.audio_tokens, preset.orchestrator.dim)
        require_shape("c_a", c_a, condition_shape, "[batch, audio_tokens, condition dim]")
        require_shape("step", step, (batch,), "[batch]")
        require_dtype("step", step, (torch.int32,))

        dtype = self.table.dtype
        audio = self.audio_in(x_audio.to(dtype)) + self.condition_in(c_a.to(dtype))
        x = torch.cat((self._embed(x_video), audio), 1)
        row_index = (step + 1)[:, None].expand(-1, x.shape[1]).contiguous()
        tables = cache.tables["chunk"]
        for index, block in enumerate(self.blocks):
            k, v = cache.k[index], cache.v[index]
            with span("layer", index):
                x = block(x, modulation.blocks[index], row_index, tables, k, v, preset.video_tokens)
        shift, scale = (row.expand(batch, -1, -1) for row in modulation.final)
        y = norm_modulate(x, scale, shift, row_index, backend=self.backend)
        v_video = self._unpatchify(self.video_out(y[:, : preset.video_tokens]))
        return v_video, self.audio_out(y[:, preset.video_tokens :])

    def commit(
        self,
        role: Role,
        latents: torch.Tensor,
        modulation: Modulation,
        cache: KVCache,
        due: torch.Tensor | None = None,
    ) -> None:
        """Write the keys and values of clean latents to the cache, in the region of their role.

        This does not mark the region as valid; call :meth:`KVCache.set_valid` for that. If the preset gives
        the role no latents, nothing happens.

        Args:
            role: ``"reference"``, ``"sink"`` (the first latents of the first chunk) or ``"motion"`` (the last
                latents of the previous chunk).
            latents: [batch, latent frames of the role, channels, height, width], any float dtype.
            modulation: from :meth:`modulation`; the row of sigma 0 is used.
            cache: written in place.
            due: [batch] bool on the cache's device; rows where it is false are left unchanged. By default
                all rows are written.

        Raises:
            KernelArgumentError: the role is unknown, or a shape, a dtype or the cache does not fit.
        """
        known = ROLES[:-1]
        require(role in known, "role", " or ".join(map(repr, known)), repr(role), "use step() for a chunk")
        chunk = self.preset.chunk
        frames = (chunk.reference_latents, chunk.sink_latents, chunk.motion_latents)[known.index(role)]
        self._check_cache(cache)
        self._check_latents("latents", latents, cache.batch, frames)
        if not frames:
            return
        tables = cache.tables[role]
        if due is not None:
            require_shape("due", due, (cache.batch,), "[batch]")
            require_dtype("due", due, (torch.bool,))
            tables = tables.where(due)
        x = self._embed(latents)
        row_index = torch.zeros(x.shape[:2], dtype=torch.int32, device=x.device)
        for index, block in enumerate(self.blocks):
            k, v = cache.k[index], cache.v[index]
            # Only the keys and values of the last block are used, not its output.
            num_video = x.shape[1] if index < len(self.blocks) - 1 else None
            with span("layer", index):
                x = block(x, modulation.blocks[index], row_index, tables, k, v, num_video)

    def _embed(self, latents: torch.Tensor) -> torch.Tensor:
        """Map [batch, frames, channels, height, width] to tokens, [batch, tokens, dim], width fastest."""
        patch = self.preset.picture.patch
        cells = latents.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
        # From [batch, frames, channels, rows, patch, columns, patch]: make the values of a token contiguous.
        cells = cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        tokens: torch.Tensor = self.video_in(cells.to(self.table.dtype))
        return tokens

    def _unpatchify(self, tokens: torch.Tensor) -> torch.Tensor:
        picture = self.preset.picture
        rows, columns = (size // picture.patch for size in picture.latent_size)
        cells = tokens.view(len(tokens), -1, rows, columns, picture.channels, picture.patch, picture.patch)
        return cells.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).contiguous()

    def _check_cache(self, cache: KVCache) -> None:
        ours, theirs = self.preset, cache.preset
        same = (ours.dit, ours.picture, ours.chunk) == (theirs.dit, theirs.picture, theirs.chunk)
        require(same, "cache", f"built for the sizes of preset {ours.name!r}", f"one for {theirs.name!r}")
        require_dtype("cache.k", cache.k[0], (self.table.dtype,))

    def _check_latents(self, name: str, latents: torch.Tensor, batch: int, frames: int) -> None:
        picture = self.preset.picture
        shape = (batch, frames, picture.channels, *picture.latent_size)
        require_shape(name, latents, shape, "[batch, frames, channels, height, width]")
