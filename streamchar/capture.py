"""Replay work on fixed buffers: as a CUDA graph on a GPU, as a plain call elsewhere.

What is replayed takes no arguments and returns nothing. Everything that differs from one chunk to the next is
read from device tensors, so the captured graph and the plain call do the same.

A chunk is several graphs and not one: an interruption takes effect between two denoising steps, which the
host must then be able to tell apart; a replay costs microseconds of a step that takes tens of milliseconds.
"""

import gc
from collections.abc import Callable

import torch

from .streams import QUEUES, Queue

#: Told of a stage of warming up before it begins: its name, its number from 1, and how many there are.
Report = Callable[[str, int, int], None]

#: Runs before capture, on a side stream, so that lazy initialisation happens outside the graph.
WARM_UP_RUNS = 2


class GraphPool:
    """The graphs of one engine: a memory pool and a stream to capture on for each queue, and counts.

    Graphs of one queue never run at the same time and share the memory of their intermediate results; those
    of different queues may, and do not. The stream keeps apart what cuBLAS works in, which PyTorch holds for
    each stream and not in the pool: captured on one stream, the graphs of all queues and of all engines would
    work in the same.

    Attributes:
        captures: graphs captured so far; constant once every step has run.
        replays: steps run since.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captures = 0
        self.replays = 0
        on_gpu = device.type == "cuda"
        self._pools = {queue: torch.cuda.graph_pool_handle() if on_gpu else None for queue in QUEUES}
        self._sides = {queue: torch.cuda.Stream(device) if on_gpu else None for queue in QUEUES}

    def step(self, work: Callable[[], None], queue: Queue = "main") -> "Step":
        """Return ``work`` as a step that will run on ``queue`` alone."""
        return Step(work, self, queue)


class Step:
    """One piece of work, captured the first time it runs on a GPU."""

    def __init__(self, work: Callable[[], None], pool: GraphPool, queue: Queue) -> None:
        self._work, self._pool, self._queue = work, pool, queue
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run the work on the current stream."""
        self._pool.replays += 1
        if self._pool.device.type != "cuda":
            self._work()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        # The warm-up runs change the buffers like any other: an engine captures before its first session.
        side = self._pool._sides[self._queue]
        assert side is not None
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Collecting garbage may unload a module, which is not allowed while a stream is capturing.
        gc.collect()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool._pools[self._queue], stream=side):
                self._work()
        finally:
            gc.enable()
        self._pool.captures += 1
        return graph
