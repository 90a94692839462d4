"""The gate: a watched session of 60 chunks, and the lead over recomputing what is conditioned on."""

import pytest

from bench import gate
from bench.baseline import BASELINES, Comparison
from bench.conftest import bench_device
from bench.plot import Results

REMEDY = "record it with: pytest bench/ --benchmark --gate-record"


@pytest.mark.parametrize("figure", gate.SESSION_FIGURES)
def test_session(figure: str, session_verdicts: dict[str, gate.Verdict]) -> None:
    """Every figure of the session keeps its limit."""
    _require(session_verdicts[figure])


@pytest.mark.parametrize("name", sum(BASELINES[bench_device().type], ()))
def test_speed_up(name: str, comparison: Comparison, record: dict[str, gate.Ratio], results: Results) -> None:
    """The lead over a baseline in this run is the recorded one, and both computed the same chunk."""
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
