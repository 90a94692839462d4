"""Every kernel family at the preset's shapes, ours only; ``python -m bench.h100`` times the peers too."""

from typing import Any

import torch

from bench.cases import Case

ROUNDS, WARM_UP_ROUNDS = 10, 2


def test_kernel(case: Case, benchmark: Any) -> None:
    """Time our contender of one case."""
    with torch.inference_mode():
        contenders = case.build(0)
        ours = next(iter(contenders))
        benchmark.group = f"kernel: {case.family}"
        benchmark.extra_info.update(flop=case.flop, bytes=case.bytes, contender=ours)
        benchmark.pedantic(contenders[ours], rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS)
