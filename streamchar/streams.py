"""Queues of device work that run beside one another, and what waits for what.

A chunk's work goes to three queues. ``main`` holds the text's prefill, the denoising steps and the commits of
finished latents; ``decode`` turns latents into frames and samples; ``copy`` brings those to the host. Work in
one queue runs in the order it was given. Work in different queues runs in any order, unless it names what it
comes after; so a finished chunk is decoded while its latents are committed and the next prefix is prefilled.

On a GPU a queue is a CUDA stream and the names are events. Elsewhere :class:`InOrder` runs everything at once
where it is given, which is one of the orders that the names allow.
"""

import time
from collections.abc import Callable
from typing import Literal, Protocol

import torch

Queue = Literal["main", "decode", "copy"]
QUEUES: tuple[Queue, ...] = ("main", "decode", "copy")
Work = Callable[[], object]


class Done(Protocol):
    """A piece of work that was queued."""

    @property
    def seconds(self) -> float:
        """How long the device took for it; asks only after :meth:`wait`."""
        ...

    def wait(self) -> None:
        """Hold the calling thread until the work is done."""
        ...


class Streams(Protocol):
    """Where work is queued.

    Attributes:
        overlaps: whether work that nobody waits for may be queued early at no cost to what is waited for.
    """

    overlaps: bool

    def run(self, queue: Queue, work: Work, *after: Done) -> Done:
        """Queue ``work`` behind what its queue holds and behind everything in ``after``."""
        ...

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Tell the allocator that the caller's own stream goes on to use tensors made on a queue."""
        ...


class _Past:
    """Work that was done where it was given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def wait(self) -> None:
        """Return at once."""


#: What nothing has to wait for.
NOTHING: Done = _Past()


class InOrder:
    """Run everything where it is given: a device without streams, such as a CPU."""

    overlaps = False

    def run(self, queue: Queue, work: Work, *after: Done) -> Done:
        """Run ``work`` now; what it comes after ran before."""
        started = time.perf_counter()
        work()
        return _Past(time.perf_counter() - started)

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Do nothing: there is one order for all."""


class _Recorded:
    """Work between two events of a CUDA stream."""

    def __init__(self) -> None:
        # Blocking: a waiting session leaves its core to the others instead of spinning on it.
        self.start = torch.cuda.Event(enable_timing=True, blocking=True)
        self.end = torch.cuda.Event(enable_timing=True, blocking=True)

    @property
    def seconds(self) -> float:
        return float(self.start.elapsed_time(self.end)) / 1e3

    def wait(self) -> None:
        self.end.synchronize()


class CudaStreams:
    """One CUDA stream a queue, ordered by events and never by waiting for the whole device."""

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        self._streams = {queue: torch.cuda.Stream(device) for queue in QUEUES}

    def run(self, queue: Queue, work: Work, *after: Done) -> Done:
        """Queue ``work`` on the stream of ``queue``."""
        stream = self._streams[queue]
        done = _Recorded()
        with torch.cuda.stream(stream):
            for each in after:
                if isinstance(each, _Recorded):
                    stream.wait_event(each.end)
            done.start.record(stream)
            work()
            done.end.record(stream)
        return done

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Keep the memory of ``tensors`` from being given out again before the current stream is past it."""
        for tensor in tensors:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def streams_for(device: torch.device) -> Streams:
    """Return the queues of a device."""
    return CudaStreams(device) if device.type == "cuda" else InOrder()
