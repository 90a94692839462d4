"""Baselines: the same network without the KV cache of the conditioning.

The engine commits reference and sink once per session and motion once per chunk, and denoises against their
cached keys and values. The baselines hold the same weights and compute the same chunk, but every denoising
step first recomputes the keys and values of all conditioning latents. All baselines but one keep the prefix
of the language model, as the engine does:

    eager            plain PyTorch, one kernel launch per operation
    eager-prefix     also prefills the prefix at every step: nothing is reused
    compiled         blocks compiled by ``torch.compile`` with tuned matrix products, launched from Python
    compiled-graphs  the same blocks, with each step captured in a CUDA graph, as in the engine

The last baseline is the fastest: it differs from the engine only in the recomputation and in the kernels.
PyTorch's own way to CUDA graphs, ``torch.compile(mode="reduce-overhead")``, is not used: it skips functions
that mutate their inputs, and a block writes its keys and values into the cache.

With the preset 5b, the slots that a role attends to in the steady state are a prefix of the cache. The
baselines then attend without a mask, so that PyTorch can choose its fastest kernel.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from bench.gate import Ratio
from bench.timing import clock_seconds, event_seconds
from streamchar.config import Preset
from streamchar.engine import StreamCharEngine
from streamchar.kernels import Backend
from streamchar.model.denoiser import Denoiser
from streamchar.model.dit import JointDiT
from streamchar.model.kv_cache import ROLES, SEGMENTS, KVCache, Role
from streamchar.model.orchestrator import Orchestrator
from streamchar.model.packing import Prefix
from streamchar.numerics import relative_error
from streamchar.runtime.buffers import ChunkBuffers
from streamchar.runtime.graphs import GraphPool
from streamchar.runtime.runner import ChunkRunner

#: Repeats are spread over the run, so that their spread approximates that between two runs.
REPEATS, ROUNDS = 3, 3
#: Baselines by device type, in groups that are separate stages of a run with a deadline, since compilation
#: takes minutes. Nothing is compiled on a CPU: on two busy cores, compilation and the first chunk of the tiny
#: preset took 57 s, and the second chunk was not finished 30 s later.
BASELINES = {
    "cpu": (("eager", "eager-prefix"),),
    "cuda": (("eager", "eager-prefix"), ("compiled", "compiled-graphs")),
}


@dataclass(frozen=True)
class Conditioning:
    """Clean latents of one session in its steady state, [1, frames, channels, height, width] each."""

    reference: torch.Tensor
    sink: torch.Tensor
    motion: torch.Tensor

    @classmethod
    def random(cls, dit: JointDiT, seed: int = 0) -> "Conditioning":
        """Draw latents for a network's preset, device and dtype."""
        preset = dit.preset
        generator = torch.Generator().manual_seed(seed)

        def draw(frames: int) -> torch.Tensor:
            shape = (1, frames, preset.picture.channels, *preset.picture.latent_size)
            return torch.randn(shape, generator=generator).to(dit.table)

        chunk = preset.chunk
        return cls(*map(draw, (chunk.reference_latents, chunk.sink_latents, chunk.motion_latents)))

    def items(self) -> tuple[tuple[Role, torch.Tensor], ...]:
        """Return roles and latents in block-causal order."""
        return (("reference", self.reference), ("sink", self.sink), ("motion", self.motion))


