"""One pass that makes the next chunk of one or several rows: commit, prefill, denoise, decode, publish.

The latents are made on the main queue. The decode queue reads them there, and the copy queue moves the media
to the host. Behind the denoising steps the main queue commits the latents and, where queues overlap, prefills
the next prefix. Work that one queue reads and another writes is named as a dependency where the later of the
two is queued.
"""

import time
from collections.abc import Sequence
from functools import partial

import torch

from ..profiling import span
from ..types import Chunk, Media
from .queues import COMPLETED, Completion, Queues
from .request import ChunkRequest, PendingChunk, RequestState
from .rows import Row, Rows


class Executor:
    """Run passes over the rows of an engine. One thread at a time may call it, except :meth:`deliver`.

    Attributes:
        rows: the rows.
        chunks: chunks made.
        batched_chunks: chunks that shared their pass with another row's.
    """

    def __init__(self, rows: Rows, queues: Queues) -> None:
        self.rows, self.chunks, self.batched_chunks = rows, 0, 0
        self._queues = queues
        self._window = torch.zeros_like(rows[0].ids, pin_memory=False)

    @span("open")
    def open(self, index: int, reference: torch.Tensor, seed: int) -> None:
        """Begin a session in a row: forget the session before and encode the reference.

        Args:
            index: of the row.
            reference: [3, height, width] in [-1, 1].
            seed: of the session's noise.
        """
        row, rows, run = self.rows[index], self.rows, self._queues.run
        buffers = row.runner.buffers

        def reset() -> None:
            rows.cache.reset(index)
            buffers.seed.fill_(seed)
            buffers.history_lengths.zero_()

        def encode() -> None:
            row.decoders.open(reference[None].to(rows.device, rows.dtype).clamp(-1, 1))

        def commit() -> None:
            row.runner.commit["reference"]()
            rows.cache.set_valid(index, reference=True)

        row.reset()
        run("main", reset)
        run("main", commit, run("decode", encode)).wait()

    def free(self, index: int) -> None:
        """Forget what the session of a row left in the cache."""
        self.rows[index].reset()
        self._queues.run("main", partial(self.rows.cache.reset, index))

    def run(self, requests: Sequence[ChunkRequest]) -> None:
        """Make the latents of the requested chunks and queue their decoding.

        Every request that is not withdrawn gets its pending chunk, or the error that its decoding raised.
        """
        started = time.perf_counter()
        with span("chunk"):
            # A session that was closed has withdrawn its request, and its row is no longer its own.
            requests = _wanted(requests)
            if requests:
                self.commit()
                requests = _wanted(requests)
            if requests:
                self.prefill(requests)
                steps = self.denoise(requests)
                requests = _wanted(requests)
            if requests:
                self.decode(requests, steps, started)
                if self._queues.overlaps:
                    # Queued behind the decoding, where it delays nobody.
                    self.commit()
                self.publish(requests)

    def deliver(self, pending: PendingChunk) -> Chunk:
        """Wait until a chunk is on the host and return it. Any thread may call this."""
        pending.arrived.wait()
        latency = {stage: sum(done.seconds for done in queued) for stage, queued in pending.stages.items()}
        latency["total"] = time.perf_counter() - pending.started
        (media,), (host,) = pending.media, pending.host
        self._queues.hand_over(media.video, media.video_yuv, media.audio)
        return Chunk(
            index=pending.index,
            start_sample=pending.start_sample,
            video=media.video,
            video_yuv=media.video_yuv,
            audio=media.audio,
            host=host,
            words=pending.words,
            latency=latency,
        )

    @span("commit")
    def commit(self) -> None:
        """Make the chunks made last the conditioning of the next ones: sink, motion and audio history."""
        finished = [index for index, row in enumerate(self.rows) if row.uncommitted]
        for group in self.rows.groups(finished):
            first = [index for index in group if self.rows[index].chunk == 1]
            done = self._queues.run("main", partial(self._commit_group, group, first))
            for row in (self.rows[index] for index in group):
                row.commit, row.uncommitted, row.prefilled = done, False, None

    def _commit_group(self, group: Sequence[int], first: Sequence[int]) -> None:
        """Commit the chunks of a group of rows; in rows of ``first`` it was the session's first chunk."""
        rows = self.rows
        runner = rows.runner_of([rows[index] for index in group])
        for part in [first] if len(first) == len(group) else [[index] for index in first]:
            sink = rows.runner_of([rows[index] for index in part]).commit.get("sink")
            if sink is not None:
                sink()
        for index in first:
            rows.cache.set_valid(index, sink=True)
        motion = runner.commit.get("motion")
        if motion is not None:
            motion()
        for index in group:
            rows.cache.set_valid(index, motion=True)
        runner.append_history()

    def prefill(self, requests: Sequence[ChunkRequest]) -> None:
        """Let the orchestrator read transcript windows and histories that are not yet on the device."""
        stale = []
        for request in requests:
            row, window = self.rows[request.row], request.timeline.window
            length = window.fill(self._window)
            wanted = length, window.progress
            if row.prefilled != wanted or not torch.equal(row.ids, self._window):
                # A queued prefill may read either text; this one comes after it and replaces its result.
                row.ids.copy_(self._window)
                row.prefilled = None
                stale.append((row, *wanted))
        for group in self.rows.groups(stale):
            done = self._queues.run("main", partial(self._prefill_group, group))
            for row, length, progress in group:
                row.prefill, row.prefilled = done, (length, progress)

    def _prefill_group(self, group: Sequence[tuple[Row, int, float]]) -> None:
        for row, length, progress in group:
            buffers = row.runner.buffers
            buffers.text_ids.copy_(row.ids[None], non_blocking=True)
            buffers.text_lengths.fill_(length)
            buffers.progress.fill_(progress)
        self.rows.runner_of([row for row, *_ in group]).prefill()

    def denoise(self, requests: Sequence[ChunkRequest]) -> list[Completion]:
        """Denoise until every request is withdrawn or the steps are done; return the queued steps."""
        run, rows = self._queues.run, [self.rows[request.row] for request in requests]
        # A batched pass overwrites the latents of every row, due or not.
        overwritten = rows if len(rows) == 1 else list(self.rows)
        runner = self.rows.runner_of(rows)

        def draw_noise() -> None:
            for row in rows:
                row.runner.buffers.chunk.fill_(row.chunk)
            runner.draw_noise()

        steps = [run("main", draw_noise, *(row.decoded for row in overwritten))]
        for denoise in runner.denoise:
            requests = _wanted(requests)
            if not requests:
                break
            steps.append(run("main", denoise))
            # The next step is queued only when this one is done: an interruption takes effect within a step.
            steps[-1].wait()
        return steps

    def decode(self, due: Sequence[ChunkRequest], steps: list[Completion], started: float) -> None:
        """Queue what turns the latents into frames and samples, on the device and on the host.

        Args:
            due: requests whose latents are denoised.
            steps: the queued denoising steps.
            started: when the pass began, in seconds of ``time.perf_counter``.
        """
        self.chunks += len(due)
        self.batched_chunks += len(due) * (len(due) > 1)
        for request in due:
            row = self.rows[request.row]
            stages = {"prefill": [row.prefill], "denoise": steps, "commit": [row.commit]}
            located = self._queues.run("main", partial(_read_positions, row))
            request.pending = PendingChunk(row.chunk, started, stages, located)
            row.commit = COMPLETED
        for group in self.rows.groups(due):
            self._decode_group(group, steps[-1])

    def _decode_group(self, group: Sequence[ChunkRequest], denoised: Completion) -> None:
        rows = [self.rows[request.row] for request in group]
        try:
            stages = self.rows.decoders_of(rows).decode(self._queues, denoised)
            for request, row in zip(group, rows):
                assert request.pending is not None
                request.pending.stages |= {stage: [done] for stage, done in stages.items()}
                row.decoded = self._copy_out(row, request.pending)
                row.chunk += 1
                row.uncommitted = True
        except BaseException as error:
            # Decoders that stopped half way are out of step with the clock for good.
            for request in group:
                request.lose(error)
            if not isinstance(error, Exception):
                raise

    def _copy_out(self, row: Row, pending: PendingChunk) -> Completion:
        """Queue copies of a row's media that belong to the chunk, on the device and on the host."""
        made = row.decoders.media

        def keep() -> None:
            pending.media.append(Media(made.rgb[0].clone(), made.yuv[0].clone(), made.audio[0].clone()))

        def copy() -> None:
            pinned = self.rows.device.type == "cuda"
            media = pending.media[0]
            host = [
                torch.empty(each.shape, dtype=each.dtype, pin_memory=pinned).copy_(each, non_blocking=True)
                for each in (media.video, media.video_yuv, media.audio)
            ]
            pending.host.append(Media(*host))

        kept = self._queues.run("decode", keep)
        if self._queues.overlaps:
            pending.arrived = self._queues.run("copy", copy, kept)
            pending.stages["copy"] = [pending.arrived]
        else:
            # The device is the host.
            pending.arrived, pending.host = kept, pending.media
        return kept

    def publish(self, due: Sequence[ChunkRequest]) -> None:
        """Advance transcript and clock of each session by the pointer's positions."""
        published = []
        for request in due:
            pending, timeline = request.pending, request.timeline
            if pending is None:
                continue
            try:
                pending.located.wait()
                pending.start_sample = timeline.next_sample
                pending.words = timeline.advance(self.rows[request.row].positions.tolist())
                published.append(request)
            except Exception as error:
                request.lose(error)
        if self._queues.overlaps:
            self.prefill([each for each in published if not each.timeline.window.exhausted])


def _read_positions(row: Row) -> None:
    row.positions.copy_(row.runner.buffers.position[0], non_blocking=True)


def _wanted(requests: Sequence[ChunkRequest]) -> list[ChunkRequest]:
    """Return the requests that are not withdrawn, and release the others."""
    wanted = []
    for request in requests:
        if request.state is RequestState.CANCELLING:
            request.settle(RequestState.CANCELLED)
        if request.state is not RequestState.CANCELLED:
            wanted.append(request)
    return wanted
