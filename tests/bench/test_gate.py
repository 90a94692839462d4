"""The gate judges every figure of a session, and the speed-up against the record of the machine."""

import json
import math
import mmap
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gate
from bench.baseline import Comparison
from bench.environment import cpu_name, record_name
from bench.gate import Measurements, Ratio
from bench.lengths import ChunkLength
from bench.plot import Results, as_dict, draw, write
from bench.viewer import ViewerClock, watch_session
from streamchar.session.speech import Speech
from tests.engine.small import SMALL, build

ROOT = Path(__file__).resolve().parents[2]
KIB, MIB = 2**10, 2**20
GOOD = Measurements(
    budget_seconds=1.0,
    latencies=[0.5] * 59 + [0.9],
    stages={"denoise": [0.3] * 60, "total": [0.5] * 60},
    first_frame_seconds=0.6,
    first_audio_seconds=0.6,
    deadlines_met=1.0,
    replays=[5] * 60,
    underruns=0,
    worst_stall_seconds=0.0,
    skew_samples=0,
    window_chunks=12,
    captures=(5, 5),
    compilations=(9, 9),
    resident_bytes=[500 * MIB] * 60,
)


@pytest.fixture(scope="module")
def engine():
    return build()


def failures(measured, factor=1.0):
    return {
        verdict.figure: str(verdict) for verdict in gate.judge_session(measured, factor) if not verdict.passed
    }


def test_a_good_session_passes_every_figure():
    verdicts = list(gate.judge_session(GOOD))
    assert tuple(verdict.figure for verdict in verdicts) == gate.SESSION_FIGURES
    assert failures(GOOD) == {}


def test_one_slow_chunk_of_sixty_fails_the_p99():
    failed = failures(replace(GOOD, latencies=[0.5] * 59 + [1.25]))
    assert list(failed) == ["chunk latency p99"]
    message = failed["chunk latency p99"]
    assert "at most 1.000 s" in message
    assert "measured 1.250 s" in message


def test_the_budget_factor_scales_the_latency_limit():
    assert "at most 0.800 s (budget 1.000 s x factor 0.8)" in failures(GOOD, 0.8)["chunk latency p99"]
    assert failures(GOOD, 0.9) == {}
    assert failures(replace(GOOD, latencies=[0.5] * 59 + [1.1]), 1.2) == {}


