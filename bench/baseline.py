"""The same network the way peers run it: conditioning computed again at every denoising step.

Ours commits reference and sink once a session and motion once a chunk, and denoises against their keys and
values. The baselines hold the same weights and compute the same chunk, but every step embeds and runs the
conditioning latents again before it runs the chunk's own tokens. All but one keep the prefix of their
language model, as ours does:

    eager            plain PyTorch, one launch an operation
    eager-prefix     the same, and the prefix prefilled anew at every step: nothing at all is reused
    compiled         blocks through ``torch.compile``, matrix products tuned, launched from Python
    compiled-graphs  the same blocks, each whole step captured in a CUDA graph, as ours is

The last is the strongest: between it and ours lie the work saved and the kernels. PyTorch's own way to graphs
(``mode="reduce-overhead"``) is none here: it skips functions that write into memory which they are given, as
a block writes its keys and values.

Where what a role attends to in the steady state is a prefix of the memory, as with the preset 5b, their
attention takes no mask, which would keep PyTorch from its fastest kernel.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from bench.gate import Ratio
from streamchar.capture import GraphPool
from streamchar.config import Preset
from streamchar.engine import StreamCharEngine
from streamchar.kernels import Backend
from streamchar.lane import ChunkBuffers, Lane
from streamchar.memory import ROLES, SEGMENTS, KVMemory, Role
from streamchar.model import JointDiT
from streamchar.numerics import relative_error
from streamchar.orchestrator import Orchestrator
from streamchar.sampler import Denoiser

#: Repeats are separate in time, so that their spread is that of a later run as far as one run can tell.
REPEATS, ROUNDS = 3, 3
#: Baselines by kind of device, in groups that a run against a deadline measures one after the other: the
#: compiler takes minutes. On two busy CPU cores, compiling the tiny preset and its first chunk took 57 s, and
#: the second chunk had not ended 30 s later: only a GPU compiles.
BASELINES = {
    "cpu": (("eager", "eager-prefix"),),
    "cuda": (("eager", "eager-prefix"), ("compiled", "compiled-graphs")),
}


@dataclass(frozen=True)
class Networks:
    """What denoises a chunk, apart from the engine that its weights are of."""

    dit: JointDiT
    orchestrator: Orchestrator

    @property
    def preset(self) -> Preset:
        """Every size."""
        return self.dit.preset

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.dit.table.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.dit.table.dtype


@dataclass(frozen=True)
class Conditioning:
    """Clean latents of one session in its steady state, [1, frames, channels, height, width] each."""

    reference: torch.Tensor
    sink: torch.Tensor
    motion: torch.Tensor

    @classmethod
    def random(cls, engine: StreamCharEngine | Networks, seed: int = 0) -> "Conditioning":
        """Draw latents for an engine's preset and device."""
        preset = engine.preset
        generator = torch.Generator().manual_seed(seed)

        def draw(frames: int) -> torch.Tensor:
            shape = (1, frames, preset.picture.channels, *preset.picture.latent_size)
            return torch.randn(shape, generator=generator).to(engine.device, engine.dtype)

        chunk = preset.chunk
        return cls(*map(draw, (chunk.reference_latents, chunk.sink_latents, chunk.motion_latents)))

    def items(self) -> tuple[tuple[Role, torch.Tensor], ...]:
        """Return roles and latents in block-causal order."""
        return (("reference", self.reference), ("sink", self.sink), ("motion", self.motion))


def steady_lane(engine: StreamCharEngine | Networks, latents: Conditioning, seed: int = 0) -> Lane:
    """Return a lane of one row, warmed up, with everything committed, full history and a full transcript."""
    preset = engine.preset
    generator = torch.Generator().manual_seed(seed)
    memory = KVMemory(preset, 1, engine.device, engine.dtype)
    buffers = ChunkBuffers.zeros(preset, 1, engine.device)
    pool, state = GraphPool(engine.device), engine.orchestrator.new_state(1)
    lane = Lane(engine.dit, engine.orchestrator, memory, state, buffers, pool)
    # It leaves garbage in the buffers, which are filled after it.
    for stage in lane.stages().values():
        stage()
    vocabulary = preset.orchestrator.vocabulary
    ids = torch.randint(vocabulary, buffers.text_ids.shape, generator=generator)
    buffers.text_ids.copy_(ids)
    buffers.text_lengths.fill_(buffers.text_ids.shape[1])
    buffers.history.copy_(torch.randn(buffers.history.shape, generator=generator))
    buffers.history_lengths.fill_(buffers.history.shape[1])
    for role, latent in latents.items():
        lane.dit.commit(role, latent, lane.modulation, memory)
        memory.set_valid(0, **{role: True})
    return lane


