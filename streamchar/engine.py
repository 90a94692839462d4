"""The engine: one set of weights and one set of fixed buffers, shared by a bounded number of sessions.

A chunk of a session is made in this order: the orchestrator prefills transcript window and audio history; the
diffusion transformer denoises the chunk in a few steps, asking the orchestrator for conditions at each; VAE
and vocoder turn the latents into frames and samples, which are copied to the host. Behind them, where nobody
waits for it, the latents are committed as motion (and, of the first chunk, as sink), and on a GPU the next
prefix is prefilled too. Sessions that ask at the same time are denoised in one batch, and decoded in one
where all rows of the engine are due.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from .capture import GraphPool, Report
from .checkpoint import CheckpointError, load_preset, load_pretrained, save_pretrained, shipped_weights
from .codecs.vae import Vae
from .codecs.vocoder import Vocoder
from .config import Preset, preset
from .footprint import EngineMemoryError, available_bytes, require_room, require_weights, session_bytes
from .model import JointDiT
from .orchestrator import Orchestrator
from .pacing import Pacer
from .passes import Passes
from .session import Session, Turn
from .stats import EngineStats, compilations, device_allocations
from .streams import streams_for
from .tokenizers import Tokenizer, default_tokenizer

#: By how much a reference may leave [-1, 1], as resampling in bf16 does.
_ROUNDING = 0.01


class CapacityError(RuntimeError):
    """Every row of the engine belongs to an open session; close one, or build a larger engine."""


class StreamCharEngine:
    """Generate speech and picture of characters, chunk by chunk, for several sessions at once.

    Args of the constructor:
        config: every size.
        dit: the diffusion transformer; its parameters' device and dtype are the engine's.
        orchestrator: the language model.
        vae: the video codec.
        vocoder: the audio decoder.
        tokenizer: turns text into the orchestrator's tokens; by default the one that the preset names.
        max_sessions: sessions that may be open together, at least 1.
        report: is told of every stage of warming up before it begins: name, number, how many.
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
        if max_sessions < 1:
            raise ValueError(f"max_sessions must be at least 1, got {max_sessions}")
        self.preset = config
        self.dit, self.orchestrator, self.vae, self.vocoder = dit, orchestrator, vae, vocoder
        for module in (dit, orchestrator, vae, vocoder):
            module.eval().requires_grad_(False)
        self.tokenizer: Tokenizer = tokenizer or default_tokenizer(config.orchestrator.tokenizer)
        if self.tokenizer.vocabulary > config.orchestrator.vocabulary:
            limit = f"at most the orchestrator's {config.orchestrator.vocabulary}"
            raise ValueError(f"tokenizer.vocabulary must be {limit}, got {self.tokenizer.vocabulary}")
        self.device, self.dtype = dit.table.device, dit.table.dtype
        #: Where chunks that coroutines ask for are waited for, text included: no other executor must fill up.
        self.threads = ThreadPoolExecutor(max_sessions, thread_name_prefix="streamchar-chunk")
        self._lock = threading.Lock()
        self._waiting: list[Turn] = []
        self._waiting_lock = threading.Lock()
        self._pool = GraphPool(self.device)
        self._session_bytes = session_bytes(config, orchestrator, vae, vocoder, self.dtype)
        session = sum(self._session_bytes.values())
        available = available_bytes(self.device)
        require_room(available, session, max_sessions)
        with torch.inference_mode():
            try:
                self._passes = Passes(
                    config,
                    dit,
                    orchestrator,
                    vae,
                    vocoder,
                    max_sessions,
                    self._pool,
                    streams_for(self.device),
                )
                admit = partial(require_room, available, session, max_sessions)
                self._passes.warm_up(report, admit)
            except torch.OutOfMemoryError as error:
                raise EngineMemoryError(max_sessions, session, available or 0, None) from error
        self._sessions: list[Session | None] = [None] * max_sessions

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
        """Build an engine with the weights that ship for a preset, or with random ones.

        Args:
            name: a preset, ``"tiny"`` or ``"5b"``.
            random_weights: draw the weights: latency is that of trained ones, the media are noise.
            seed: of random weights.
            device: CUDA where there is one, unless given.
            dtype: bf16 on CUDA and fp32 elsewhere, unless given.
            tokenizer: see the class.
            max_sessions: see the class.
            report: see the class.

        Raises:
            ConfigError: there is no such preset.
            CheckpointError: no weights ship for it, and ``random_weights`` is False.
            WeightsMemoryError: the device cannot hold them.
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
        # Drawn in fp32, the largest of them whole before it is rounded.
        require_weights(available_bytes(device), 4 * _count_weights(config))
        # Drawn where they are to stay: a CPU takes minutes over the billions that a GPU draws in moments.
        with torch.random.fork_rng(), device:
            torch.manual_seed(seed)
            dit = JointDiT(config).to(dtype)
            orchestrator = Orchestrator.from_preset(config).to(dtype)
            vae = Vae(config.vae, device, dtype)
            vocoder = Vocoder.from_preset(config).to(dtype)
        return cls(
            config, dit, orchestrator, vae, vocoder, tokenizer, max_sessions=max_sessions, report=report
        )

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
            directory: config.json and safetensors shards.
            device: CUDA where there is one, unless given.
            dtype: bf16 on CUDA and fp32 elsewhere, unless given.
            tokenizer: see the class; needed where the engine that was saved had one of the caller's own.
            max_sessions: see the class.
            report: see the class.

        Raises:
            CheckpointError: naming the file, and the field or tensor that is missing, unexpected, mis-shaped,
                truncated or not finite; or the tokenizer is not in it and not given.
        """
        config = load_preset(directory)
        if tokenizer is None and config.orchestrator.tokenizer == "given":
            remedy = "give from_pretrained(tokenizer=) what the engine that was saved had"
            raise CheckpointError(directory, "holds no tokenizer", remedy)
        device, dtype = _defaults(device, dtype)
        # Without storage: the weights lie in memory once, where they are to stay.
        with torch.device("meta"):
            dit, orchestrator = JointDiT(config), Orchestrator.from_preset(config)
            vae, vocoder = Vae(config.vae), Vocoder.from_preset(config)
        modules: dict[str, nn.Module] = {
            "dit": dit,
            "orchestrator": orchestrator,
            "vae": vae,
            "vocoder": vocoder,
        }
        load_pretrained(directory, modules, dtype=dtype, device=device)
        return cls(
            config, dit, orchestrator, vae, vocoder, tokenizer, max_sessions=max_sessions, report=report
        )

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        max_shard_bytes: int = 4 * 2**30,
    ) -> None:
        """Write config and weights for :meth:`from_pretrained`, but no tokenizer of the caller's own.

        Args:
            directory: must not exist or be empty.
            dtype: of the stored weights; by default the engine's.
            max_shard_bytes: most bytes of weights in one file.

        Raises:
            CheckpointError: the directory is in use or cannot be written; nothing is left half-written.
        """
        modules = {
            name: getattr(self, name).state_dict() for name in ("dit", "orchestrator", "vae", "vocoder")
        }
        save_pretrained(
            directory, self._saved_preset(), modules, dtype=dtype, max_shard_bytes=max_shard_bytes
        )

    def _saved_preset(self) -> Preset:
        """Return the preset, saying so where its name of a tokenizer is not that of the engine's."""
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
            reference: [3, height, width] in [-1, 1], the preset's picture size
                (:func:`streamchar.media.load_reference` makes one of a file).
            seed: same seed, same text, same media.
            pacer: holds generation back to its lead over playback; without one chunks are made as fast as
                they are asked for.

        Raises:
            CapacityError: the engine has no free row.
            TypeError: the reference is no tensor of floating point, or the seed no integer.
            ValueError: the reference has another shape, or values that are not finite or outside [-1, 1]; or
                the seed does not fit 64 bits.
        """
        picture = self.preset.picture
        shape = (3, picture.height, picture.width)
        if not isinstance(reference, torch.Tensor) or not reference.is_floating_point():
            kind = reference.dtype if isinstance(reference, torch.Tensor) else type(reference).__name__
            raise TypeError(
                f"reference must be a floating-point tensor, got {kind}; load_reference() makes one of a file"
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed must be a signed 64-bit number, got {seed}")
        if tuple(reference.shape) != shape:
            raise ValueError(f"reference must have shape {list(shape)}, got {list(reference.shape)}")
        if not torch.isfinite(reference).all():
            raise ValueError("reference must be finite, got NaN or infinity; check the image")
        if reference.abs().max() > 1 + _ROUNDING:
            least, most = reference.min().item(), reference.max().item()
            raise ValueError(
                f"reference must lie in [-1, 1], got {least:.3g} to {most:.3g}; levels of 0 to 255 become "
                "level / 127.5 - 1"
            )
        with self._lock:
            if None not in self._sessions:
                limit = f"at most {len(self._sessions)} (max_sessions)"
                raise CapacityError(f"sessions must be {limit}, got one more; close a session")
            row = self._sessions.index(None)
            self._passes.open(row, reference, seed)
            self._sessions[row] = session = Session(self, row, seed, pacer)
            return session

    def stats(self) -> EngineStats:
        """Return counters and sizes; may be called at any time."""
        return EngineStats(
            sessions=sum(session is not None for session in self._sessions),
            capacity=len(self._sessions),
            chunks=self._passes.chunks,
            batched=self._passes.batched,
            captures=self._pool.captures,
            replays=self._pool.replays,
            compilations=compilations(),
            device_allocations=device_allocations(self.device),
            session_bytes=MappingProxyType(self._session_bytes),
            working_bytes=MappingProxyType(self._passes.working_bytes),
        )

    def make_chunk(self, turn: Turn) -> None:
        """Make the next chunk of a session, together with those of sessions that ask meanwhile.

        Called by :class:`Session`. When it returns, ``turn`` holds its chunk, its error, or neither where it
        was interrupted.
        """
        with self._waiting_lock:
            if turn.interrupted:
                return
            turn.asked = True
            self._waiting.append(turn)
        try:
            with self._lock:
                if not turn.done:
                    self._serve(turn)
        except BaseException:
            # Ctrl-C while it waited: nobody would take the chunk.
            self.withdraw(turn)
            raise
        # Others go on while this chunk is decoded and copied.
        if turn.delivery is not None:
            try:
                turn.chunk = self._passes.deliver(turn.delivery)
            except BaseException as error:
                turn.lose(error)
                turn.error = error

    def withdraw(self, turn: Turn) -> None:
        """Take a request back; called by :class:`Session`, does not wait.

        A pass that works for it lets go of it at its next denoising step and sets ``turn.released``; past the
        last step it finishes the chunk.
        """
        with self._waiting_lock:
            turn.interrupted = True
            if not turn.asked or turn in self._waiting:
                self._waiting = [each for each in self._waiting if each is not turn]
                turn.done = True
                turn.released.set()

    def release(self, session: Session) -> None:
        """Free the row of a session; called by :meth:`Session.close`."""
        with self._lock:
            if self._sessions[session.row] is session:
                self._sessions[session.row] = None
                with torch.inference_mode():
                    self._passes.free(session.row)

    def _serve(self, turn: Turn) -> None:
        """Make the chunks of all turns that wait, ``turn`` among them."""
        with self._waiting_lock:
            turns, self._waiting = self._waiting, []
        try:
            with torch.inference_mode():
                self._passes.make(turns)
        except BaseException as error:
            for each in turns:
                if each.delivery is not None:
                    each.lose(error)
            if isinstance(error, Exception):
                for each in turns:
                    each.error = each.error or error
            else:
                # Ctrl-C is meant for the thread that it reached; the others go on by themselves.
                turn.error = error
                again = [each for each in turns if each.error is None]
                with self._waiting_lock:
                    wanted = [each for each in again if not each.interrupted]
                    self._waiting = wanted + self._waiting
                turns = [each for each in turns if each not in wanted]
        for each in turns:
            each.done = True
            each.released.set()


def _count_weights(config: Preset) -> int:
    with torch.device("meta"):
        modules = (
            JointDiT(config),
            Orchestrator.from_preset(config),
            Vae(config.vae),
            Vocoder.from_preset(config),
        )
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _defaults(
    device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
