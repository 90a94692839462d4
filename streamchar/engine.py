"""The engine: one set of weights and one set of fixed buffers, shared by a bounded number of sessions.

A chunk of a session is made in this order: the orchestrator prefills transcript window and audio history; the
diffusion transformer denoises the chunk in a few steps, asking the orchestrator for conditions at each; the
finished latents are committed as motion (and, of the first chunk, as sink); VAE and vocoder turn them into
frames and samples. Sessions that ask at the same time are denoised in one batch.
"""

import copy
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .capture import GraphPool
from .checkpoint import load_preset, load_pretrained, save_pretrained
from .codecs.vae import Vae, VaeState
from .codecs.vocoder import Vocoder, VocoderState
from .config import Preset, preset
from .kernels import egress
from .lane import ChunkBuffers, Lane, state_row
from .memory import KVMemory
from .model import JointDiT
from .orchestrator import Orchestrator, append_history
from .pacing import Pacer
from .ranges import span
from .session import Chunk, Session, Turn
from .text import Tokenizer, default_tokenizer


class CapacityError(RuntimeError):
    """Every row of the engine belongs to an open session; close one, or build a larger engine."""


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done and holds.

    Attributes:
        sessions: open sessions.
        capacity: sessions that may be open together.
        chunks: chunks made.
        batched: chunks of these that shared their pass with another session's.
        captures: CUDA graphs captured, constant after warm-up; 0 on a CPU.
        replays: steps run, as graphs or as calls.
        memory_bytes: keys and values of all rows.
    """

    sessions: int
    capacity: int
    chunks: int
    batched: int
    captures: int
    replays: int
    memory_bytes: int


@dataclass
class _Row:
    """State of one session inside the engine; ``finished``: its last chunk is not committed yet."""

    lane: Lane
    vae: VaeState
    vocoder: VocoderState
    session: Session | None = None
    chunk: int = 0
    finished: bool = False


class StreamCharEngine:
    """Generate speech and picture of characters, chunk by chunk, for several sessions at once.

    Args of the constructor:
        config: every size.
        dit: the diffusion transformer; its parameters' device and dtype are the engine's.
        orchestrator: the language model.
        vae: the video codec.
        vocoder: the audio decoder.
        tokenizer: turns text into the orchestrator's tokens.
        max_sessions: sessions that may be open together, at least 1.
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
        self._lock = threading.Lock()
        self._waiting: list[Turn] = []
        self._waiting_lock = threading.Lock()
        self._chunks = self._batched = 0
        self._pool = GraphPool(self.device)
        with torch.inference_mode():
            self._memory = KVMemory(config, max_sessions, self.device, self.dtype)
            self._buffers = ChunkBuffers.zeros(config, max_sessions, self.device)
            self._state = orchestrator.new_state(max_sessions)
            self._all = Lane(dit, orchestrator, self._memory, self._state, self._buffers, self._pool)
            self._rows = [self._make_row(index) for index in range(max_sessions)]
            if self.device.type == "cuda":
                lanes = [self._all] + [row.lane for row in self._rows if row.lane is not self._all]
                for lane in lanes:
                    lane.warm_up()

    @classmethod
    def from_preset(
        cls,
        name: str,
        *,
        random_weights: bool,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        max_sessions: int = 1,
    ) -> "StreamCharEngine":
        """Build an engine with random weights: its latency is that of trained ones, its media are noise.

        Args:
            name: a preset, ``"tiny"`` or ``"5b"``.
            random_weights: must be True; no preset ships trained weights yet.
            seed: of the weights.
            device: CUDA where there is one, unless given.
            dtype: bf16 on CUDA and fp32 elsewhere, unless given.
            max_sessions: see the class.

        Raises:
            ConfigError: there is no such preset.
            ValueError: ``random_weights`` is False.
        """
        if not random_weights:
            raise ValueError(f"preset {name!r} must be opened with random_weights=True; no weights ship yet")
        config = preset(name)
        device, dtype = _defaults(device, dtype)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            dit = JointDiT(config).to(device, dtype)
            orchestrator = Orchestrator.from_preset(config).to(device, dtype)
            vae = Vae(config.vae, device, dtype)
            vocoder = Vocoder.from_preset(config).to(device, dtype)
        return cls(config, dit, orchestrator, vae, vocoder, max_sessions=max_sessions)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        max_sessions: int = 1,
    ) -> "StreamCharEngine":
        """Load an engine that :meth:`save_pretrained` wrote.

        Args:
            directory: config.json and safetensors shards.
            device: CUDA where there is one, unless given.
            dtype: bf16 on CUDA and fp32 elsewhere, unless given.
            max_sessions: see the class.

        Raises:
            CheckpointError: naming the file, and the field or tensor that is missing, unexpected, mis-shaped,
                truncated or not finite.
        """
        config = load_preset(directory)
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
        return cls(config, dit, orchestrator, vae, vocoder, max_sessions=max_sessions)

    def save_pretrained(self, directory: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write config and weights for :meth:`from_pretrained`.

        Args:
            directory: must not exist or be empty.
            dtype: of the stored weights; by default the engine's.

        Raises:
            CheckpointError: the directory is in use or cannot be written; nothing is left half-written.
        """
        modules = {
            name: getattr(self, name).state_dict() for name in ("dit", "orchestrator", "vae", "vocoder")
        }
        save_pretrained(directory, self.preset, modules, dtype=dtype)

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
            ValueError: the reference has another shape, or values that are not finite.
        """
        picture = self.preset.picture
        shape = (3, picture.height, picture.width)
        if tuple(reference.shape) != shape:
            raise ValueError(f"reference must have shape {list(shape)}, got {list(reference.shape)}")
        if not torch.isfinite(reference).all():
            raise ValueError("reference must be finite, got NaN or infinity; check the image")
        with self._lock:
            free = [index for index, row in enumerate(self._rows) if row.session is None]
            if not free:
                limit = f"at most {len(self._rows)} (max_sessions)"
                raise CapacityError(f"sessions must be {limit}, got one more; close a session")
            reference = reference.to(self.device, self.dtype).clamp(-1, 1)
            return self._occupy(free[0], reference, seed, pacer)

    def stats(self) -> EngineStats:
        """Return counters and sizes; may be called at any time."""
        return EngineStats(
            sessions=sum(row.session is not None for row in self._rows),
            capacity=len(self._rows),
            chunks=self._chunks,
            batched=self._batched,
            captures=self._pool.captures,
            replays=self._pool.replays,
            memory_bytes=self._memory.nbytes,
        )

    def make_chunk(self, turn: Turn) -> None:
        """Make the next chunk of a session, together with those of sessions that ask meanwhile.

        Called by :class:`Session`. When it returns, ``turn`` holds its chunk, its error, or neither where it
        was interrupted.
        """
        with self._waiting_lock:
            self._waiting.append(turn)
        with self._lock:
            if turn.done:
                return
            with self._waiting_lock:
                turns, self._waiting = self._waiting, []
            try:
                with torch.inference_mode():
                    self._advance(turns)
            except BaseException as error:
                for each in turns:
                    each.error = each.error or error
            finally:
                for each in turns:
                    each.done = True

    def wait(self) -> None:
        """Return once no chunk is being made; called by :meth:`Session.interrupt`."""
        with self._lock:
            pass

    def release(self, session: Session) -> None:
        """Free the row of a session; called by :meth:`Session.close`."""
        with self._lock:
            row = self._rows[session.row]
            if row.session is session:
                row.session = None
                with torch.inference_mode():
                    self._memory.reset(session.row)

    def _make_row(self, index: int) -> _Row:
        lane = self._all
        if self._memory.batch > 1:
            lane = Lane(
                self.dit,
                self.orchestrator,
                self._memory.row(index),
                state_row(self._state, index),
                self._buffers.row(index),
                self._pool,
            )
        return _Row(lane, self.vae.new_state(1, self.preset.picture.latent_size), self.vocoder.new_state(1))

    @span("open")
    def _occupy(self, index: int, reference: torch.Tensor, seed: int, pacer: Pacer | None) -> Session:
        row = self._rows[index]
        buffers = row.lane.buffers
        self._memory.reset(index)
        row.vocoder.reset()
        buffers.seed.fill_(seed)
        buffers.history_lengths.zero_()
        row.chunk, row.finished = 0, False
        latent = self.vae.encode_image(reference[None])
        self.vae.prime(row.vae, latent)
        frames = self.preset.chunk.reference_latents
        row.lane.commit("reference", latent[:, None].expand(-1, frames, -1, -1, -1))
        self._memory.set_valid(index, reference=True)
        row.session = Session(self, index, seed, pacer)
        return row.session

    @span("chunk")
    def _advance(self, turns: list[Turn]) -> None:
        clock = _StageClock(self._synchronize)
        self._commit_finished()
        clock.mark("commit")
        for turn in turns:
            row = self._rows[turn.session.row]
            buffers = row.lane.buffers
            buffers.chunk.fill_(row.chunk)
            buffers.text_lengths.fill_(turn.window.fill(turn.ids))
            buffers.text_ids.copy_(turn.ids[None])
            buffers.progress.fill_(turn.window.progress)
        lane = self._rows[turns[0].session.row].lane if len(turns) == 1 else self._all
        lane.begin()
        clock.mark("prefill")
        for step in range(lane.steps):
            if all(turn.interrupted for turn in turns):
                return
            lane.denoise(step)
        clock.mark("denoise")
        due = [turn for turn in turns if not turn.interrupted]
        self._chunks += len(due)
        self._batched += len(due) * (len(due) > 1)
        for turn in due:
            try:
                self._finish(turn, clock.copy())
            except BaseException as error:
                # Decoders that stopped half way are out of step with the clock for good.
                turn.session.fail()
                turn.error = error

    @span("commit")
    def _commit_finished(self) -> None:
        """Commit the chunks made last, which off the path of those chunks costs their viewers nothing.

        All rows at once: a batched pass overwrites the latents of every row.
        """
        chunk = self.preset.chunk
        for index, row in enumerate(self._rows):
            if not row.finished:
                continue
            row.finished = False
            lane, buffers = row.lane, row.lane.buffers
            if row.chunk == 1:
                lane.commit("sink", buffers.x_video[:, : chunk.sink_latents])
                self._memory.set_valid(index, sink=True)
            lane.commit("motion", buffers.x_video[:, -chunk.motion_latents :])
            self._memory.set_valid(index, motion=True)
            append_history(buffers.history, buffers.history_lengths, buffers.x_audio)

    def _finish(self, turn: Turn, clock: "_StageClock") -> None:
        row = self._rows[turn.session.row]
        buffers = row.lane.buffers
        with span("video"):
            frames = self.vae.decode(row.vae, buffers.x_video.to(self.dtype))[0]
            clock.mark("video")
        with span("egress"):
            rgb, yuv = egress(frames, rgb=True, yuv=True)
            clock.mark("egress")
        with span("audio"):
            audio = self.vocoder.decode(row.vocoder, buffers.x_audio.to(self.dtype))[0].float()
            clock.mark("audio")
        assert rgb is not None
        assert yuv is not None
        start = turn.session.next_sample
        words = turn.session.note_positions(turn, buffers.position[0].tolist())
        turn.chunk = Chunk(row.chunk, start, rgb, yuv, audio, words, clock.latency())
        row.chunk += 1
        row.finished = True

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _defaults(
    device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


class _StageClock:
    """Seconds of each stage of a chunk, the device's work included."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._started = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """End a stage."""
        self._synchronize()
        now = time.perf_counter()
        self._stages[stage], self._last = now - self._last, now

    def copy(self) -> "_StageClock":
        """Return a clock that goes on from here by itself."""
        other = copy.copy(self)
        other._stages = dict(self._stages)
        return other

    def latency(self) -> dict[str, float]:
        """Return seconds by stage, and in ``"total"``."""
        return {**self._stages, "total": self._last - self._started}
