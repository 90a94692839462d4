"""Device work in three queues, and the order between them.

A chunk's work goes to three queues. ``main`` holds the prefill of the text, the denoising steps and the
commits of finished latents; ``decode`` turns latents into frames and samples; ``copy`` moves those to the
host. Work within one queue runs in the order it was given. Work in different queues may run in any order
unless it names what it depends on. So a finished chunk is decoded while its latents are committed and the
next prefix is prefilled.

On a GPU each queue is a CUDA stream and each dependency is an event. On other devices
:class:`InOrderQueues` runs all work immediately, which is one of the orders that the dependencies allow.
"""

import time
from collections.abc import Callable
from typing import Literal, Protocol

import torch

QueueName = Literal["main", "decode", "copy"]
QUEUE_NAMES: tuple[QueueName, ...] = ("main", "decode", "copy")
Work = Callable[[], object]


class Completion(Protocol):
    """The end of a piece of queued work."""

    @property
    def seconds(self) -> float:
        """Time the device spent on the work; valid only after :meth:`wait`."""
        ...

    def wait(self) -> None:
        """Block the calling thread until the work is done."""
        ...


class Queues(Protocol):
    """The queues of one device.

    Attributes:
        overlaps: whether queues run concurrently, so that work nobody waits for can be queued early for free.
    """

    overlaps: bool

    def run(self, queue: QueueName, work: Work, *after: Completion) -> Completion:
        """Queue ``work`` behind everything in its queue and behind everything in ``after``."""
        ...

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Tell the allocator that the caller's stream will use tensors that a queue made."""
        ...


class _Finished:
    """Work that ran when it was queued."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def wait(self) -> None:
        pass


#: A completion that is already done.
COMPLETED: Completion = _Finished()


class InOrderQueues:
    """Run all work immediately: for devices without streams, such as a CPU."""

    overlaps = False

    def run(self, queue: QueueName, work: Work, *after: Completion) -> Completion:
        """Run ``work`` now; everything in ``after`` has run before."""
        started = time.perf_counter()
        work()
        return _Finished(time.perf_counter() - started)

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Do nothing: there is only one order."""


class _CudaCompletion:
    """Work between two events of a CUDA stream."""

    def __init__(self) -> None:
        # Blocking events: a waiting session leaves its CPU core to others instead of spinning.
        self.start = torch.cuda.Event(enable_timing=True, blocking=True)
        self.end = torch.cuda.Event(enable_timing=True, blocking=True)

    @property
    def seconds(self) -> float:
        return float(self.start.elapsed_time(self.end)) / 1e3

    def wait(self) -> None:
        self.end.synchronize()


class CudaQueues:
    """One CUDA stream per queue, ordered by events; never synchronises the whole device."""

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        self._streams = {queue: torch.cuda.Stream(device) for queue in QUEUE_NAMES}

    def run(self, queue: QueueName, work: Work, *after: Completion) -> Completion:
        """Queue ``work`` on the stream of ``queue``."""
        stream = self._streams[queue]
        done = _CudaCompletion()
        with torch.cuda.stream(stream):
            for each in after:
                if isinstance(each, _CudaCompletion):
                    stream.wait_event(each.end)
            done.start.record(stream)
            work()
            done.end.record(stream)
        return done

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Keep the memory of ``tensors`` from being reused before the current stream is done with it."""
        for tensor in tensors:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def queues_for(device: torch.device) -> Queues:
    """Return the queues of a device."""
    return CudaQueues(device) if device.type == "cuda" else InOrderQueues()
