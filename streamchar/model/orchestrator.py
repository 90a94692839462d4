"""The orchestrator: a Qwen2-family causal language model that plans the speech of a chunk.

Its packed sequence is [transcript | audio history | noisy audio latents of the chunk]. The states at the
chunk's positions are the conditions c_a, one per audio token. Transcript and history are prefilled into a
static KV cache once per chunk, so a denoising step computes only the chunk's positions.

The packed sequence has fixed slots; device tensors hold how many slots of transcript and history are in use.
RoPE positions count only the slots in use, so the result equals that of the packed sequence without gaps.
With a duration predictor, positions are times instead (:mod:`streamchar.model.durations`).

Source: StreamChar (arXiv 2605.25659), orchestrator.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CLOCK, OrchestratorConfig, Preset
from ..kernels._shared.checks import require_dtype, require_shape
from .durations import DurationPredictor, pointer_prior, token_times
from .packing import Layout, Prefix
from .pointer import PlannedPointer, ProgressPointer
from .qwen2 import Qwen2, Qwen2Block, load_qwen2, read_qwen2_config, rope_tables

#: Number of sinusoidal features of a noise level.
NOISE_FEATURES = 256


@dataclass(frozen=True)
class OrchestratorState:
    """Buffers at fixed addresses that :meth:`Orchestrator.prefill` fills and each step of the chunk reads.

    Attributes:
        k: [layers, batch, capacity, kv_heads, head_dim], keys of the packed sequence after RoPE.
        v: [layers, batch, capacity, kv_heads, head_dim], values of the packed sequence.
        cos: [batch, chunk_tokens, 1, head_dim / 2], cosines of the chunk's positions.
        sin: [batch, chunk_tokens, 1, head_dim / 2], sines of the chunk's positions.
        mask: [batch, 1, heads / kv_heads * chunk_tokens, capacity], additive mask of the chunk's queries.
        prior: [batch, chunk_tokens, transcript_tokens] fp32, prior of the pointer.
        pointer_keys: [batch, transcript_tokens, dim], keys of the pointer.
        text_lengths: [batch] int32, number of text tokens in use.
    """

    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    prior: Tensor
    pointer_keys: Tensor
    text_lengths: Tensor


class Orchestrator(nn.Module):
    """Map transcript, audio history and noisy audio to conditions and positions in the transcript.

    Args:
        config: sizes of the language model.
        audio_channels: channels of an audio latent.
        chunk_tokens: audio tokens per chunk.
        frame_rate: audio tokens per second, which converts the length of the history to tokens.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        audio_channels: int,
        chunk_tokens: int,
        frame_rate: int = CLOCK.frame_rate,
    ) -> None:
        super().__init__()
        self.config, self.audio_channels, self.chunk_tokens = config, audio_channels, chunk_tokens
        self.text_tokens = config.transcript_tokens
        self.history_tokens = int(config.history_seconds * frame_rate)
        self.prefix_tokens = self.text_tokens + self.history_tokens
        self.capacity = self.prefix_tokens + chunk_tokens
        self.model = Qwen2(config)
        self.audio_in = nn.Linear(audio_channels, config.dim)
        self.noise_in = nn.Linear(NOISE_FEATURES, config.dim)
        self.noise_out = nn.Linear(config.dim, config.dim)
        self.pointer: ProgressPointer | PlannedPointer = ProgressPointer(config.dim, config.heads)
        self.durations = (
            DurationPredictor(config.vocabulary, config.duration_dim) if config.duration_dim else None
        )
        self.reset_parameters()

    @classmethod
    def from_preset(cls, preset: Preset) -> "Orchestrator":
        """Build the orchestrator of a preset, with random weights."""
        return cls(
            preset.orchestrator, preset.dit.audio_channels, preset.audio_tokens, preset.clock.frame_rate
        )

    @classmethod
    def from_qwen2(
        cls,
        directory: str | Path,
        audio_channels: int,
        chunk_tokens: int,
        history_seconds: float = 15.0,
        transcript_tokens: int = 256,
        tokenizer: Literal["bytes", "phonemes", "given"] = "given",
    ) -> "Orchestrator":
        """Build an orchestrator from a Qwen2 checkpoint; audio and pointer weights are random.

        Args:
            directory: checkpoint saved by ``transformers``: config.json and one or several safetensors files.
            audio_channels: channels of an audio latent.
            chunk_tokens: audio tokens per chunk.
            history_seconds: longest audio history in the packed sequence, in seconds.
            transcript_tokens: size of the transcript window, in text tokens.
            tokenizer: name of the tokenizer; with ``"given"`` the caller passes the checkpoint's tokenizer to
                the engine.

        Raises:
            CheckpointError: as in :meth:`load_qwen2`.
        """
        config = replace(
            read_qwen2_config(directory, history_seconds, transcript_tokens), tokenizer=tokenizer
        )
        orchestrator = cls(config, audio_channels, chunk_tokens)
        orchestrator.load_qwen2(directory)
        # Scale audio embeddings to the magnitude of the text embeddings that the layers were trained on.
        scale = orchestrator.model.embed_tokens.weight.detach().float().square().mean().sqrt()
        for linear in (orchestrator.audio_in, orchestrator.noise_out):
            linear.weight.data.mul_(scale)
        return orchestrator

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Reinitialise all parameters with random weights that keep activations near unit variance.

        Args:
            generator: on the parameters' device; by default PyTorch's global generator.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(generator=generator)
            elif isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
        for module in self.modules():
            if isinstance(module, Qwen2Block):
                # There are two branches per layer; together they add about one unit of variance.
                for linear in (module.self_attn.o_proj, module.mlp.down_proj):
                    linear.weight.mul_((2 * self.config.layers) ** -0.5)
        self.pointer.reset_parameters(generator)
        if self.durations is not None:
            self.durations.reset_parameters(generator)

    def load_qwen2(self, directory: str | Path) -> None:
        """Load the language model's weights in place from a checkpoint that ``transformers`` saved.

        Raises:
            CheckpointError: as in :func:`streamchar.model.qwen2.load_qwen2`.
        """
        load_qwen2(self.model, self.config, directory)

    def new_state(
        self,
        batch: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> OrchestratorState:
        """Allocate the buffers that :meth:`prefill` and :meth:`step` share.

        Args:
            batch: number of rows, one per session.
            device: by default that of the parameters.
            dtype: by default that of the parameters, which :meth:`prefill` and :meth:`step` require.
        """
        config, weight = self.config, self.audio_in.weight
        device, dtype = device or weight.device, dtype or weight.dtype

        def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, device=device, dtype=of)

        cache = (config.layers, batch, self.capacity, config.kv_heads, config.head_dim)
        rope = (batch, self.chunk_tokens, 1, config.head_dim // 2)
        return OrchestratorState(
            k=zeros(*cache),
            v=zeros(*cache),
            cos=zeros(*rope),
            sin=zeros(*rope),
            mask=zeros(batch, 1, self.model.groups * self.chunk_tokens, self.capacity),
            prior=zeros(batch, self.chunk_tokens, self.text_tokens, of=torch.float32),
            pointer_keys=zeros(batch, self.text_tokens, config.dim),
            text_lengths=zeros(batch, of=torch.int32),
        )

    @torch.no_grad()
    def prefill(self, state: OrchestratorState, prefix: Prefix) -> None:
        """Compute transcript and history of a chunk into ``state``, in place; once per chunk, capturable.

        Args:
            state: from :meth:`new_state`.
            prefix: transcript, history and progress of each row.

        Raises:
            KernelArgumentError: a shape or dtype is wrong.
        """
        self._check_prefix(state.k.shape[1], prefix)
        used, text = self.prefix_tokens, self.text_tokens
        layout = self._layout(prefix, self.config.duration_scale)
        (cos, sin), mask = layout.rope, layout.mask
        x = self._embed_prefix(prefix, layout.valid)
        states = self.model(
            x,
            (cos[:, :used], sin[:, :used]),
            self.model.fold(mask[:, :used, :used]),
            (state.k[:, :, :used], state.v[:, :, :used]),
        )
        state.pointer_keys.copy_(self.pointer.keys(states[:, :text], prefix.text_lengths))
        state.text_lengths.copy_(prefix.text_lengths)
        state.cos.copy_(cos[:, used:])
        state.sin.copy_(sin[:, used:])
        state.mask.copy_(self.model.fold(mask[:, used:]))
        state.prior.copy_(layout.prior)

    @torch.no_grad()
    def step(self, state: OrchestratorState, x_audio: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the chunk's positions against the prefilled prefix; once per denoising step, capturable.

        Args:
            state: filled by :meth:`prefill`; only the chunk's own slots of k and v are written.
            x_audio: [batch, chunk_tokens, audio_channels], noisy audio latents.
            sigma: [batch] fp32, noise level between 0 and 1.

        Returns:
            The conditions c_a, [batch, chunk_tokens, dim], parameters' dtype, with about unit variance; and
            the position in the transcript at each audio token, [batch, chunk_tokens], fp32, in text tokens.

        Raises:
            KernelArgumentError: a shape is wrong.
        """
        self._check_chunk(state.k.shape[1], x_audio, sigma)
        conditions: Tensor = self.model(
            self._embed_audio(x_audio, sigma), (state.cos, state.sin), state.mask, (state.k, state.v)
        )
        position = self.pointer.locate(conditions, state.pointer_keys, state.text_lengths, state.prior)
        return conditions, position

    def forward(self, prefix: Prefix, x_audio: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the results of :meth:`prefill` and :meth:`step` in one causal pass with gradients.

        Predicted durations are not scaled by ``duration_scale``, which is for generation only.

        Args:
            prefix: transcript, history and progress of each row.
            x_audio: [batch, chunk_tokens, audio_channels], noisy audio latents; or several noisy versions of
                a chunk that share the prefix, [batch, draws, chunk_tokens, audio_channels]. These do not
                attend to one another.
            sigma: [batch] or [batch, draws], noise level between 0 and 1.

        Returns:
            Conditions and positions as in :meth:`step`; with draws as second dimension if ``x_audio`` has it.

        Raises:
            KernelArgumentError: a shape or dtype is wrong.
        """
        many = x_audio.dim() == 4
        if not many:
            x_audio, sigma = x_audio[:, None], sigma[:, None]
        batch, draws = x_audio.shape[:2]
        self._check_prefix(batch, prefix)
        for draw in range(draws):
            self._check_chunk(batch, x_audio[:, draw], sigma[:, draw])
        layout = self._layout(prefix).repeat_chunk(draws, self.chunk_tokens)
        audio = self._embed_audio(x_audio.flatten(0, 1), sigma.flatten()).view(batch, -1, self.config.dim)
        x = torch.cat([self._embed_prefix(prefix, layout.valid), audio], dim=1)
        states: Tensor = self.model(x, layout.rope, self.model.fold(layout.mask))
        conditions, text = states[:, self.prefix_tokens :], states[:, : self.text_tokens]
        position = self.pointer(conditions, text, prefix.text_lengths, layout.prior.repeat(1, draws, 1))
        if many:
            conditions, position = (each.unflatten(1, (draws, -1)) for each in (conditions, position))
        return conditions, position

    def _layout(self, prefix: Prefix, duration_scale: float = 1.0) -> Layout:
        device, dtype = self.audio_in.weight.device, self.audio_in.weight.dtype
        batch, text, used = prefix.text_lengths.shape[0], self.text_tokens, self.prefix_tokens
        slot = torch.arange(self.capacity, device=device)
        written = prefix.text_lengths.clamp(0, text)[:, None]
        heard = prefix.history_lengths.clamp(0, self.history_tokens)[:, None]
        in_text, in_history = slot < text, slot < used
        valid = torch.where(in_text, slot < written, torch.where(in_history, slot - text < heard, True))
        seen = (slot <= slot[:, None]) & valid[:, None, :]
        # Unused slots attend to themselves, so that no row of the softmax is empty.
        seen = seen | torch.eye(self.capacity, device=device, dtype=torch.bool)
        mask = torch.zeros(batch, self.capacity, self.capacity, device=device, dtype=dtype)
        mask = mask.masked_fill(~seen, float("-inf"))
        if self.durations is None:
            # Each part moves down to close the gaps before it.
            base = torch.where(in_text, 0, torch.where(in_history, written - text, written + heard - used))
            positions = slot + base
            prior = torch.zeros(batch, self.chunk_tokens, text, device=device)
        else:
            progress = torch.zeros(batch, device=device) if prefix.progress is None else prefix.progress
            # Detached: the duration predictor is trained by its own loss only.
            planned = duration_scale * self.durations(prefix.text_ids, valid[:, :text]).detach()
            times = token_times(planned, progress.float())
            audio = torch.where(in_history, slot - text - heard, slot - used)[:, text:]
            positions = torch.cat([times, audio.expand(batch, -1).float()], 1)
            prior = pointer_prior(times, self.chunk_tokens)
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, dtype)
        return Layout(valid, rope, mask, prior)

    def _embed_prefix(self, prefix: Prefix, valid: Tensor) -> Tensor:
        """Return the embeddings of transcript and history; those of unused slots are finite."""
        in_text = valid[:, : self.text_tokens]
        in_history = valid[:, self.text_tokens : self.prefix_tokens]
        text = self.model.embed_tokens(prefix.text_ids.masked_fill(~in_text, 0))
        # History is audio without noise.
        clean = torch.zeros(1, device=prefix.history.device)
        audio = self._embed_audio(prefix.history.masked_fill(~in_history[..., None], 0.0), clean)
        return torch.cat([text, audio], dim=1)

    def _embed_audio(self, latents: Tensor, sigma: Tensor) -> Tensor:
        dtype = self.audio_in.weight.dtype
        features = noise_features(sigma).to(dtype)
        noise: Tensor = self.noise_out(F.silu(self.noise_in(features)))
        audio: Tensor = self.audio_in(latents.to(dtype))
        return audio + noise[:, None]

    def _check_prefix(self, batch: int, prefix: Prefix) -> None:
        require_shape("text_ids", prefix.text_ids, (batch, self.text_tokens), "[batch, transcript_tokens]")
        require_dtype("text_ids", prefix.text_ids, (torch.int64,))
        shape = (batch, self.history_tokens, self.audio_channels)
        require_shape("history", prefix.history, shape, "[batch, history_tokens, audio_channels]")
        for name in ("text_lengths", "history_lengths"):
            lengths = getattr(prefix, name)
            require_shape(name, lengths, (batch,), "[batch]")
            require_dtype(name, lengths, (torch.int32,))

    def _check_chunk(self, batch: int, x_audio: Tensor, sigma: Tensor) -> None:
        shape = (batch, self.chunk_tokens, self.audio_channels)
        require_shape("x_audio", x_audio, shape, "[batch, chunk_tokens, audio_channels]")
        require_shape("sigma", sigma, (batch,), "[batch]")


def noise_features(sigma: Tensor) -> Tensor:
    """Return sinusoidal features of noise levels in [0, 1], [batch, NOISE_FEATURES] fp32.

    Levels are scaled to [0, 1000], the usual range of such features; periods run from 2 pi to 20 000 pi. The
    features have unit mean square.

    Args:
        sigma: [batch], noise levels.
    """
    exponent = torch.arange(NOISE_FEATURES // 2, device=sigma.device) / (NOISE_FEATURES // 2)
    angles = 1000.0 * sigma.float()[:, None] * 10000.0**-exponent
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * 2**0.5


def append_history(history: Tensor, lengths: Tensor, latents: Tensor) -> None:
    """Append a finished chunk to the audio history in place, dropping the oldest latents when it is full.

    Args:
        history: [batch, capacity, audio_channels], clean audio latents, oldest first.
        lengths: [batch] int32, number of latents in use in each row; updated in place.
        latents: [batch, tokens, audio_channels], clean audio latents of the chunk.
    """
    capacity, tokens = history.shape[1], latents.shape[1]
    used = lengths.clamp(0, capacity)[:, None].long()
    source = torch.arange(capacity, device=history.device) + (used + tokens - capacity).clamp_min(0)
    # Index into [history | latents]; new latents follow the row's used ones.
    source = torch.where(source < used, source, source - used + capacity).clamp_max(capacity + tokens - 1)
    both = torch.cat([history, latents.to(history.dtype)], dim=1)
    history.copy_(both.gather(1, source[..., None].expand(-1, -1, history.shape[2])))
    lengths.copy_((used + tokens).clamp_max(capacity).squeeze(1))
