"""The Orchestrator: a Qwen2-family causal language model that plans the speech of a chunk.

Its packed sequence is [transcript | audio history | the chunk's noisy audio latents]. The states at the
chunk's positions are the conditions c_a, one per audio token. Transcript and history are prefilled once a
chunk into a static KV cache; a denoising step computes the chunk's positions alone.

The packed sequence has fixed slots; how many of the transcript's and of the history's are in use lives in
device tensors. RoPE positions count the used slots only, so the result is that of the packed sequence
without gaps; where the config has a duration predictor, they are times (:mod:`streamchar.durations`).

Source: StreamChar (arXiv 2605.25659), orchestrator.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import OrchestratorConfig, Preset
from .durations import DurationPredictor, pointer_prior, token_times
from .kernels._checks import require_dtype, require_shape
from .pointer import PlannedPointer, ProgressPointer
from .qwen2 import Block, Qwen2, load_qwen2, read_qwen2_config, rope_tables

#: Width of the sinusoidal features of a noise level.
NOISE_FEATURES = 256


class Layout(NamedTuple):
    """Which slots of the packed sequence are in use, and what follows from it.

    Attributes:
        valid: [batch, capacity], bool.
        rope: cosines and sines, each [batch, capacity, 1, head_dim / 2], in the compute dtype.
        mask: [batch, capacity, capacity], 0 where a row sees a column and -inf elsewhere, compute dtype.
        prior: [batch, chunk_tokens, transcript_tokens] fp32, of the pointer.
    """

    valid: Tensor
    rope: tuple[Tensor, Tensor]
    mask: Tensor
    prior: Tensor

    def repeat_chunk(self, draws: int, chunk: int) -> "Layout":
        """Return the layout with the chunk's slots there ``draws`` times, none of which sees another."""
        prefix = self.valid.shape[1] - chunk
        size = prefix + draws * chunk
        mask = self.mask.new_full((len(self.mask), size, size), float("-inf"))
        mask[:, :prefix, :prefix] = self.mask[:, :prefix, :prefix]
        for start in range(prefix, size, chunk):
            rows = slice(start, start + chunk)
            mask[:, rows, :prefix] = self.mask[:, prefix:, :prefix]
            mask[:, rows, rows] = self.mask[:, prefix:, prefix:]

        def repeat(x: Tensor) -> Tensor:
            return torch.cat((x[:, :prefix], *(x[:, prefix:],) * draws), 1)

        cos, sin = self.rope
        return Layout(repeat(self.valid), (repeat(cos), repeat(sin)), mask, self.prior)


