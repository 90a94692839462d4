"""Time every kernel family at the preset's shapes, without peers; ``python -m bench.h100`` times those too.

On a GPU the replay of a CUDA graph is timed, as in :func:`bench.timing.compare`, because a launch from Python
takes longer than the small kernels. The graph has one call on each of several input sets, because a single
input set would stay in L2.
"""

from typing import Any

import torch

from bench.cases import Case
from bench.conftest import bench_device
from bench.timing import capture, input_sets

ROUNDS, WARM_UP_ROUNDS = 10, 2


def test_kernel(case: Case, benchmark: Any) -> None:
    """Time the kernel of one case; ``calls`` in the extra info is the number of calls per round."""
    device = bench_device()
    on_gpu = device.type == "cuda"
    with torch.inference_mode():
        sets = [case.build(seed) for seed in range(input_sets(case.bytes, device) if on_gpu else 1)]
        ours = next(iter(sets[0]))
        calls = [contenders[ours] for contenders in sets]
        for call in calls:
            call()
        work = capture(calls, device).replay if on_gpu else calls[0]
        benchmark.group = f"kernel: {case.family}"
        benchmark.extra_info.update(flop=case.flop, bytes=case.bytes, contender=ours, calls=len(calls))
        benchmark.pedantic(work, rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS)
