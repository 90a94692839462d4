"""The benchmark suite of the H100 at the tiny preset on a CPU: harness, reports and failures."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import h100, report
from bench.cases import Case, Setting, all_cases
from bench.h100 import measure, time_case
from bench.numerics import Check, all_checks, poisoned
from bench.tuning import all_tunings
from streamchar.config import preset
from tests.engine.small import build

ROOT = Path(__file__).parents[2]
CPU = Setting(preset("tiny"), torch.device("cpu"), torch.float32, compiled=False)


def case(**contenders) -> Case:
    return Case("case", "family", lambda seed: contenders, flop=1.0, bytes=1e12, targets={"peer": 2.0})


def test_the_command_checks_times_and_reports(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.h100", "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--only", "modulation 3"], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "report.json").read_text())
    assert results["environment"]["packages"]["torch"] == torch.__version__
    assert {check["name"].split()[0] for check in results["numerics"]} == {
        "attention", "qkv_prologue", "modulation", "experts", "sampler", "frames",
    }  # fmt: skip
    assert all(check["passed"] for check in results["numerics"])
    (timed,) = results["cases"]
    assert [timing["name"] for timing in timed["timings"]] == ["streamchar", "eager"]
    assert len(timed["timings"][0]["samples_us"]) >= 10
    assert "modulation 320 x 256" in (tmp_path / "report.md").read_text()
    assert "modulation 320 x 256" in done.stdout
    assert results["chunk"]["session"] is None
    assert results["left_out"] == results["failed"] == []


def test_a_run_without_kernel_checks_is_not_proven():
    right = {"passed": True}
    whole = {"numerics": [right], "left_out": ["experts"], "failed": []}
    assert h100.proven(whole)
    for change in (
        {"numerics": []},
        {"numerics": [right, {"passed": False}]},
        {"left_out": ["numerics"]},
        {"failed": ["attention"]},
    ):
        assert not h100.proven(whole | change)


@pytest.mark.parametrize(("device", "chosen"), [("", []), ("cuda", []), ("cuda:1", ["cuda:1"])])
def test_the_requested_gpu_becomes_the_current_one(device, chosen, tmp_path, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda where: current.append(str(where)))
    measured = []

    def measure(setting, *_, **__):
        measured.append(setting)
        raise InterruptedError

    monkeypatch.setattr(h100, "measure", measure)
    with pytest.raises(InterruptedError):
        h100.main(tmp_path, device, "", "", True, False, 1.0)
    assert current == chosen
    assert measured[0].device == torch.device(device or "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
def test_unwritten_outputs_are_poisoned(dtype):
    with poisoned():
        out = torch.empty((3, 5), dtype=dtype)
    value = out.float()
    assert value.isnan().all() if dtype.is_floating_point else value.eq(255).all()


@pytest.fixture
def short(monkeypatch):
    """Make every stage as short as possible."""
    monkeypatch.setattr("bench.chunk.CHUNKS", 3)
    monkeypatch.setattr("bench.baseline.ROUNDS", 1)
    monkeypatch.setattr("bench.lengths.ROUNDS", 1)
    monkeypatch.setattr(h100, "all_checks", lambda setting: [Check("a kernel", 0.0, 0.1)])
    timed = [case(streamchar=lambda: torch.ones(3), peer=lambda: torch.ones(3))]
    monkeypatch.setattr(h100, "all_cases", lambda setting: timed)


def test_stages_run_in_order_numerics_chunk_kernels(tmp_path, short):
    said = []
    results = measure(CPU, tmp_path, seconds=600, say=said.append, build=build)
    assert said == [
        "numerics",
        "checked a kernel",
        "engine, warmed up",
        "session of 3 chunks",
        "denoising steps by chunk length",
        "speed-up over eager, eager-prefix",
        "case",
    ]
    assert results["left_out"] == results["failed"] == []
    assert (tmp_path / "report.json").read_text() == json.dumps(results, indent=1) + "\n"
    chunk = results["chunk"]
    assert len(chunk["session"]["latencies"]) == 3
    assert [each["latent_frames"] for each in chunk["lengths"]] == [8, 9]
    assert chunk["baselines"]["eager"]["ratio"] > 0
    assert {verdict["figure"] for verdict in chunk["verdicts"]} >= {
        "chunk latency p99", "missed deadlines", "error of eager against the engine",
    }  # fmt: skip
    page = (tmp_path / "report.md").read_text()
    for table in ("Session of 3 chunks", "Speed-up", "Chunk lengths", "Targets", "Numerics", "Timings"):
        assert f"## {table}" in page
    assert "T = 9" in page


def test_without_a_builder_the_presets_engine_is_built(tmp_path, short):
    results = measure(CPU, tmp_path, seconds=600, only="by chunk length")
    assert [each["latent_frames"] for each in results["chunk"]["lengths"]] == [8, 9]
    assert results["chunk"]["session"] is None
    assert results["cases"] == []


def test_stages_after_the_deadline_are_named_and_fail(tmp_path, short):
    results = measure(CPU, tmp_path, seconds=0, build=build)
    assert results["left_out"] == [
        "numerics",
        "engine, warmed up",
        "session of 3 chunks",
        "denoising steps by chunk length",
        "speed-up over eager, eager-prefix",
        "case",
    ]
    assert results["chunk"]["passed"] is False
    page = (tmp_path / "report.md").read_text()
    assert "speed-up over eager, eager-prefix" in page.split("LEFT OUT")[1]
    assert "| eager-prefix | no value | at least 2 | MISSED |" in page


def test_without_an_engine_the_kernels_are_still_timed(tmp_path, short):
    def broken():
        raise RuntimeError("no room")

    results = measure(CPU, tmp_path, seconds=600, build=broken)
    assert results["failed"] == ["engine, warmed up: RuntimeError: no room"]
    assert "session of 3 chunks" in results["left_out"]
    assert [timed["name"] for timed in results["cases"]] == ["case"]


def test_every_case_builds_and_every_contender_runs():
    families = set()
    for each in all_cases(CPU):
        families.add(each.family)
        calls = each.build(0)
        assert next(iter(calls)) == "streamchar"
        for call in calls.values():
            call()
    assert families == {"attention", "qkv_prologue", "modulation", "sampler", "frames", "experts"}


def test_every_tuning_has_its_own_name():
    names = [name for name, _ in all_tunings(CPU)]
    assert len(names) == len(set(names)) == 8


def test_a_failing_peer_is_reported():
    def broken():
        raise RuntimeError("no kernel image\nsecond line")

    timed = time_case(case(streamchar=lambda: torch.ones(3), peer=broken), CPU, Path())
    assert timed["failures"] == {"peer": "RuntimeError: no kernel image"}
    assert [timing["name"] for timing in timed["timings"]] == ["streamchar"]


def test_a_peer_with_other_results_is_not_timed():
    other = case(streamchar=lambda: torch.ones(3), peer=lambda: torch.zeros(3))
    timed = time_case(other, CPU, Path())
    assert timed["failures"]["peer"].startswith("computes something else")


def test_a_wrong_kernel_fails_the_numerics(monkeypatch):
    from streamchar import kernels

    right = kernels.expert_down
    monkeypatch.setattr(kernels, "expert_down", lambda *a, **k: right(*a, **k) * 1.001)
    wrong = [check for check in all_checks(CPU) if not check.passed]
    assert [check.name for check in wrong] == ["experts down float32"]


def test_a_failing_kernel_does_not_stop_the_other_checks(monkeypatch):
    from streamchar import kernels

    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image\nsecond line")

    monkeypatch.setattr(kernels, "joint_attention", broken)
    checks = list(all_checks(CPU))
    assert [check.name for check in checks if not check.passed] == [
        "attention did not run: RuntimeError: no kernel image"
    ]
    assert len(checks) > 10


def test_the_report_names_misses_and_errors():
    timed = time_case(case(streamchar=lambda: torch.ones(3), peer=lambda: torch.ones(3)), CPU, Path())
    timed["timings"][0]["median_us"], timed["timings"][1]["median_us"] = 2e6, 3e6
    results = {
        "environment": {"device": "a GPU", "date": "today", "packages": {"torch": "2", "fa3-fwd": None}},
        "preset": "tiny",
        "ceilings": {"fp32": 1e12, "bf16": 1e15, "fp8": 2e15},
        "numerics": [Check("attention", float("inf"), 0.1).as_dict()],
        "cases": [timed],
        "tuning": [{"name": "attention", "candidates": [
            {"config": {"block_m": 64}, "median_us": None, "failure": "OutOfResources"},
            {"config": {"block_m": 128}, "median_us": 5.0, "failure": None},
        ]}],
        "left_out": ["experts"],
        "failed": ["prologue: OutOfResources"],
    }  # fmt: skip
    page = report.markdown(results, report.sections(results))
    assert "1 checks, 1 wrong" in page
    assert "MISSED (>= 0.85)" in page  # ours moves 1e12 bytes in 2 s, half of the ceiling
    assert "1.50 | 0.333 TB/s | 33% | MISSED (>= 2)" in page
    assert page.index("'block_m': 128") < page.index("OutOfResources")
    assert "experts" in page.split("LEFT OUT")[1]
    assert "prologue: OutOfResources" in page.split("FAILED STAGES")[1]
    tables = [report.as_table(section) for section in report.sections(results)]
    assert [table.title for table in tables] == re.findall("^## (.*)$", page, re.MULTILINE)


@pytest.mark.parametrize("error", [0.05, 0.1])
def test_a_check_passes_up_to_its_bound(error):
    assert Check("x", error, 0.1).passed
    assert not Check("x", 0.11, 0.1).passed