def steady_runner(
    dit: JointDiT, orchestrator: Orchestrator, latents: Conditioning, seed: int = 0
) -> ChunkRunner:
    """Return a warmed-up runner of one row in the steady state of a session.

    All conditioning is committed; audio history and transcript window are full.
    """
    preset, device = dit.preset, dit.table.device
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(preset, 1, device, dit.table.dtype)
    buffers = ChunkBuffers.zeros(preset, 1, device)
    pool, state = GraphPool(device), orchestrator.new_state(1)
    runner = ChunkRunner(dit, orchestrator, cache, state, buffers, pool)
    # Warming up leaves garbage in the buffers, so they are filled afterwards.
    for stage in runner.stages().values():
        stage()
    vocabulary = preset.orchestrator.vocabulary
    ids = torch.randint(vocabulary, buffers.text_ids.shape, generator=generator)
    buffers.text_ids.copy_(ids)
    buffers.text_lengths.fill_(buffers.text_ids.shape[1])
    buffers.history.copy_(torch.randn(buffers.history.shape, generator=generator))
    buffers.history_lengths.fill_(buffers.history.shape[1])
    for role, latent in latents.items():
        dit.commit(role, latent, runner.denoiser.modulation, cache)
        cache.set_valid(0, **{role: True})
    return runner


class Ours:
    """The engine's work for one chunk: one prefill, the denoising steps, one commit of motion."""

    def __init__(self, runner: ChunkRunner, latents: Conditioning) -> None:
        self.runner = runner

        def commit() -> None:
            # Every contender commits the same latents, not those that it has just denoised.
            runner.dit.commit("motion", latents.motion, runner.denoiser.modulation, runner.cache)

        self._commit = GraphPool(runner.buffers.x_video.device).step("motion", commit)

    def __call__(self) -> None:
        """Denoise one chunk."""
        self.runner.prefill()
        self.runner.draw_noise()
        for step in self.runner.denoise:
            step()
        self._commit()


class Recompute:
    """A baseline: the same weights, with the conditioning committed again before every denoising step.

    Args of the constructor:
        dit: the network, from :func:`plain_copy` or :func:`compiled_copy`.
        runner: from :func:`steady_runner`, for this baseline only: it uses the cache, the buffers, the
            prefill and the noise, not the denoising steps.
        latents: the conditioning to recompute.
        pool: captures each step, so that the first call leaves garbage; None launches steps from Python.
        prefix: whether each step also prefills the prefix of the language model.
    """

    def __init__(
        self,
        dit: JointDiT,
        runner: ChunkRunner,
        latents: Conditioning,
        *,
        pool: GraphPool | None = None,
        prefix: bool = False,
    ) -> None:
        self.dit, self.runner, self.latents, self.prefix = dit, runner, latents, prefix
        self._denoiser, self._ends = Denoiser(dit), prefix_ends(runner.cache)
        steps = [partial(self._denoise, index) for index in range(self._denoiser.steps)]
        self._steps: list[Callable[[], None]] = (
            [pool.step(f"step {index}", step) for index, step in enumerate(steps)] if pool else [*steps]
        )

    def __call__(self) -> None:
        """Denoise one chunk."""
        self.runner.prefill()
        self.runner.draw_noise()
        for step in self._steps:
            step()

    def _denoise(self, index: int) -> None:
        runner, b = self.runner, self.runner.buffers
        # __call__ has already prefilled the prefix of the first step.
        if self.prefix and index > 0:
            prefix = Prefix(b.text_ids, b.text_lengths, b.history, b.history_lengths, b.progress)
            runner.orchestrator.prefill(runner.state, prefix)
        for role, latent in self.latents.items():
            with self._attending(role):
                self.dit.commit(role, latent, self._denoiser.modulation, runner.cache)
        with self._attending("chunk"):
            self._denoiser.step(index, b.x_video, b.x_audio, b.seed, b.chunk, self._conditions, runner.cache)

    def _attending(self, role: Role) -> AbstractContextManager[object]:
        """Replace the network's attention by PyTorch's over the prefix that the role attends to."""
        if self._ends is None:
            return nullcontext()
        return patch("streamchar.model.dit.joint_attention", _prefix_attention(self._ends[role]))

    def _conditions(self, x_audio: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        c_a, position = self.runner.orchestrator.step(self.runner.state, x_audio, sigma)
        self.runner.buffers.position.copy_(position)
        return c_a


def prefix_ends(cache: KVCache) -> dict[Role, int] | None:
    """Return, by role, the end of the prefix of the cache that it attends to once everything is committed.

    Return None if there are gaps between the segments because a segment's tokens are not a multiple of the
    alignment.
    """
    ends, end = [], 0
    for name in SEGMENTS:
        start, length = cache.regions[name]
        if start != end:
            return None
        ends.append(end := start + length)
    return dict(zip(ROLES, [*ends[:3], ends[-1]], strict=True))


# Cached, because the compiler reuses a program only for the same function.
@functools.cache
def _prefix_attention(end: int) -> Callable[..., torch.Tensor]:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k[:, :end], v[:, :end]))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return attend


