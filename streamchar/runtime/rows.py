"""The rows of an engine: fixed buffers for every session, and the steps that run on them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..config import Preset
from ..model.kv_cache import KVCache
from .buffers import ChunkBuffers, DecoderState, MediaBuffers, orchestrator_row
from .decoders import Decoders
from .graphs import GraphPool
from .memory_budget import working_memory
from .modules import Modules
from .queues import COMPLETED, Completion, Queues
from .runner import ChunkRunner

T = TypeVar("T")

#: Called before each stage of warming up with its name, its number from 1, and how many there are.
Report = Callable[[str, int, int], None]


@dataclass
class Row:
    """One row of the buffers and its progress through a session.

    Attributes:
        runner: steps that make the latents of this row.
        decoders: steps that make media from them.
        ids: [transcript_tokens] int64 on the host, the window prefilled last; the device copies it from here.
        positions: [audio_tokens] fp32 on the host, where the device copies the pointer's positions to.
        chunk: index of the next chunk.
        uncommitted: whether the latents of the last chunk are still to be committed.
        prefilled: length of the window in ``ids`` and its tokens said so far; None if the prefix on the
            device is not that of the next chunk.
        prefill: the prefill queued last.
        commit: the commit queued last.
        decoded: the decoding queued last; until it is done the latents are still read.
    """

    runner: ChunkRunner
    decoders: Decoders
    ids: torch.Tensor
    positions: torch.Tensor
    chunk: int = 0
    uncommitted: bool = False
    prefilled: tuple[int, float] | None = None
    prefill: Completion = COMPLETED
    commit: Completion = COMPLETED
    decoded: Completion = COMPLETED

    def reset(self) -> None:
        """Forget the progress of the session before."""
        self.chunk, self.uncommitted, self.prefilled, self.commit = 0, False, None, COMPLETED


class Rows:
    """All rows of an engine, views of one set of buffers.

    State that rows keep between chunks (prefix, committed latents, decoder streams) must not change in a row
    that is not due. Stages that write it therefore run batched only where every row is due, and row by row
    otherwise: they are bound by arithmetic, so a batch that computed rows for nothing would cost as much as
    it saves.

    Attributes:
        cache: keys and values of all rows.
        buffers: latents, transcript windows and histories of all rows.
        runner: steps over all rows at once.
        decoders: decoding of all rows at once.
    """

    def __init__(self, config: Preset, modules: Modules, count: int, pool: GraphPool) -> None:
        self.device, self.dtype = modules.device, modules.dtype
        dit, orchestrator, vae, vocoder = modules
        self.cache = KVCache(config, count, self.device, self.dtype)
        self.buffers = ChunkBuffers.zeros(config, count, self.device)
        state = orchestrator.new_state(count)
        media = MediaBuffers.zeros(config, count, self.device, self.dtype)
        decoding = DecoderState(vae.new_state(count, config.picture.latent_size), vocoder.new_state(count))
        self.runner = ChunkRunner(dit, orchestrator, self.cache, state, self.buffers, pool)
        self.decoders = Decoders(vae, vocoder, decoding, self.buffers, media, pool)
        self._rows: list[Row] = []
        pinned = self.device.type == "cuda"
        for index in range(count):
            runner, decoders = self.runner, self.decoders
            if count > 1:
                one = self.buffers.row(index)
                prefix = orchestrator_row(state, index)
                runner = ChunkRunner(dit, orchestrator, self.cache.row(index), prefix, one, pool)
                decoders = Decoders(vae, vocoder, decoding.row(index), one, media.row(index), pool)
            ids = torch.zeros(self.buffers.text_ids.shape[1], dtype=torch.int64, pin_memory=pinned)
            positions = torch.zeros(self.buffers.position.shape[1], pin_memory=pinned)
            self._rows.append(Row(runner, decoders, ids, positions))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def groups(self, due: Sequence[T]) -> Sequence[Sequence[T]]:
        """Group what is due, one item per row: together if every row is due, else each by itself."""
        return [due] if len(due) == len(self._rows) else [[each] for each in due]

    def runner_of(self, group: Sequence[Row]) -> ChunkRunner:
        """Return the steps of a group: those of its only row, or those over all rows."""
        return group[0].runner if len(group) == 1 else self.runner

    def decoders_of(self, group: Sequence[Row]) -> Decoders:
        """Return the decoders of a group: those of its only row, or those over all rows."""
        return group[0].decoders if len(group) == 1 else self.decoders


def warm_up(
    rows: Rows,
    queues: Queues,
    report: Report | None = None,
    admit: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Run every step once, so that nothing is captured or compiled once sessions are open.

    Args:
        rows: whose steps are run.
        queues: where they run.
        report: called before each stage.
        admit: called with the bytes that the steps of one row work in before those of other rows run; may
            raise.

    Returns:
        Bytes of intermediate results for one row, of ``"latents"`` and of ``"media"``. They do not share
        memory.
    """
    parts = [(f"session {index + 1}: ", row.runner, row.decoders) for index, row in enumerate(rows)]
    if len(parts) > 1 and rows.device.type == "cuda":
        parts.insert(1, ("all sessions: ", rows.runner, rows.decoders))
    else:
        # Nothing is captured, and what a CPU chooses for one row holds for the others.
        parts = [("", *parts[0][1:])]
    stages = [
        (prefix + name, makes, stage)
        for prefix, runner, decoders in parts
        for makes, steps in (("latents", runner.stages()), ("media", decoders.stages()))
        for name, stage in steps.items()
    ]
    working_bytes = {"latents": 0, "media": 0}
    alone = len(stages) // len(parts)
    for index, (name, makes, stage) in enumerate(stages):
        if report is not None:
            report(name, index + 1, len(stages))
        if index == alone and admit is not None:
            admit(sum(working_bytes.values()))
        with working_memory(rows.device) as working:
            queues.run("main", stage).wait()
        if index < alone:
            working_bytes[makes] = max(working_bytes[makes], working.bytes)
    return working_bytes