@pytest.mark.parametrize(
    ("change", "figure", "says"),
    [
        ({"deadlines_met": 59 / 60}, "missed deadlines", "measured 1 of 60"),
        (
            {"underruns": 2, "worst_stall_seconds": 0.25},
            "missed deadlines",
            "2 underruns, worst stall 0.250 s",
        ),
        ({"latencies": [0.81] * 60}, "real-time factor", "below 0.8, measured 0.810"),
        ({"first_frame_seconds": 2.1}, "first media", "below 2 s, measured picture 2.100 s"),
        ({"first_audio_seconds": math.nan}, "first media", "sound nan s"),
        ({"skew_samples": 1}, "audio-video skew", "must be 0 samples, measured 1 samples"),
        ({"captures": (5, 6)}, "graphs captured after warm-up", "must be 0, measured 1"),
        ({"compilations": (9, 11)}, "programs compiled after warm-up", "must be 0, measured 2"),
        ({"replays": [5] * 59 + [10]}, "steps run per chunk", "measured 5 to 10"),
        ({"replays": []}, "steps run per chunk", "equal for all chunks"),
        (
            {"resident_bytes": [500 * MIB + index * MIB // 4 for index in range(60)]},
            "memory growth",
            "at most 16 KiB resident per chunk and 0 on the device, measured +256.0 KiB",
        ),
        (
            {"resident_bytes": [500 * MIB + index // 10 * 250 * KIB for index in range(60)]},
            "memory growth",
            "at most 16 KiB",
        ),
        ({"resident_bytes": [500 * MIB] * 21}, "memory growth", "measured +nan KiB"),
        ({"resident_bytes": []}, "memory growth", "measured no value"),
        ({"device_bytes": list(range(60)), "device_segments": [3] * 60}, "memory growth", "bytes"),
        ({"device_bytes": [7] * 60, "device_segments": [3] * 40 + [4] * 20}, "memory growth", "+1 segments"),
    ],
)
def test_a_figure_over_its_limit_fails_with_limit_and_value(change, figure, says):
    failed = failures(replace(GOOD, **change))
    assert list(failed) == [figure]
    assert failed[figure].startswith(f"{figure} must be ")
    assert says in failed[figure]


def test_a_session_without_chunks_fails_its_latency_figures():
    failed = failures(replace(GOOD, latencies=[]))
    assert list(failed) == ["chunk latency p99", "real-time factor"]
    assert all("measured nan" in message for message in failed.values())


def test_filling_wobble_and_a_single_step_are_not_growth():
    filling = [(400 + 10 * min(index, 12)) * MIB for index in range(60)]
    assert failures(replace(GOOD, resident_bytes=filling)) == {}
    wobbling = [(500 + 20 * (index % 2)) * MIB for index in range(60)]
    assert failures(replace(GOOD, resident_bytes=wobbling)) == {}
    one_step = [(500 + 5 * (index > 30)) * MIB for index in range(60)]
    assert failures(replace(GOOD, resident_bytes=one_step)) == {}
    noted = [500 * MIB + 2 * KIB * index for index in range(60)]
    assert failures(replace(GOOD, resident_bytes=noted)) == {}
    assert failures(replace(GOOD, device_bytes=[9] * 60, device_segments=[3] * 60)) == {}
    # Growth on the host fails even if the device does not grow.
    leak = replace(
        GOOD,
        resident_bytes=[index * 10 * MIB for index in range(60)],
        device_bytes=[9] * 60,
        device_segments=[3] * 60,
    )
    assert list(failures(leak)) == ["memory growth"]


@pytest.mark.parametrize(("share", "value"), [(50, 30), (99, 60), (98, 59), (100, 60), (1, 1)])
def test_percentiles_are_samples(share, value):
    assert gate.percentile(list(range(60, 0, -1)), share) == value


@pytest.mark.parametrize(
    ("chunks", "skew"),
    [
        ([(0, 32000, 32000), (32000, 32000, 32000)], 0),
        ([(0, 32000, 32000), (32001, 32000, 32000)], 1),
        ([(0, 32000, 31999), (32000, 32000, 32000)], 1),
        ([(0, 32000, 32010), (32010, 32000, 32010)], 20),
        ([(0, 31000, 32000)], 1000),
        ([(0, 32000, 31000, 32000), (32000, 32000, 33000, 32000)], 1000),
        ([(5, 32000, 32000)], 5),
        ([], 0),
    ],
)
def test_skew_is_the_largest_distance_of_streams_and_stamps(chunks, skew):
    assert gate.skew_samples(chunks) == skew


def test_a_speed_up_may_fall_by_its_recorded_noise():
    recorded = Ratio(2.0, 0.3, [1.9, 2.0, 2.1])
    assert gate.judge_ratio("eager", Ratio.of([1.71]), recorded, "record it").passed
    assert gate.judge_ratio("eager", Ratio.of([3.0]), recorded, "record it").passed
    failed = gate.judge_ratio("eager", Ratio.of([1.69]), recorded, "record it")
    assert not failed.passed
    assert "at least 1.70 (recorded 2.00, noise 0.30), measured 1.69" in str(failed)
    assert not gate.judge_ratio("eager", Ratio(math.nan, 0.0, []), recorded, "record it").passed


def test_without_a_record_the_speed_up_must_reach_one():
    unrecorded = gate.judge_ratio("eager", Ratio.of([1.2]), None, "record it")
    assert unrecorded.passed
    assert "at least 1.00 (no record of this machine" in str(unrecorded)
    assert not gate.judge_ratio("eager", Ratio.of([0.9]), None, "record it").passed
    assert not gate.judge_ratio("eager", Ratio(math.nan, 0.0, []), None, "record it").passed
    assert not gate.judge_ratio("eager", None, Ratio.of([2.0]), "record it").passed
    assert not gate.judge_ratio("eager", None, None, "record it").passed


def test_a_cpu_record_is_named_by_model_instructions_and_threads(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Some CPU @ 2 GHz\n")
    monkeypatch.setattr("bench.environment._CPUINFO", info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    name = record_name(torch.device("cpu"))
    assert gate.record_path(tmp_path, name, "tiny").name == "some_cpu_2_ghz_avx2_4_threads_tiny.json"
    info.write_text("no model here\n")
    assert cpu_name() not in ("", ", AVX2")
    info.unlink()
    assert cpu_name().endswith(", AVX2")


def test_committed_records_can_be_read():
    records = list((ROOT / "profiles" / "bench").glob("*.json"))
    assert records
    for file in records:
        assert "eager" in gate.read_record(file)


def test_noise_is_three_deviations_but_at_least_five_percent():
    assert Ratio.of([2.0, 2.0, 2.0]).noise == pytest.approx(0.1)
    spread = Ratio.of([1.8, 2.0, 2.2])
    assert spread.ratio == 2.0
    assert spread.noise == pytest.approx(0.6)


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (0.02, True), (0.03, False), (math.nan, False)])
def test_a_baseline_must_agree_with_the_engine(error, passed):
    assert gate.judge_agreement("eager", error).passed is passed


def test_records_round_trip_and_broken_ones_are_refused(tmp_path):
    file = gate.record_path(tmp_path / "new", "NVIDIA H100 80GB HBM3", "5b")
    assert file.name == "nvidia_h100_80gb_hbm3_5b.json"
    assert gate.read_record(file) == {}
    ratios = {"eager": Ratio.of([2.0, 2.1, 1.9])}
    gate.write_record(file, ratios, {"device": "test"})
    assert gate.read_record(file) == ratios
    for content in (
        "{",
        "[]",
        "{}",
        '{"schema": 99, "ratios": {}}',
        '{"schema": 1, "ratios": {"eager": {}}}',
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match="must be a record of schema 1"):
            gate.read_record(file)


def test_a_target_without_a_figure_is_missed():
    figures = {"four denoising steps, s": 0.25, "chunk p99, s": 0.7, "missed chunks": 0, "compiled": 1.9}
    found = {verdict.figure: verdict for verdict in gate.targets("cuda", figures)}
    assert {name: verdict.passed for name, verdict in found.items()} == {
        "four denoising steps, s": True,
        "chunk p99, s": False,
        "missed chunks": True,
        "compiled": False,
        "compiled-graphs": False,
    }
    assert found["compiled-graphs"].measured == "no value"
    assert [verdict.passed for verdict in gate.targets("cpu", {"eager-prefix": 2.5})] == [True]


def test_the_viewer_clock_advances_without_waiting():
    clock, started = ViewerClock(), time.perf_counter()
    clock.sleep(100.0)
    assert 100.0 <= clock() < 110.0
    assert time.perf_counter() - started < 10.0


def test_a_session_passes_and_a_slowed_step_fails(engine, monkeypatch):
    watch_session(engine, 1)
    # The window is full after 12 chunks, and memory growth needs ten more.
    measured = watch_session(engine, 24)
    assert failures(measured) == {}
    assert measured.window_chunks == 12
    # Prefill, noise, three steps of decoding, commit and history.
    assert measured.replays[2:] == [SMALL.sampler.steps + 7] * 22
    assert engine.stats().sessions == 0

    step = engine.dit.step

    def slowed(*arguments):
        time.sleep(1.05 * SMALL.seconds / SMALL.sampler.steps)
        return step(*arguments)

    monkeypatch.setattr(engine.dit, "step", slowed)
    failed = failures(watch_session(engine, 3))
    # A busy machine may also exceed the limit of the first media.
    slow = {"chunk latency p99", "missed deadlines", "real-time factor", "memory growth"}
    assert set(failed) - {"first media"} == slow
    # Three chunks are too few to measure growth, so it fails.
    assert "measured +nan KiB" in failed["memory growth"]
    assert f"at most {SMALL.seconds:.3f} s" in failed["chunk latency p99"]
    assert "2 of 3" in failed["missed deadlines"]


def test_a_missing_frame_is_skew(engine, monkeypatch):
    made = Speech.__next__

    def short(speech):
        chunk = made(speech)
        if chunk.index == 1:
            chunk = replace(chunk, host=replace(chunk.host, video=chunk.host.video[1:]))
        return chunk

    monkeypatch.setattr(Speech, "__next__", short)
    measured = watch_session(engine, 3)
    assert measured.skew_samples == SMALL.clock.samples_per_frame
    assert "measured 1000 samples" in failures(measured)["audio-video skew"]


def test_a_leak_of_250_kb_per_chunk_is_found(engine, monkeypatch):
    made, leaked = Speech.__next__, []

    def leaking(speech):
        # Fresh pages, because memory that the process has freed before would hide the leak for a while.
        leaked.append(mmap.mmap(-1, 250_000))
        leaked[-1].write(b"x" * 250_000)
        return made(speech)

    monkeypatch.setattr(Speech, "__next__", leaking)
    assert "KiB resident per chunk" in failures(watch_session(engine, 24))["memory growth"]


def test_a_run_writes_json_tables_and_a_plot(tmp_path):
    comparison = Comparison(
        {"ours": [0.2, 0.3], "eager": [0.5, 0.6]},
        {"eager": Ratio.of([2.2])},
        {"eager": 0.0},
        {"compiled": "Err: no"},
    )
    results = Results(
        session=GOOD,
        comparison=comparison,
        lengths=[ChunkLength(8, 1.25, [0.25, 0.25]), ChunkLength(9, 1.5, [0.3])],
        verdicts=list(gate.judge_session(GOOD)),
        benchmarks={"test_x[a b]": {"group": "stage", "median": 0.1, "min": 0.1, "max": 0.2, "rounds": 3}},
    )
    about = {"device": "test", "threads": 2, "date": "today"}
    report = as_dict(results, about, "tiny", "cpu", 1.0)
    files = write(tmp_path / "a" / "b", report)
    content = json.loads(files[0].read_text())
    assert content["passed"] is True
    assert content["session"]["p99_seconds"] == 0.9
    assert content["baselines"]["eager"]["ratio"] == 2.2
    text = files[1].read_text()
    for words in (
        "chunk latency p99",
        "0.500 / 0.900 / 0.900 s",
        "2.20",
        "Err: no",
        "test_x[a b]",
        "eager-prefix no value at least 2 MISSED",
        "T = 9, 1.500 s of media 300.0 20.0%",
    ):
        assert words in " ".join(text.split())
    assert as_dict(Results(), about, "tiny", "cpu", 1.0)["passed"] is False
    pytest.importorskip("matplotlib")
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_no_plot_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw(tmp_path / "latency.png", GOOD.as_dict(), 1.0, "tiny") is False
    assert not (tmp_path / "latency.png").exists()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 0, "benchmarks run with --benchmark"),
        (["--benchmark", "--collect-only"], 0, "test_session[chunk latency p99]"),
        (["--benchmark", "--budget-factor", "0"], 4, "must be a finite number above 0"),
        (["--benchmark", "--budget-factor=fast"], 4, "must be a finite number above 0"),
    ],
)
def test_benchmarks_run_only_with_the_option(options, code, says):
    command = [sys.executable, "-m", "pytest", "bench/", "-q", "-p", "no:cacheprovider", *options]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert says in answer.stdout + answer.stderr