class Ours:
    """The engine's chunk step: one prefill, the denoising steps, one commit of motion."""

    def __init__(self, lane: Lane, latents: Conditioning) -> None:
        self.lane, self.latents = lane, latents
        # What is committed is the same for every contender, not what this one has just denoised.
        self._commit = GraphPool(lane.buffers.x_video.device).step(self._run_commit)

    def __call__(self) -> None:
        """Denoise one chunk."""
        lane = self.lane
        lane.prefill()
        lane.draw()
        for index in range(lane.steps):
            lane.denoise(index)
        self._commit()

    def _run_commit(self) -> None:
        lane = self.lane
        lane.dit.commit("motion", self.latents.motion, lane.modulation, lane.memory)


class Recompute:
    """A baseline: the same weights, conditioning committed anew before every denoising step.

    Args of the constructor:
        dit: the network, from :func:`plain_copy` or :func:`compiled_copy`.
        lane: made for this baseline by :func:`steady_lane`; its memory and buffers are used, its steps not.
        latents: what is recomputed.
        pool: captures each step, so that the first call leaves garbage; None to launch them from Python.
        prefix: whether the language model's prefix is prefilled at every step too.
    """

    def __init__(
        self,
        dit: JointDiT,
        lane: Lane,
        latents: Conditioning,
        *,
        pool: GraphPool | None = None,
        prefix: bool = False,
    ) -> None:
        self.dit, self.lane, self.latents, self.prefix = dit, lane, latents, prefix
        self._denoiser, self._ends = Denoiser(dit), prefix_ends(lane.memory)
        steps = [partial(self._run_step, index) for index in range(self._denoiser.steps)]
        self._steps: list[Callable[[], None]] = [pool.step(step) for step in steps] if pool else [*steps]

    def __call__(self) -> None:
        """Denoise one chunk."""
        self.lane.prefill()
        self.lane.draw()
        for step in self._steps:
            step()

    def _run_step(self, index: int) -> None:
        lane, b = self.lane, self.lane.buffers
        # The first step's prefix is there already.
        if self.prefix and index > 0:
            lane.orchestrator.prefill(
                lane.state, b.text_ids, b.text_lengths, b.history, b.history_lengths, b.progress
            )
        for role, latent in self.latents.items():
            with self._attending(role):
                self.dit.commit(role, latent, self._denoiser.modulation, lane.memory)
        with self._attending("chunk"):
            self._denoiser.step(index, b.x_video, b.x_audio, b.seed, b.chunk, self._conditions, lane.memory)

    def _attending(self, role: Role) -> AbstractContextManager[object]:
        """Let the network attend, by PyTorch's own kernel, to what a role sees in the steady state."""
        if self._ends is None:
            return nullcontext()
        return patch("streamchar.model.joint_attention", _prefix_attention(self._ends[role]))

    def _conditions(self, x_audio: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        c_a, position = self.lane.orchestrator.step(self.lane.state, x_audio, sigma)
        self.lane.buffers.position.copy_(position)
        return c_a


def prefix_ends(memory: KVMemory) -> dict[Role, int] | None:
    """Return one past the last slot that each role attends to once everything has been committed.

    None where there are gaps between the segments, as with tokens that are no multiple of the alignment.
    """
    ends, end = [], 0
    for name in SEGMENTS:
        start, length = memory.regions[name]
        if start != end:
            return None
        ends.append(end := start + length)
    return dict(zip(ROLES, [*ends[:3], ends[-1]], strict=True))


# One function for each end, so that the compiler knows it again.
@cache
def _prefix_attention(end: int) -> Callable[..., torch.Tensor]:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k[:, :end], v[:, :end]))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return attend


