"""Time several implementations of one operation against each other, in one process, fairly.

On a GPU every contender is captured into a CUDA graph that runs it once on each of several input sets, into
outputs of their own, so that launch overhead, Python and a warm L2 favour nobody; the graphs are replayed in
the order A B B A and timed with CUDA events. What cannot be captured is timed as a stream of launches and
says so. On a CPU the same loop reads the wall clock, which exercises the harness and measures this machine,
not a GPU.
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

#: Bytes that successive calls must touch before one comes round again: five times the 50 to 60 MB of an L2.
ROTATION_BYTES = 256 * 2**20
#: Calls of a pass, at most; what touches less than 2 MiB is found in L2 all the same.
MAX_INPUT_SETS = 128
#: Time given to each contender of a case, in seconds, warm-up not counted.
SECONDS_PER_CONTENDER = 0.25
MIN_SAMPLES, MAX_SAMPLES = 10, 100


@dataclass(frozen=True)
class Timing:
    """What one contender took, per call.

    Attributes:
        name: the contender.
        median_us: median of the samples, microseconds.
        low_us: lower end of the bootstrap 95 % interval of the median.
        high_us: its upper end.
        samples_us: every sample.
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


def input_sets(bytes_per_call: float, device: torch.device) -> int:
    """Return how many input sets to rotate so that none is found in L2; on a CPU, two."""
    if device.type != "cuda":
        return 2
    return max(2, min(MAX_INPUT_SETS, math.ceil(ROTATION_BYTES / max(bytes_per_call, 1.0))))


def compare(contenders: Mapping[str, Sequence[Call]], device: torch.device) -> dict[str, Timing]:
    """Time every contender, interleaved.

    Args:
        contenders: for each name one callable per input set; all do the same work.
        device: where the work runs.

    Returns:
        a timing per name, in the order given.
    """
    runners = {name: _runner(calls, device) for name, calls in contenders.items()}
    estimate = max(statistics.median(run() for _ in range(3)) for run, _, _ in runners.values())
    rounds = max(MIN_SAMPLES, min(MAX_SAMPLES, int(SECONDS_PER_CONTENDER / max(estimate, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    for index in range(rounds):
        for name in order if index % 2 == 0 else reversed(order):
            run, calls, _ = runners[name]
            samples[name].append(run() / calls * 1e6)
    return {name: _summary(name, values, runners[name][2]) for name, values in samples.items()}


def bootstrap_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = np.random.default_rng(seed)
    draws = rng.choice(np.asarray(samples), size=(1000, len(samples)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _summary(name: str, samples: list[float], method: str) -> Timing:
    low, high = bootstrap_interval(samples)
    return Timing(name, statistics.median(samples), low, high, samples, method)


def _runner(calls: Sequence[Call], device: torch.device) -> tuple[Callable[[], float], int, str]:
    """Return a function giving the seconds of one pass, the calls in a pass, and the method."""
    for call in calls:
        call()
    if device.type != "cuda":
        return lambda: _clock(calls), len(calls), "clock"
    torch.cuda.synchronize(device)
    try:
        graph = capture(calls, device)
    except RuntimeError:
        # A failed capture leaves the stream unusable until it is synchronised.
        torch.cuda.synchronize(device)
        return lambda: _events(lambda: [call() for call in calls], device), len(calls), "stream"
    return lambda: _events(graph.replay, device), len(calls), "graph"


def capture(calls: Sequence[Call], device: torch.device) -> torch.cuda.CUDAGraph:
    """Return a graph of all calls, one after the other, replayed once.

    Raises:
        RuntimeError: one of them cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    # Collecting garbage may unload a module, which is not allowed while a stream is capturing.
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            # Outputs that were let go of would be written over by the next call, in L2.
            outputs = [call() for call in calls]
        del outputs
    finally:
        gc.enable()
    graph.replay()
    torch.cuda.synchronize(device)
    return graph


def _events(work: Callable[[], object], device: torch.device) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


def _clock(calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start