def shared_copy(dit: JointDiT, preset: Preset, backend: Backend) -> JointDiT:
    """Return a network with the weights of ``dit`` (shared) for another preset or backend."""
    with torch.device("meta"):
        copy = JointDiT(preset, backend)
    copy.load_state_dict(dit.state_dict(), assign=True)
    return copy.eval().requires_grad_(False)


def plain_copy(dit: JointDiT) -> JointDiT:
    """Return a network that shares the weights of ``dit`` and uses the PyTorch backend."""
    return shared_copy(dit, dit.preset, "torch")


def compiled_copy(dit: JointDiT) -> JointDiT:
    """Return :func:`plain_copy` with blocks that are compiled at their first call, without graph breaks."""
    copy = plain_copy(dit)
    for block in copy.blocks:
        # Each role gets its own program, which all blocks share: at most 6 of the 8 that PyTorch keeps. With
        # fullgraph a ninth raises an error instead of running the block uncompiled.
        block.compile(mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
    return copy


@dataclass(frozen=True)
class Comparison:
    """Measurements of the engine and the baselines, which denoise the same chunk in the same run.

    Attributes:
        seconds: all samples of each contender, ``"ours"`` and the baselines.
        ratios: speed-up of the engine over each baseline.
        errors: relative error of each baseline's latents against the engine's.
        failures: why a baseline could not run, for each that could not.
    """

    seconds: dict[str, list[float]]
    ratios: dict[str, Ratio]
    errors: dict[str, float]
    failures: dict[str, str]

    def joined(self, other: "Comparison") -> "Comparison":
        """Merge two comparisons; each baseline keeps the speed-up measured in its own comparison."""
        names = [*self.seconds, *(name for name in other.seconds if name not in self.seconds)]
        return Comparison(
            {name: self.seconds.get(name, []) + other.seconds.get(name, []) for name in names},
            self.ratios | other.ratios,
            self.errors | other.errors,
            self.failures | other.failures,
        )


@torch.inference_mode()
def compare_with_baselines(engine: StreamCharEngine, names: Sequence[str]) -> Comparison:
    """Measure the speed-up over baselines.

    Args:
        engine: its networks are run.
        names: baselines, of :data:`BASELINES`.
    """
    latents = Conditioning.random(engine.dit)
    ours = Ours(steady_runner(engine.dit, engine.orchestrator, latents), latents)
    contenders: dict[str, Ours | Recompute] = {"ours": ours}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    ours()
    plain, compiled = plain_copy(engine.dit), compiled_copy(engine.dit)
    for name in names:
        baseline = Recompute(
            compiled if name.startswith("compiled") else plain,
            steady_runner(engine.dit, engine.orchestrator, latents),
            latents,
            pool=GraphPool(engine.device) if name == "compiled-graphs" else None,
            prefix=name == "eager-prefix",
        )
        try:
            # The first call captures the graphs and leaves garbage.
            baseline()
            baseline()
        except Exception as error:  # reported as a failure of this baseline, which fails the gate
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        contenders[name] = baseline
        theirs, reference = baseline.runner.buffers, ours.runner.buffers
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
    """Time whole calls, launches included, in the order A B B A, after one untimed call of each.

    Return the seconds of each round by name. Unlike :func:`bench.timing.compare`, this captures nothing,
    because the launches are part of the comparison.
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
    if device.type != "cuda":
        return clock_seconds([call])
    torch.cuda.synchronize(device)
    return event_seconds(call, device)
