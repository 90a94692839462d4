"""The passes that make chunks: fixed buffers for every session, and what is queued on them in which order.

A pass serves one session, or all that are due together. Its latents are made on the main queue; the decode
queue reads them there, the copy queue brings what it makes to the host, and behind the denoising steps the
main queue commits the latents and, where queues overlap, prefills the next prefix. What one queue reads and
another writes is named at the call that queues the later of the two.

What rows remember, prefix, committed latents and decoders, must not change where it is not due. So these
stages are batched when they are due in all rows, and else go row by row: they are bound by arithmetic, and a
batch that computed rows for nothing would cost as much as the rows it saves.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from .capture import GraphPool, Report
from .codecs.vae import Vae
from .codecs.vocoder import Vocoder
from .config import Preset
from .decode import Decoders, DecoderState, MediaBuffers
from .footprint import working_memory
from .lane import ChunkBuffers, Lane, state_row
from .memory import KVMemory
from .model import JointDiT
from .orchestrator import Orchestrator
from .ranges import span
from .session import Chunk, Media, SpokenWord, Turn
from .streams import NOTHING, Done, Streams

T = TypeVar("T")


@dataclass
class Row:
    """What one session has in the buffers, and how far it is.

    Attributes:
        lane: makes its latents.
        decoders: make media of them.
        ids: [transcript_tokens] int64, the window prefilled last, where the device copies it from.
        positions: [audio_tokens] fp32, where the device copies the pointer's positions to.
        chunk: number of the chunk to come.
        uncommitted: whether the latents of the last chunk are still to be committed.
        prefilled: tokens of the window in ``ids`` and how many of them are said; None where its prefix is not
            that of the chunk to come.
        prefill: the prefill queued last.
        commit: the commit queued last.
        decoded: until it is done the latents are still read.
    """

    lane: Lane
    decoders: Decoders
    ids: torch.Tensor
    positions: torch.Tensor
    chunk: int = 0
    uncommitted: bool = False
    prefilled: tuple[int, float] | None = None
    prefill: Done = NOTHING
    commit: Done = NOTHING
    decoded: Done = NOTHING


@dataclass
class Delivery:
    """A chunk on its way to the host.

    Attributes:
        index: of the chunk.
        started: when its pass began.
        stages: what was queued for it.
        arrived: when this is done, the host has it.
        media: on the device; there once its decoding has been queued.
        host: the same in the host's memory.
        start_sample: of the chunk.
        words: said in it.
    """

    index: int
    started: float
    stages: dict[str, list[Done]]
    arrived: Done = NOTHING
    media: list[Media] = field(default_factory=list)
    host: list[Media] = field(default_factory=list)
    start_sample: int = 0
    words: tuple[SpokenWord, ...] = ()


class Passes:
    """The rows of an engine and the passes over them. One thread at a time may call it.

    Attributes:
        rows: one a session.
        chunks: chunks made.
        batched: chunks of these that shared their pass.
        working_bytes: that steps work in for one row, by what they make. Each has memory of its own.
    """

    def __init__(
        self,
        config: Preset,
        dit: JointDiT,
        orchestrator: Orchestrator,
        vae: Vae,
        vocoder: Vocoder,
        sessions: int,
        pool: GraphPool,
        streams: Streams,
    ) -> None:
        self._device, self._dtype = dit.table.device, dit.table.dtype
        self._streams = streams
        self.chunks = self.batched = 0
        self.working_bytes = {"latents": 0, "media": 0}
        self.memory = KVMemory(config, sessions, self._device, self._dtype)
        self.buffers = ChunkBuffers.zeros(config, sessions, self._device)
        state = orchestrator.new_state(sessions)
        media = MediaBuffers.zeros(config, sessions, self._device, self._dtype)
        decoding = DecoderState(
            vae.new_state(sessions, config.picture.latent_size), vocoder.new_state(sessions)
        )
        self._lane = Lane(dit, orchestrator, self.memory, state, self.buffers, pool)
        self._decoders = Decoders(vae, vocoder, decoding, self.buffers, media, pool)
        self.rows: list[Row] = []
        pinned = self._device.type == "cuda"
        for index in range(sessions):
            lane, decoders = self._lane, self._decoders
            if sessions > 1:
                one = self.buffers.row(index)
                lane = Lane(dit, orchestrator, self.memory.row(index), state_row(state, index), one, pool)
                decoders = Decoders(vae, vocoder, decoding.row(index), one, media.row(index), pool)
            ids = torch.zeros(self.buffers.text_ids.shape[1], dtype=torch.int64, pin_memory=pinned)
            positions = torch.zeros(self.buffers.position.shape[1], pin_memory=pinned)
            self.rows.append(Row(lane, decoders, ids, positions))
        self._window = torch.zeros_like(self.rows[0].ids, pin_memory=False)

    def warm_up(self, report: Report | None = None, admit: Callable[[int], None] | None = None) -> None:
        """Run every step once, so that nothing is captured, compiled or chosen once sessions are open.

        Args:
            report: is told what comes; without it nobody is.
            admit: is told the bytes that the steps of one row work in before those of others are run; it may
                raise.
        """
        parts = [(f"session {index + 1}: ", row.lane, row.decoders) for index, row in enumerate(self.rows)]
        if len(parts) > 1 and self._device.type == "cuda":
            parts.insert(1, ("all sessions: ", self._lane, self._decoders))
        else:
            # Nothing is captured, and what a CPU chooses for one row it has chosen for the others.
            parts = [("", *parts[0][1:])]
        stages = [
            (of + name, makes, stage)
            for of, lane, decoders in parts
            for makes, steps in (("latents", lane.stages()), ("media", decoders.stages()))
            for name, stage in steps.items()
        ]
        alone = len(stages) // len(parts)
        for index, (name, makes, stage) in enumerate(stages):
            if report is not None:
                report(name, index + 1, len(stages))
            if index == alone and admit is not None:
                admit(sum(self.working_bytes.values()))
            with working_memory(self._device) as working:
                self._streams.run("main", stage).wait()
            if index < alone:
                self.working_bytes[makes] = max(self.working_bytes[makes], working.bytes)

    @span("open")
    def open(self, index: int, reference: torch.Tensor, seed: int) -> None:
        """Begin a session in a row: forget who had it, and take in the reference, [3, height, width]."""
        row, run = self.rows[index], self._streams.run
        buffers = row.lane.buffers

        def reset() -> None:
            self.memory.reset(index)
            buffers.seed.fill_(seed)
            buffers.history_lengths.zero_()

        def take_in() -> None:
            row.decoders.open(reference[None].to(self._device, self._dtype).clamp(-1, 1))

        def commit() -> None:
            row.lane.commit("reference")
            self.memory.set_valid(index, reference=True)

        row.chunk, row.uncommitted, row.prefilled, row.commit = 0, False, None, NOTHING
        run("main", reset)
        run("main", commit, run("decode", take_in)).wait()

    def free(self, index: int) -> None:
        """Forget what the session of a row left in the memory."""
        row = self.rows[index]
        row.uncommitted, row.prefilled = False, None
        self._streams.run("main", partial(self.memory.reset, index))

    @span("chunk")
    def make(self, turns: Sequence[Turn]) -> None:
        """Make the latents of the chunks that are due and queue their decoding.

        Every turn that is not interrupted gets its delivery, or the error that its decoding raised.
        """
        started = time.perf_counter()
        # A session that was closed has no row any more.
        turns = _wanted(turns)
        if not turns:
            return
        run, rows = self._streams.run, [self.rows[turn.session.row] for turn in turns]
        self._commit_finished()
        turns = _wanted(turns)
        if not turns:
            return
        self._prefill(turns)
        # A pass of several overwrites the latents of every row.
        lane, touched = (rows[0].lane, rows) if len(rows) == 1 else (self._lane, self.rows)

        def draw() -> None:
            for row in rows:
                row.lane.buffers.chunk.fill_(row.chunk)
            lane.draw()

        steps = [run("main", draw, *(row.decoded for row in touched))]
        for step in range(lane.steps):
            turns = _wanted(turns)
            if not turns:
                return
            steps.append(run("main", partial(lane.denoise, step)))
            # The next is not queued before this one is done: an interruption takes effect within one step.
            steps[-1].wait()
        due = _wanted(turns)
        self.chunks += len(due)
        self.batched += len(due) * (len(due) > 1)
        for turn in due:
            row = self.rows[turn.session.row]
            stages = {"prefill": [row.prefill], "denoise": steps, "commit": [row.commit]}
            row.commit = NOTHING
            turn.delivery = Delivery(row.chunk, started, stages)
        read = {
            id(turn): run("main", partial(self._read_positions, self.rows[turn.session.row])) for turn in due
        }
        for group in self._groups(due):
            self._decode(group, steps[-1])
        if self._streams.overlaps:
            self._commit_finished()
        noted = []
        for turn in due:
            if turn.delivery is not None:
                try:
                    self._take_note(turn, turn.delivery, read[id(turn)])
                    noted.append(turn)
                except Exception as error:
                    turn.lose(error)
        if self._streams.overlaps:
            # The next prefixes, where that costs nobody.
            self._prefill([turn for turn in noted if not turn.window.exhausted])

    def deliver(self, delivery: Delivery) -> Chunk:
        """Wait for a chunk to be on the host; any thread may call it."""
        delivery.arrived.wait()
        latency = {stage: sum(done.seconds for done in queued) for stage, queued in delivery.stages.items()}
        latency["total"] = time.perf_counter() - delivery.started
        (media,), (host,) = delivery.media, delivery.host
        self._streams.hand_over(media.video, media.video_yuv, media.audio)
        return Chunk(
            delivery.index,
            delivery.start_sample,
            media.video,
            media.video_yuv,
            media.audio,
            host,
            delivery.words,
            latency,
        )

    def _groups(self, due: Sequence[T]) -> Sequence[Sequence[T]]:
        """Put what is due in all rows, one item a row, into one group, and else each item into its own."""
        return [due] if len(due) == len(self.rows) else [[each] for each in due]

    def _lane_of(self, group: Sequence[Row]) -> Lane:
        return group[0].lane if len(group) == 1 else self._lane

    def _prefill(self, turns: Sequence[Turn]) -> None:
        """Prefill what the windows hold now, where the prefix that is there is not just that."""
        stale = []
        for turn in turns:
            row, length = self.rows[turn.session.row], turn.window.fill(self._window)
            wanted = length, turn.window.progress
            if row.prefilled != wanted or not torch.equal(row.ids, self._window):
                # A prefill still queued may read either text: this one comes after and replaces what it did.
                row.ids.copy_(self._window)
                row.prefilled = None
                stale.append((row, *wanted))
        for group in self._groups(stale):
            done = self._streams.run("main", partial(self._run_prefill, group))
            for row, length, progress in group:
                row.prefill, row.prefilled = done, (length, progress)

    def _run_prefill(self, group: Sequence[tuple[Row, int, float]]) -> None:
        for row, length, progress in group:
            buffers = row.lane.buffers
            buffers.text_ids.copy_(row.ids[None], non_blocking=True)
            buffers.text_lengths.fill_(length)
            buffers.progress.fill_(progress)
        self._lane_of([row for row, *_ in group]).prefill()

    @span("commit")
    def _commit_finished(self) -> None:
        """Commit the chunks made last, in all rows."""
        finished = [index for index, row in enumerate(self.rows) if row.uncommitted]
        for group in self._groups(finished):
            first = [index for index in group if self.rows[index].chunk == 1]
            done = self._streams.run("main", partial(self._commit, group, first))
            for row in (self.rows[index] for index in group):
                row.commit, row.uncommitted, row.prefilled = done, False, None

    def _commit(self, group: Sequence[int], first: Sequence[int]) -> None:
        """Commit the chunks of a group of rows; for those of ``first`` it was the first of the session."""
        lane = self._lane_of([self.rows[index] for index in group])
        for part in [first] if len(first) == len(group) else [[index] for index in first]:
            self._lane_of([self.rows[index] for index in part]).commit("sink")
        for index in first:
            self.memory.set_valid(index, sink=True)
        lane.commit("motion")
        for index in group:
            self.memory.set_valid(index, motion=True)
        lane.remember()

    @staticmethod
    def _read_positions(row: Row) -> None:
        row.positions.copy_(row.lane.buffers.position[0], non_blocking=True)

    def _decode(self, group: Sequence[Turn], denoised: Done) -> None:
        """Queue the decoding and the copies of turns whose rows are those of one pair of decoders."""
        rows = [self.rows[turn.session.row] for turn in group]
        decoders = rows[0].decoders if len(rows) == 1 else self._decoders
        try:
            stages = decoders.decode(self._streams, denoised)
            for turn, row in zip(group, rows):
                assert turn.delivery is not None
                turn.delivery.stages |= {stage: [done] for stage, done in stages.items()}
                row.decoded = self._copy_out(row, turn.delivery)
                row.chunk += 1
                row.uncommitted = True
        except BaseException as error:
            # Decoders that stopped half way are out of step with the clock for good.
            for turn in group:
                turn.lose(error)
            if not isinstance(error, Exception):
                raise

    def _copy_out(self, row: Row, delivery: Delivery) -> Done:
        """Queue copies of a row's media that belong to the chunk, on the device and on the host."""
        made = row.decoders.media

        def keep() -> None:
            delivery.media.append(Media(made.rgb[0].clone(), made.yuv[0].clone(), made.audio[0].clone()))

        def copy() -> None:
            pinned = self._device.type == "cuda"
            media = delivery.media[0]
            host = [
                torch.empty(each.shape, dtype=each.dtype, pin_memory=pinned).copy_(each, non_blocking=True)
                for each in (media.video, media.video_yuv, media.audio)
            ]
            delivery.host.append(Media(*host))

        kept = self._streams.run("decode", keep)
        if self._streams.overlaps:
            delivery.arrived = self._streams.run("copy", copy, kept)
            delivery.stages["copy"] = [delivery.arrived]
        else:
            # The device is the host.
            delivery.arrived, delivery.host = kept, delivery.media
        return kept

    def _take_note(self, turn: Turn, delivery: Delivery, read: Done) -> None:
        """Move transcript and clock on by a chunk."""
        row = self.rows[turn.session.row]
        read.wait()
        delivery.start_sample = turn.session.next_sample
        delivery.words = turn.session.note_positions(turn, row.positions.tolist())


def _wanted(turns: Sequence[Turn]) -> list[Turn]:
    """Return those that are not interrupted, and let go of the others."""
    wanted = []
    for turn in turns:
        if turn.interrupted:
            turn.released.set()
        else:
            wanted.append(turn)
    return wanted
