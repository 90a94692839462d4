"""Time several implementations of one operation against each other in one process.

On a GPU each contender is captured in a CUDA graph that runs it once on each of several input sets, with
separate outputs, so that launch overhead, Python and a warm L2 cache favour none of them. The graphs are
replayed in the order A B B A and timed with CUDA events. A contender that cannot be captured is timed as a
stream of launches, and its timing says so. On a CPU the same loop reads the wall clock: this tests the
harness and says nothing about a GPU.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Time per call of one contender, in microseconds.

    Attributes:
        name: name of the contender.
        median_us: median of the samples.
        low_us: lower end of the bootstrap 95 % interval of the median.
        high_us: upper end of that interval.
        samples_us: all samples.
        method: ``"graph"`` (CUDA graph replay), ``"stream"`` (launches) or ``"clock"`` (CPU wall clock).
    """

    name: str
    median_us: float
    low_us: float
    high_us: float
    samples_us: list[float]
    method: str

    def as_dict(self) -> dict[str, object]:
        """Return the fields as plain JSON values."""
        return asdict(self)


#: Bytes that calls touch before an input set is used again: five times an L2 cache of 50 to 60 MB.
ROTATION_BYTES = 256 * 2**20
#: Maximum calls per pass; calls that touch less than 2 MiB therefore still find their inputs in L2.
MAX_INPUT_SETS = 128
#: Bounds on the samples per contender.
MIN_SAMPLES, MAX_SAMPLES = 10, 100
#: Measuring time per contender of a case, without warm-up.
SECONDS_PER_CONTENDER = 0.25


def input_sets(bytes_per_call: float, device: torch.device) -> int:
    """Return how many input sets to rotate so that none is still in L2 when it is used again; 2 on a CPU."""
    if device.type != "cuda":
        return 2
    return max(2, min(MAX_INPUT_SETS, math.ceil(ROTATION_BYTES / max(bytes_per_call, 1.0))))


def compare(contenders: Mapping[str, Sequence[Call]], device: torch.device) -> dict[str, Timing]:
    """Time all contenders, interleaved.

    Args:
        contenders: by name, one callable per input set; all contenders do the same work.
        device: device that runs the work.

    Returns:
        One timing per contender, in the given order.
    """
    passes = {name: _timed_pass(calls, device) for name, calls in contenders.items()}
    estimate = max(statistics.median(run() for _ in range(3)) for run, _, _ in passes.values())
    rounds = max(MIN_SAMPLES, min(MAX_SAMPLES, int(SECONDS_PER_CONTENDER / max(estimate, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in passes}
    order = list(passes)
    for index in range(rounds):
        for name in order if index % 2 == 0 else reversed(order):
            run, calls, _ = passes[name]
            samples[name].append(run() / calls * 1e6)
    return {name: _summary(name, values, passes[name][2]) for name, values in samples.items()}


def bootstrap_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = np.random.default_rng(seed)
    draws = rng.choice(np.asarray(samples), size=(1000, len(samples)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _summary(name: str, samples: list[float], method: str) -> Timing:
    low, high = bootstrap_interval(samples)
    return Timing(name, statistics.median(samples), low, high, samples, method)


def _timed_pass(calls: Sequence[Call], device: torch.device) -> tuple[Callable[[], float], int, str]:
    """Return a function that returns the seconds of one pass, the calls per pass, and the method."""
    for call in calls:
        call()
    if device.type != "cuda":
        return lambda: clock_seconds(calls), len(calls), "clock"
    torch.cuda.synchronize(device)
    try:
        graph = capture(calls, device)
    except RuntimeError:
        # A failed capture leaves the stream unusable until it is synchronised.
        torch.cuda.synchronize(device)
        return lambda: event_seconds(lambda: [call() for call in calls], device), len(calls), "stream"
    return lambda: event_seconds(graph.replay, device), len(calls), "graph"


def capture(calls: Sequence[Call], device: torch.device) -> torch.cuda.CUDAGraph:
    """Capture all calls, in order, in one graph, and replay it once.

    Raises:
        RuntimeError: a call cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    # Garbage collection may unload a module, which is not allowed while a stream is capturing.
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            # The next call would reuse the memory of a freed output, which is still in L2.
            outputs = [call() for call in calls]
        del outputs
    finally:
        gc.enable()
    graph.replay()
    torch.cuda.synchronize(device)
    return graph


def event_seconds(work: Call, device: torch.device) -> float:
    """Run ``work`` and return its time on the device in seconds, measured with CUDA events."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


def clock_seconds(calls: Sequence[Call]) -> float:
    """Run all calls and return the wall-clock time in seconds."""
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start
