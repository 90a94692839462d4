"""The gate: a session of 60 chunks, and the speed-up over recomputing the conditioning."""

import pytest

from bench import gate
from bench.baseline import BASELINES, Comparison
from bench.conftest import bench_device
from bench.plot import Results

REMEDY = "record it with: pytest bench/ --benchmark --gate-record"


@pytest.mark.parametrize("figure", gate.SESSION_FIGURES)
def test_session(figure: str, session_verdicts: dict[str, gate.Verdict]) -> None:
    """Each figure of the session is within its limit."""
    _require(session_verdicts[figure])


@pytest.mark.parametrize("name", sum(BASELINES[bench_device().type], ()))
def test_speed_up(name: str, comparison: Comparison, record: dict[str, gate.Ratio], results: Results) -> None:
    """The speed-up over a baseline has not fallen below the record, and both computed the same chunk."""
    if name in comparison.failures:
        pytest.fail(f"baseline {name} could not run: {comparison.failures[name]}", pytrace=False)
    verdicts = [
        gate.judge_agreement(name, comparison.errors[name]),
        gate.judge_ratio(name, comparison.ratios[name], record.get(name), REMEDY),
    ]
    results.verdicts += verdicts
    for verdict in verdicts:
        _require(verdict)


def _require(verdict: gate.Verdict) -> None:
    if not verdict.passed:
        pytest.fail(str(verdict), pytrace=False)