@dataclass(frozen=True)
class OrchestratorState:
    """Buffers of fixed address that a prefill fills and every step of the chunk reads.

    Attributes:
        k: [layers, batch, capacity, kv_heads, head_dim], roped keys of the packed sequence.
        v: [layers, batch, capacity, kv_heads, head_dim].
        cos: [batch, chunk_tokens, 1, head_dim / 2], of the chunk's positions.
        sin: [batch, chunk_tokens, 1, head_dim / 2].
        mask: [batch, 1, heads / kv_heads * chunk_tokens, capacity], what the chunk's queries see.
        prior: [batch, chunk_tokens, transcript_tokens] fp32, of the pointer.
        pointer_keys: [batch, transcript_tokens, dim].
        text_lengths: [batch], int32.
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
    """Turn transcript, audio history and the chunk's noisy audio into conditions and a place in the text.

    Args:
        config: sizes of the language model.
        audio_channels: channels of an audio latent.
        chunk_tokens: audio tokens of a chunk.
        frame_rate: audio tokens a second, which turns the history's seconds into tokens.
    """

    def __init__(
        self, config: OrchestratorConfig, audio_channels: int, chunk_tokens: int, frame_rate: int = 24
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
        """Build around a Qwen2 checkpoint that ``transformers`` saved; audio and pointer weights are random.

        Args:
            directory: holds config.json and safetensors, in one file or in shards.
            audio_channels: channels of an audio latent.
            chunk_tokens: audio tokens of a chunk.
            history_seconds: audio history in the packed sequence, at most.
            transcript_tokens: transcript window, in text tokens.
            tokenizer: that the engine is to have; by default the checkpoint's own, which the caller gives it.

        Raises:
            CheckpointError: as :meth:`load_qwen2`.
        """
        config = replace(
            read_qwen2_config(directory, history_seconds, transcript_tokens), tokenizer=tokenizer
        )
        orchestrator = cls(config, audio_channels, chunk_tokens)
        orchestrator.load_qwen2(directory)
        # Audio enters as loud as the text that the pretrained layers are used to.
        scale = orchestrator.model.embed_tokens.weight.detach().float().square().mean().sqrt()
        for linear in (orchestrator.audio_in, orchestrator.noise_out):
            linear.weight.data.mul_(scale)
        return orchestrator

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights that keep activations near unit variance, every parameter anew.

        Args:
            generator: of the parameters' device; None for the default one.
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
            if isinstance(module, Block):
                # Two branches a layer; all of them together add about one unit of variance.
                for linear in (module.self_attn.o_proj, module.mlp.down_proj):
                    linear.weight.mul_((2 * self.config.layers) ** -0.5)
        self.pointer.reset_parameters(generator)
        if self.durations is not None:
            self.durations.reset_parameters(generator)

    def load_qwen2(self, directory: str | Path) -> None:
        """Load the language model's weights from a checkpoint that ``transformers`` saved, in place.

        Raises:
            CheckpointError: as :func:`streamchar.qwen2.load_qwen2`.
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
            batch: rows, one a session.
            device: that of the parameters unless given.
            dtype: that of the parameters unless given; it must be theirs when steps run.
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
    def prefill(
        self,
        state: OrchestratorState,
        text_ids: Tensor,
        text_lengths: Tensor,
        history: Tensor,
        history_lengths: Tensor,
        progress: Tensor | None = None,
    ) -> None:
        """Compute the prefix of a chunk into ``state``, in place; once a chunk, capturable.

        Args:
            state: from :meth:`new_state`.
            text_ids: [batch, transcript_tokens], int64; what lies past a row's length is never read.
            text_lengths: [batch], int32; lengths are clamped to the buffers.
            history: [batch, history_tokens, audio_channels], clean latents, oldest first; what lies past a
                row's length is never read, NaN included.
            history_lengths: [batch], int32.
            progress: [batch], float32, tokens of the transcript said so far; None for nothing yet. Only a
                duration predictor reads it.

        Raises:
            KernelArgumentError: a shape or dtype is wrong.
        """
        self._check_prefix(state.k.shape[1], text_ids, text_lengths, history, history_lengths)
        prefix, text = self.prefix_tokens, self.text_tokens
        scale = self.config.duration_scale
        layout = self._layout(text_ids, text_lengths, history_lengths, progress, scale)
        (cos, sin), mask = layout.rope, layout.mask
        x = self._embed_prefix(text_ids, history, layout.valid)
        states = self.model(
            x,
            (cos[:, :prefix], sin[:, :prefix]),
            self.model.fold(mask[:, :prefix, :prefix]),
            (state.k[:, :, :prefix], state.v[:, :, :prefix]),
        )
        state.pointer_keys.copy_(self.pointer.keys(states[:, :text], text_lengths))
        state.text_lengths.copy_(text_lengths)
        state.cos.copy_(cos[:, prefix:])
        state.sin.copy_(sin[:, prefix:])
        state.mask.copy_(self.model.fold(mask[:, prefix:]))
        state.prior.copy_(layout.prior)

    @torch.no_grad()
    def step(self, state: OrchestratorState, x_audio: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the chunk's positions against the prefilled prefix; once a denoising step, capturable.

        Args:
            state: prefilled; only the chunk's own slots of k and v are written.
            x_audio: [batch, chunk_tokens, audio_channels], noisy latents.
            sigma: [batch], float32, noise level between 0 and 1.

        Returns:
            The conditions c_a, [batch, chunk_tokens, dim] in the parameters' dtype, about unit variance; and
            the position in the transcript at each audio token, [batch, chunk_tokens], float32, in tokens.

        Raises:
            KernelArgumentError: a shape is wrong.
        """
        self._check_chunk(state.k.shape[1], x_audio, sigma)
        conditions: Tensor = self.model(
            self._embed_audio(x_audio, sigma), (state.cos, state.sin), state.mask, (state.k, state.v)
        )
        position = self.pointer.locate(conditions, state.pointer_keys, state.text_lengths, state.prior)
        return conditions, position

    def forward(
        self,
        text_ids: Tensor,
        text_lengths: Tensor,
        history: Tensor,
        history_lengths: Tensor,
        x_audio: Tensor,
        sigma: Tensor,
        progress: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what :meth:`prefill` and :meth:`step` give, by one causal pass with gradients, for training.

        Arguments and results are theirs, but that ``x_audio`` may be [batch, draws, chunk_tokens,
        audio_channels] with ``sigma`` [batch, draws]: several noisy versions of a chunk that share one pass
        over the prefix and see nothing of each other. Results then have the draws as second dimension.

        Planned durations are taken as they are: ``duration_scale`` is for speaking, and speech to train on
        has its own pace.
        """
        many = x_audio.dim() == 4
        if not many:
            x_audio, sigma = x_audio[:, None], sigma[:, None]
        batch, draws = x_audio.shape[:2]
        self._check_prefix(batch, text_ids, text_lengths, history, history_lengths)
        for draw in range(draws):
            self._check_chunk(batch, x_audio[:, draw], sigma[:, draw])
        layout = self._layout(text_ids, text_lengths, history_lengths, progress)
        layout = layout.repeat_chunk(draws, self.chunk_tokens)
        prefix = self._embed_prefix(text_ids, history, layout.valid)
        audio = self._embed_audio(x_audio.flatten(0, 1), sigma.flatten()).view(batch, -1, self.config.dim)
        x = torch.cat([prefix, audio], dim=1)
        states: Tensor = self.model(x, layout.rope, self.model.fold(layout.mask))
        conditions, text = states[:, self.prefix_tokens :], states[:, : self.text_tokens]
        position = self.pointer(conditions, text, text_lengths, layout.prior.repeat(1, draws, 1))
        if many:
            conditions, position = (each.unflatten(1, (draws, -1)) for each in (conditions, position))
        return conditions, position

    def packed_states(
        self,
        text_ids: Tensor,
        text_lengths: Tensor,
        history: Tensor,
        history_lengths: Tensor,
        x_audio: Tensor,
        sigma: Tensor,
        progress: Tensor | None = None,
    ) -> Tensor:
        """Return the states of the whole packed sequence, [batch, capacity, dim]; unused slots hold nothing.

        Arguments are those of :meth:`prefill` and :meth:`step`.
        """
        self._check_prefix(x_audio.shape[0], text_ids, text_lengths, history, history_lengths)
        self._check_chunk(x_audio.shape[0], x_audio, sigma)
        layout = self._layout(text_ids, text_lengths, history_lengths, progress)
        prefix = self._embed_prefix(text_ids, history, layout.valid)
        x = torch.cat([prefix, self._embed_audio(x_audio, sigma)], dim=1)
        states: Tensor = self.model(x, layout.rope, self.model.fold(layout.mask))
        return states

    def _layout(
        self,
        text_ids: Tensor,
        text_lengths: Tensor,
        history_lengths: Tensor,
        progress: Tensor | None,
        duration_scale: float = 1.0,
    ) -> Layout:
        device, dtype = self.audio_in.weight.device, self.audio_in.weight.dtype
        batch, text, prefix = text_lengths.shape[0], self.text_tokens, self.prefix_tokens
        slot = torch.arange(self.capacity, device=device)
        spoken = text_lengths.clamp(0, text)[:, None]
        heard = history_lengths.clamp(0, self.history_tokens)[:, None]
        # The used slots of a part, and how far it moves down to close the gaps before it.
        in_text, in_history = slot < text, slot < prefix
        valid = torch.where(in_text, slot < spoken, torch.where(in_history, slot - text < heard, True))
        seen = (slot <= slot[:, None]) & valid[:, None, :]
        # Unused slots see themselves, so that no row of the softmax is empty.
        seen = seen | torch.eye(self.capacity, device=device, dtype=torch.bool)
        mask = torch.zeros(batch, self.capacity, self.capacity, device=device, dtype=dtype)
        mask = mask.masked_fill(~seen, float("-inf"))
        if self.durations is None:
            base = torch.where(in_text, 0, torch.where(in_history, spoken - text, spoken + heard - prefix))
            positions = slot + base
            prior = torch.zeros(batch, self.chunk_tokens, text, device=device)
        else:
            if progress is None:
                progress = torch.zeros(batch, device=device)
            # The plan is a given for what reads it: durations are learned from durations alone.
            planned = duration_scale * self.durations(text_ids, valid[:, :text]).detach()
            times = token_times(planned, progress.float())
            audio = torch.where(in_history, slot - text - heard, slot - prefix)[:, text:]
            positions = torch.cat([times, audio.expand(batch, -1).float()], 1)
            prior = pointer_prior(times, self.chunk_tokens)
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, dtype)
        return Layout(valid, rope, mask, prior)

    def _embed_prefix(self, text_ids: Tensor, history: Tensor, valid: Tensor) -> Tensor:
        """Return the embeddings of transcript and history; those of unused slots are finite."""
        in_text = valid[:, : self.text_tokens]
        in_history = valid[:, self.text_tokens : self.prefix_tokens]
        text = self.model.embed_tokens(text_ids.masked_fill(~in_text, 0))
        # History is audio without noise.
        clean = torch.zeros(1, device=history.device)
        audio = self._embed_audio(history.masked_fill(~in_history[..., None], 0.0), clean)
        return torch.cat([text, audio], dim=1)

    def _embed_audio(self, latents: Tensor, sigma: Tensor) -> Tensor:
        dtype = self.audio_in.weight.dtype
        features = noise_features(sigma).to(dtype)
        noise: Tensor = self.noise_out(F.silu(self.noise_in(features)))
        audio: Tensor = self.audio_in(latents.to(dtype))
        return audio + noise[:, None]

    def _check_prefix(self, batch: int, ids: Tensor, lengths: Tensor, history: Tensor, heard: Tensor) -> None:
        require_shape("text_ids", ids, (batch, self.text_tokens), "[batch, transcript_tokens]")
        require_dtype("text_ids", ids, (torch.int64,))
        require_shape("text_lengths", lengths, (batch,), "[batch]")
        require_dtype("text_lengths", lengths, (torch.int32,))
        shape = (batch, self.history_tokens, self.audio_channels)
        require_shape("history", history, shape, "[batch, history_tokens, audio_channels]")
        require_shape("history_lengths", heard, (batch,), "[batch]")
        require_dtype("history_lengths", heard, (torch.int32,))

    def _check_chunk(self, batch: int, x_audio: Tensor, sigma: Tensor) -> None:
        shape = (batch, self.chunk_tokens, self.audio_channels)
        require_shape("x_audio", x_audio, shape, "[batch, chunk_tokens, audio_channels]")
        require_shape("sigma", sigma, (batch,), "[batch]")


