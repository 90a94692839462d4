"""Options, fixtures and report of ``pytest bench/ --benchmark``."""

import argparse
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# As the streamchar command does; it must be set before torch starts its threads.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

import torch
from rich.console import Console

from bench import gate, plot
from bench.baseline import BASELINES, Comparison, compare_with_baselines
from bench.cases import Setting
from bench.environment import environment, record_name
from bench.gate import Verdict
from bench.plot import Results
from bench.report import as_table
from bench.viewer import CHUNKS, WARM_UP_CHUNKS, watch_session
from streamchar.config import Preset, preset
from streamchar.engine import StreamCharEngine

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parent / "profiles" / "bench"

RESULTS = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options of the gate."""
    group = parser.getgroup("gate", "the playback-budget gate (bench/)")
    # pytest-benchmark's own options begin with "--benchmark-", and pytest accepts no abbreviations.
    group.addoption(
        "--benchmark",
        action="store_true",
        dest="run_gate",
        help="Run and judge the benchmarks of bench/.",
    )
    group.addoption(
        "--budget-factor",
        type=_factor,
        default=1.0,
        metavar="F",
        help="Multiply the playback budget by F; below 1 tightens the gate. Default: 1.",
    )
    group.addoption(
        "--gate-report",
        type=Path,
        default=HERE.parent / "build" / "bench",
        metavar="DIR",
        help="Write report.json, report.txt and latency.png into DIR. Default: build/bench.",
    )
    group.addoption(
        "--gate-record",
        action="store_true",
        help="Record the speed-ups of this run in profiles/bench to judge later runs on this machine.",
    )


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return factor


def pytest_configure(config: pytest.Config) -> None:
    """Create the object that collects the results."""
    config.stash[RESULTS] = Results()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests of this folder unless ``--benchmark`` is given; on a GPU, time them with CUDA events."""
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    if not config.getoption("run_gate"):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="benchmarks run with --benchmark"))
    elif torch.cuda.is_available():
        timer = EventTimer()
        for item in ours:
            item.add_marker(pytest.mark.benchmark(timer=timer))


class EventTimer:
    """A clock that reads CUDA events: two readings differ by the time that passed on the device."""

    def __init__(self) -> None:
        self.__name__ = "cuda_events"
        self._last: torch.cuda.Event | None = None
        self._seconds = 0.0

    def __call__(self) -> float:
        """Wait until all queued work has finished and return the seconds since the first reading."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:
            # Summed over readings: milliseconds in single precision are coarse after some minutes.
            self._seconds += self._last.elapsed_time(event) / 1e3
        self._last = event
        return self._seconds


def bench_device() -> torch.device:
    """Return the device to benchmark."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bench_preset() -> Preset:
    """Return the preset to benchmark on that device."""
    return preset("5b" if torch.cuda.is_available() else "tiny")


def record_file() -> Path:
    """Return the path of this machine's record of speed-ups; the file may not exist."""
    return gate.record_path(RECORDS, record_name(bench_device()), bench_preset().name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``case`` with every case of every kernel family."""
    if "case" in metafunc.fixturenames:
        from bench.cases import all_cases

        device = bench_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        cases = list(all_cases(Setting(bench_preset(), device, dtype, compiled=False)))
        metafunc.parametrize("case", cases, ids=[case.name.replace("::", " ") for case in cases])


@pytest.fixture(scope="session")
def engine() -> StreamCharEngine:
    """Return a warmed-up engine: every step is captured or has run, and every lazy choice is made."""
    name = bench_preset().name
    engine = StreamCharEngine.from_preset(name, random_weights=True, device=bench_device())
    watch_session(engine, WARM_UP_CHUNKS)
    return engine


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Results:
    """Return the object that collects the results for the report."""
    return request.config.stash[RESULTS]


@pytest.fixture(scope="session")
def session_verdicts(
    request: pytest.FixtureRequest, engine: StreamCharEngine, results: Results
) -> dict[str, Verdict]:
    """Measure the 60-chunk session and return its verdicts by figure."""
    results.session = watch_session(engine, CHUNKS)
    verdicts = list(gate.judge_session(results.session, request.config.getoption("budget_factor")))
    results.verdicts += verdicts
    return {verdict.figure: verdict for verdict in verdicts}


@pytest.fixture(scope="session")
def comparison(engine: StreamCharEngine, results: Results) -> Comparison:
    """Measure the engine against the baselines."""
    results.comparison = compare_with_baselines(engine, sum(BASELINES[engine.device.type], ()))
    return results.comparison


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest, comparison: Comparison) -> dict[str, gate.Ratio]:
    """Return the recorded speed-ups of this machine; with ``--gate-record``, write them and return none."""
    if request.config.getoption("gate_record"):
        gate.write_record(record_file(), comparison.ratios, environment(bench_device()))
        return {}
    return gate.read_record(record_file())


@pytest.fixture(autouse=True)
def _keep_benchmark(request: pytest.FixtureRequest, results: Results) -> Iterator[None]:
    if "benchmark" not in request.fixturenames:
        yield
        return
    benchmark = request.getfixturevalue("benchmark")
    yield
    # None if the test failed before it timed anything, or with --benchmark-disable.
    if benchmark.stats is not None:
        stats, calls = benchmark.stats.stats, benchmark.extra_info.get("calls", 1)
        results.benchmarks[request.node.name] = {
            "group": benchmark.group,
            "median": stats.median / calls,
            "min": stats.min / calls,
            "max": stats.max / calls,
            "rounds": stats.rounds,
        }


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the tables; write tables, JSON and plot."""
    results = config.stash[RESULTS]
    if not (results.benchmarks or results.session or results.comparison):
        return
    about = environment(bench_device())
    factor = config.getoption("budget_factor")
    report = plot.as_dict(results, about, bench_preset().name, bench_device().type, factor)
    folder: Path = config.getoption("gate_report")
    written = plot.write(folder, report)
    screen = io.StringIO()
    width = max(terminalreporter._tw.fullwidth, 100)
    console = Console(file=screen, width=width, force_terminal=terminalreporter._tw.hasmarkup)
    for section in plot.sections(report):
        console.print(as_table(section))
    terminalreporter.section("playback-budget gate")
    terminalreporter.write(screen.getvalue())
    for file in written:
        terminalreporter.write_line(f"wrote {file}")
