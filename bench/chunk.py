"""Measure whole chunks on a device as stages of a run: a session, the chunk lengths, the speed-up."""

from collections.abc import Callable
from functools import partial

from bench.baseline import BASELINES, Comparison, compare_with_baselines
from bench.gate import judge_agreement, judge_session
from bench.lengths import compare_chunk_lengths
from bench.plot import Results
from bench.run import Run
from bench.viewer import CHUNKS, WARM_UP_CHUNKS, watch_session
from streamchar.engine import StreamCharEngine


def measure_chunk(
    run: Run, build: Callable[[], StreamCharEngine], kind: str, results: Results, only: str = ""
) -> None:
    """Run the stages on one engine, the most important first.

    Args:
        run: records stages that fail or are left out.
        build: builds the engine; its time counts towards the deadline.
        kind: type of the engine's device, ``"cpu"`` or ``"cuda"``.
        results: receives the measurements.
        only: run only stages whose name contains this.
    """

    def warmed_up() -> StreamCharEngine:
        engine = build()
        watch_session(engine, WARM_UP_CHUNKS)
        return engine

    def session(engine: StreamCharEngine) -> None:
        results.session = watch_session(engine, CHUNKS)
        results.verdicts += judge_session(results.session)

    def lengths(engine: StreamCharEngine) -> None:
        results.lengths = compare_chunk_lengths(engine)

    def speed_up(names: tuple[str, ...], engine: StreamCharEngine) -> None:
        found = compare_with_baselines(engine, names)
        results.verdicts += [judge_agreement(name, error) for name, error in found.errors.items()]
        results.comparison = (results.comparison or Comparison({}, {}, {}, {})).joined(found)

    stages = {f"session of {CHUNKS} chunks": session, "denoising steps by chunk length": lengths}
    stages |= {f"speed-up over {', '.join(names)}": partial(speed_up, names) for names in BASELINES[kind]}
    stages = {name: work for name, work in stages.items() if only in name}
    engine = run.stage("engine, warmed up", warmed_up) if stages else None
    for name, work in stages.items():
        if engine is None:
            run.left_out.append(name)
        else:
            run.stage(name, partial(work, engine))
