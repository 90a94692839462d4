"""Time whole chunks of a session, from one chunk of media to the next."""

from typing import Any

import torch

from bench.lengths import compare_chunk_lengths
from bench.plot import Results
from bench.viewer import endless_text
from streamchar.engine import StreamCharEngine

ROUNDS, WARM_UP_ROUNDS = 8, 2


def test_chunk(engine: StreamCharEngine, benchmark: Any) -> None:
    """Time chunks of one session and record the mean time of each stage."""
    picture = engine.preset.picture
    reference = torch.zeros(3, picture.height, picture.width)
    made: list[dict[str, float]] = []
    with engine.open(reference) as session:
        speech = session.speak(endless_text(), max_seconds=1e3)
        benchmark.group = "chunk"
        benchmark.pedantic(
            lambda: made.append(next(speech).latency), rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS
        )
        session.interrupt()
    for stage in made[0]:
        benchmark.extra_info[f"{stage} s"] = sum(each[stage] for each in made) / len(made)
    benchmark.extra_info["budget s"] = engine.preset.seconds


def test_chunk_lengths(engine: StreamCharEngine, results: Results) -> None:
    """Time the denoising steps of the preset's chunk and of the paper's, for the report."""
    results.lengths = compare_chunk_lengths(engine)
