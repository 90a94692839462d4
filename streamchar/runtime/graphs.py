"""Steps on fixed buffers: replayed as CUDA graphs on a GPU, called directly elsewhere.

A step takes no arguments and returns nothing. Everything that differs between chunks is read from device
tensors, so a captured graph and a direct call do the same.

A chunk is several graphs, not one: an interruption takes effect between two denoising steps, which the host
must be able to tell apart. A replay costs microseconds; a denoising step takes tens of milliseconds.
"""

import gc
from collections.abc import Callable

import torch

from ..profiling import span
from .queues import QUEUE_NAMES, QueueName

#: Runs before the capture, on a side stream, so that lazy initialisation happens outside the graph.
WARM_UP_RUNS = 2


class GraphPool:
    """The graphs of one engine: a memory pool and a capture stream for each queue, and counters.

    Graphs of one queue never run concurrently, so they share the memory of their intermediate results. Graphs
    of different queues may run concurrently and do not share it. Each queue has a capture stream of its own
    because PyTorch allocates the cuBLAS workspace per stream, not per pool: captured on one stream, the
    graphs of all queues and all engines would share one workspace.

    Attributes:
        captures: graphs captured so far; constant once every step has run.
        replays: steps run so far, as graphs or as direct calls.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captures = 0
        self.replays = 0
        on_gpu = device.type == "cuda"
        self._pools = {queue: torch.cuda.graph_pool_handle() if on_gpu else None for queue in QUEUE_NAMES}
        self._sides = {queue: torch.cuda.Stream(device) if on_gpu else None for queue in QUEUE_NAMES}

    def step(self, name: str, work: Callable[[], None], queue: QueueName = "main") -> "Step":
        """Return ``work`` as a step that runs on ``queue`` only, inside a profiling range called ``name``."""
        return Step(name, work, self, queue)


class Step:
    """One piece of work, captured the first time it runs on a GPU."""

    def __init__(self, name: str, work: Callable[[], None], pool: GraphPool, queue: QueueName) -> None:
        self._name, self._work, self._pool, self._queue = name, work, pool, queue
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run the work on the current stream."""
        self._pool.replays += 1
        with span(self._name):
            if self._pool.device.type != "cuda":
                self._work()
                return
            if self._graph is None:
                self._graph = self._capture()
            self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        # The warm-up runs change the buffers like any other run: an engine captures before its first session.
        side = self._pool._sides[self._queue]
        assert side is not None
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Garbage collection may unload a module, which is not allowed while a stream is capturing.
        gc.collect()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool._pools[self._queue], stream=side):
                self._work()
        finally:
            gc.enable()
        self._pool.captures += 1
        return graph