def noise_features(sigma: Tensor) -> Tensor:
    """Return sinusoidal features of a noise level in 0..1, [batch] to [batch, NOISE_FEATURES], float32.

    The level is spread over 0..1000, the range such features are usually made for; periods run from 2 pi
    to 20 000 pi. They are scaled to unit mean square.
    """
    exponent = torch.arange(NOISE_FEATURES // 2, device=sigma.device) / (NOISE_FEATURES // 2)
    angles = 1000.0 * sigma.float()[:, None] * 10000.0**-exponent
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * 2**0.5


def append_history(history: Tensor, lengths: Tensor, latents: Tensor) -> None:
    """Append a finished chunk to the audio history in place, dropping the oldest where it is full.

    Args:
        history: [batch, capacity, audio_channels], oldest first.
        lengths: [batch], int32, used places of each row; updated in place.
        latents: [batch, tokens, audio_channels], clean latents.
    """
    capacity, tokens = history.shape[1], latents.shape[1]
    used = lengths.clamp(0, capacity)[:, None].long()
    source = torch.arange(capacity, device=history.device) + (used + tokens - capacity).clamp_min(0)
    # Index into [history | latents], whose latents stand right after the row's used places.
    source = torch.where(source < used, source, source - used + capacity).clamp_max(capacity + tokens - 1)
    both = torch.cat([history, latents.to(history.dtype)], dim=1)
    history.copy_(both.gather(1, source[..., None].expand(-1, -1, history.shape[2])))
    lengths.copy_((used + tokens).clamp_max(capacity).squeeze(1))
