"""The engine: one set of weights and one set of fixed buffers, shared by a bounded number of sessions.

This is a facade. It loads weights, builds the runtime that makes chunks (:mod:`streamchar.runtime`) and hands
out sessions (:mod:`streamchar.session`).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch

from .checkpoint import CheckpointError, load_preset, load_pretrained, save_pretrained, shipped_weights
from .codecs.vae import Vae
from .codecs.vocoder import Vocoder
from .config import Preset, preset
from .errors import ArgumentError, ArgumentTypeError
from .model.dit import JointDiT
from .model.orchestrator import Orchestrator
from .runtime.executor import Executor
from .runtime.graphs import GraphPool
from .runtime.memory_budget import (
    EngineMemoryError,
    WeightsMemoryError,
    available_bytes,
    require_room,
    require_weights,
    session_bytes,
)
from .runtime.modules import Modules
from .runtime.queues import queues_for
from .runtime.rows import Report, Rows, warm_up
from .runtime.scheduler import CapacityError, Scheduler
from .runtime.stats import EngineStats, compilations, device_allocations
from .runtime.timeline import Timeline
from .session.channel import Channel
from .session.pacer import Pacer
from .session.session import Session
from .text.tokenizers import Tokenizer, default_tokenizer
from .text.transcript_window import TextWindow

__all__ = ["CapacityError", "EngineMemoryError", "StreamCharEngine", "WeightsMemoryError"]

#: How far a reference may exceed [-1, 1], as resampling in bf16 does.
_ROUNDING = 0.01


class StreamCharEngine:
    """Generate speech and picture of characters, chunk by chunk, for several sessions at once.

    Args of the constructor:
        config: every size.
        dit: the diffusion transformer; device and dtype of its parameters are the engine's.
        orchestrator: the language model.
        vae: the video codec.
        vocoder: the audio decoder.
        tokenizer: turns text into the orchestrator's tokens; by default the one that the preset names.
        max_sessions: sessions that can be open together, at least 1.
        report: called before each stage of warming up with its name, its number and how many there are.

    Attributes:
        preset: every size.
        device: where everything lies.
        dtype: of weights, keys and values.
        scheduler: shares the rows among sessions; ``scheduler.executor`` makes the chunks. For tools that
            inspect the runtime.
    """

    def __init__(
        self,
        config: Preset,
        dit: JointDiT,
        orchestrator: Orchestrator,
        vae: Vae,
        vocoder: Vocoder,
        tokenizer: Tokenizer | None = None,
        *,
        max_sessions: int = 1,
        report: Report | None = None,
    ) -> None:
        ArgumentError.require(max_sessions >= 1, "max_sessions", "at least 1", max_sessions)
        self.preset = config
        modules = Modules(dit, orchestrator, vae, vocoder)
        self.dit, self.orchestrator, self.vae, self.vocoder = modules
        for module in modules:
            module.eval().requires_grad_(False)
        self.tokenizer: Tokenizer = tokenizer or default_tokenizer(config.orchestrator.tokenizer)
        vocabulary = config.orchestrator.vocabulary
        ArgumentError.require(
            self.tokenizer.vocabulary <= vocabulary,
            "tokenizer.vocabulary",
            f"at most the orchestrator's {vocabulary}",
            self.tokenizer.vocabulary,
        )
        self.device, self.dtype = modules.device, modules.dtype
        # Coroutines wait here for chunks and for text. asyncio's default executor must not fill up with them.
        self._threads = ThreadPoolExecutor(max_sessions, thread_name_prefix="streamchar-chunk")
        self._pool = GraphPool(self.device)
        self._session_bytes = session_bytes(config, modules)
        session = sum(self._session_bytes.values())
        available = available_bytes(self.device)
        require_room(available, session, max_sessions)
        queues = queues_for(self.device)
        with torch.inference_mode():
            try:
                rows = Rows(config, modules, max_sessions, self._pool)
                admit = partial(require_room, available, session, max_sessions)
                self._working_bytes = warm_up(rows, queues, report, admit)
            except torch.OutOfMemoryError as error:
                raise EngineMemoryError(max_sessions, session, available or 0, None) from error
            self.scheduler = Scheduler(Executor(rows, queues))

    @classmethod
    def from_preset(
        cls,
        name: str,
        *,
        random_weights: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        tokenizer: Tokenizer | None = None,
        max_sessions: int = 1,
        report: Report | None = None,
    ) -> "StreamCharEngine":
        """Build an engine with the weights that ship for a preset, or with random weights.

        Args:
            name: a preset, ``"tiny"`` or ``"5b"``.
            random_weights: draw the weights; latency is that of trained weights, the media are noise.
            seed: of random weights.
            device: CUDA if available, unless given.
            dtype: bf16 on CUDA and fp32 elsewhere, unless given.
            tokenizer: see the class.
            max_sessions: see the class.
            report: see the class.

        Raises:
            ConfigError: there is no such preset.
            CheckpointError: no weights ship for it, and ``random_weights`` is False.
            WeightsMemoryError: the device cannot hold the weights.
            EngineMemoryError: the device cannot hold the sessions.
        """
        config = preset(name)
        if not random_weights:
            shipped = shipped_weights(name)
            if shipped is None:
                remedy = "give from_pretrained() a checkpoint, or random_weights=True to measure latency"
                raise CheckpointError(name, "has no weights in this package", remedy)
            return cls.from_pretrained(
                shipped,
                device=device,
                dtype=dtype,
                tokenizer=tokenizer,
                max_sessions=max_sessions,
                report=report,
            )
        device, dtype = _defaults(device, dtype)
        # Weights are drawn in fp32, the largest module whole before it is rounded.
        require_weights(available_bytes(device), 4 * _count_weights(config))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            modules = Modules.build(config, device, dtype)
        return cls(config, *modules, tokenizer, max_sessions=max_sessions, report=report)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        tokenizer: Tokenizer | None = None,
        max_sessions: int = 1,
        report: Report | None = None,
    ) -> "StreamCharEngine":
        """Load an engine that :meth:`save_pretrained` wrote.

        Args:
            directory: holds config.json and safetensors shards.
            device: CUDA if available, unless given.
            dtype: bf16 on CUDA and fp32 elsewhere, unless given.
            tokenizer: see the class; required if the saved engine had a tokenizer of the caller's own.
            max_sessions: see the class.
            report: see the class.

        Raises:
            CheckpointError: naming the file, and the field or tensor that is missing, unexpected, of another
                shape, truncated or not finite; or a tokenizer is required and not given.
            EngineMemoryError: the device cannot hold the sessions.
        """
        config = load_preset(directory)
        if tokenizer is None and config.orchestrator.tokenizer == "given":
            remedy = "pass the tokenizer of the saved engine to from_pretrained(tokenizer=)"
            raise CheckpointError(directory, "holds no tokenizer", remedy)
        device, dtype = _defaults(device, dtype)
        # Built without storage: the weights are allocated once, on their device.
        modules = Modules.build(config, torch.device("meta"))
        load_pretrained(directory, modules.by_name(), dtype=dtype, device=device)
        return cls(config, *modules, tokenizer, max_sessions=max_sessions, report=report)

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        max_shard_bytes: int = 4 * 2**30,
    ) -> None:
        """Write config and weights for :meth:`from_pretrained`. A tokenizer of the caller's own is not saved.

        Args:
            directory: must not exist or be empty.
            dtype: of the stored weights; the engine's by default.
            max_shard_bytes: most bytes of weights in one file.

        Raises:
            CheckpointError: the directory is in use or cannot be written; nothing is left half-written.
        """
        modules = Modules(self.dit, self.orchestrator, self.vae, self.vocoder).by_name()
        states = {name: module.state_dict() for name, module in modules.items()}
        save_pretrained(directory, self._saved_preset(), states, dtype=dtype, max_shard_bytes=max_shard_bytes)

    def _saved_preset(self) -> Preset:
        """Return the preset; its tokenizer is "given" unless it names the engine's tokenizer."""
        language_model = self.preset.orchestrator
        if language_model.tokenizer != "given":
            named = default_tokenizer(language_model.tokenizer)
            if type(named) is type(self.tokenizer) and named.script == self.tokenizer.script:
                return self.preset
        return replace(self.preset, orchestrator=replace(language_model, tokenizer="given"))

    @torch.inference_mode()
    def open(self, reference: torch.Tensor, *, seed: int = 0, pacer: Pacer | None = None) -> Session:
        """Open a session with the identity of a reference image.

        Args:
            reference: [3, height, width] in [-1, 1], the preset's picture size;
                :func:`streamchar.media.load_reference` makes one from a file.
            seed: signed 64-bit; same seed, same text, same media.
            pacer: holds generation back to its lead over playback; without one chunks are made as fast as
                they are requested.

        Raises:
            CapacityError: the engine has no free row.
            ArgumentTypeError: the reference is not a floating-point tensor, or the seed not an integer.
            ArgumentError: the reference has another shape, or values that are not finite or outside [-1, 1];
                or the seed does not fit 64 bits.
        """
        _check_reference(reference, (3, self.preset.picture.height, self.preset.picture.width))
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ArgumentTypeError(f"seed must be an int, got {type(seed).__name__}")
        ArgumentError.require(-(2**63) <= seed < 2**63, "seed", "a signed 64-bit number", seed)
        row = self.scheduler.open(reference, seed)
        window = TextWindow(self.tokenizer, self.preset.orchestrator.transcript_tokens)
        timeline = Timeline(window, self.preset)
        return Session(Channel(self.scheduler, row, timeline, self.preset, pacer, self._threads), seed)

    def stats(self) -> EngineStats:
        """Return counters and sizes; may be called at any time from any thread."""
        executor = self.scheduler.executor
        return EngineStats(
            sessions=self.scheduler.open_rows,
            capacity=len(executor.rows),
            waiting=self.scheduler.waiting_requests,
            chunks=executor.chunks,
            batched=executor.batched_chunks,
            captures=self._pool.captures,
            replays=self._pool.replays,
            compilations=compilations(),
            device_allocations=device_allocations(self.device),
            session_bytes=MappingProxyType(self._session_bytes),
            working_bytes=MappingProxyType(self._working_bytes),
        )


def _check_reference(reference: torch.Tensor, shape: tuple[int, int, int]) -> None:
    if not isinstance(reference, torch.Tensor) or not reference.is_floating_point():
        kind = reference.dtype if isinstance(reference, torch.Tensor) else type(reference).__name__
        raise ArgumentTypeError(
            f"reference must be a floating-point tensor, got {kind}; load_reference() makes one from a file"
        )
    require = ArgumentError.require
    require(tuple(reference.shape) == shape, "reference.shape", f"{list(shape)}", list(reference.shape))
    require(
        bool(torch.isfinite(reference).all()), "reference", "finite", "NaN or infinity", "check the image"
    )
    least, most = reference.min().item(), reference.max().item()
    require(
        max(-least, most) <= 1 + _ROUNDING,
        "reference",
        "in [-1, 1]",
        f"{least:.3g} to {most:.3g}",
        "convert levels of 0 to 255 by level / 127.5 - 1",
    )


def _count_weights(config: Preset) -> int:
    modules = Modules.build(config, torch.device("meta"))
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _defaults(
    device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