def shared_copy(dit: JointDiT, preset: Preset, backend: Backend) -> JointDiT:
    """Return the same network, sharing its weights, for a preset with the same, or on another path."""
    with torch.device("meta"):
        copy = JointDiT(preset, backend)
    copy.load_state_dict(dit.state_dict(), assign=True)
    return copy.eval().requires_grad_(False)


def plain_copy(dit: JointDiT) -> JointDiT:
    """Return the same network on the PyTorch path, sharing the weights."""
    return shared_copy(dit, dit.preset, "torch")


def compiled_copy(dit: JointDiT) -> JointDiT:
    """Return :func:`plain_copy` with its blocks compiled at their first call, each one graph or an error."""
    copy = plain_copy(dit)
    for block in copy.blocks:
        # A program is made for every role and kept for all blocks, 6 at most of the 8 that PyTorch keeps;
        # with fullgraph a ninth would be an error, not a block that runs uncompiled.
        block.compile(mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
    return copy


@dataclass(frozen=True)
class Comparison:
    """Ours against the baselines, denoising the same chunk in the same run.

    Attributes:
        seconds: per contender, every sample.
        ratios: per baseline, our lead.
        errors: per baseline, how far its latents are from ours, relative.
        failures: per baseline that could not run, why.
    """

    seconds: dict[str, list[float]]
    ratios: dict[str, Ratio]
    errors: dict[str, float]
    failures: dict[str, str]

    def joined(self, other: "Comparison") -> "Comparison":
        """Return both as one; each baseline keeps the lead over ours as it was measured beside it."""
        names = [*self.seconds, *(name for name in other.seconds if name not in self.seconds)]
        return Comparison(
            {name: self.seconds.get(name, []) + other.seconds.get(name, []) for name in names},
            self.ratios | other.ratios,
            self.errors | other.errors,
            self.failures | other.failures,
        )


@torch.inference_mode()
def compare_with_baselines(engine: StreamCharEngine, names: Sequence[str]) -> Comparison:
    """Measure the lead over baselines.

    Args:
        engine: whose network is run.
        names: of :data:`BASELINES`.
    """
    latents = Conditioning.random(engine)
    ours = Ours(steady_lane(engine, latents), latents)
    contenders: dict[str, Ours | Recompute] = {"ours": ours}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    ours()
    plain, compiled = plain_copy(engine.dit), compiled_copy(engine.dit)
    for name in names:
        baseline = Recompute(
            compiled if name.startswith("compiled") else plain,
            steady_lane(engine, latents),
            latents,
            pool=GraphPool(engine.device) if name == "compiled-graphs" else None,
            prefix=name == "eager-prefix",
        )
        try:
            # The first call captures what there is to capture.
            baseline()
            baseline()
        except Exception as error:  # what cannot run is reported in its place, and fails the gate there
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        contenders[name] = baseline
        theirs, reference = baseline.lane.buffers, ours.lane.buffers
        errors[name] = max(
            relative_error(theirs.x_video, reference.x_video),
            relative_error(theirs.x_audio, reference.x_audio),
        )
    repeats = [interleave(contenders, ROUNDS, engine.device) for _ in range(REPEATS)]
    seconds = {name: [one for repeat in repeats for one in repeat[name]] for name in contenders}
    ratios = {
        name: Ratio.of([median(repeat[name]) / median(repeat["ours"]) for repeat in repeats])
        for name in contenders
        if name != "ours"
    }
    return Comparison(seconds, ratios, errors, failures)


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Time whole calls, launches included, in the order A B B A; one call of each first, not timed.

    Unlike :func:`bench.timing.compare` nothing is captured: how work is launched is what is compared.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    order = list(contenders)
    for index in range(rounds):
        for name in order if index % 2 == 0 else reversed(order):
            samples[name].append(_seconds(contenders[name], device))
    return samples


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3
    start_clock = time.perf_counter()
    call()
    return time.perf_counter() - start_clock
