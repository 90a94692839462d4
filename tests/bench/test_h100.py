"""The suite for the H100, run on this machine at the tiny preset: harness, reports and failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import report
from bench.cases import Case, Setting, all_cases
from bench.h100 import time_case
from bench.numerics import Check, all_checks
from bench.tuning import all_tunings
from streamchar.config import preset

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
        "attention", "prologue", "modulation", "experts", "sampler", "egress",
    }  # fmt: skip
    assert all(check["passed"] for check in results["numerics"])
    (timed,) = results["cases"]
    assert [timing["name"] for timing in timed["timings"]] == ["streamchar", "eager"]
    assert len(timed["timings"][0]["samples_us"]) >= 10
    assert "modulation 320 x 256" in (tmp_path / "report.md").read_text()
    assert "modulation 320 x 256" in done.stdout


def test_every_case_builds_and_every_contender_runs():
    families = set()
    for each in all_cases(CPU):
        families.add(each.family)
        calls = each.build(0)
        assert next(iter(calls)) == "streamchar"
        for call in calls.values():
            call()
    assert families == {"attention", "qkv", "modulation", "sampler", "egress", "experts"}


def test_every_tuning_is_named():
    names = [name for name, _ in all_tunings(CPU)]
    assert len(names) == len(set(names)) == 8


def test_a_peer_that_cannot_run_is_reported_in_its_place():
    def broken():
        raise RuntimeError("no kernel image\nsecond line")

    timed = time_case(case(streamchar=lambda: torch.ones(3), peer=broken), CPU, Path())
    assert timed["failures"] == {"peer": "RuntimeError: no kernel image"}
    assert [timing["name"] for timing in timed["timings"]] == ["streamchar"]


def test_a_peer_that_computes_something_else_is_not_timed():
    other = case(streamchar=lambda: torch.ones(3), peer=lambda: torch.zeros(3))
    timed = time_case(other, CPU, Path())
    assert timed["failures"]["peer"].startswith("computes something else")


def test_a_wrong_kernel_fails_the_numerics(monkeypatch):
    from streamchar import kernels

    right = kernels.expert_down
    monkeypatch.setattr(kernels, "expert_down", lambda *a, **k: right(*a, **k) * 1.001)
    wrong = [check for check in all_checks(CPU) if not check.passed]
    assert [check.name for check in wrong] == ["experts down float32"]


def test_a_kernel_that_does_not_run_fails_its_check_and_the_others_have_their_turn(monkeypatch):
    from streamchar import kernels

    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image\nsecond line")

    monkeypatch.setattr(kernels, "joint_attention", broken)
    checks = list(all_checks(CPU))
    assert [check.name for check in checks if not check.passed] == [
        "attention did not run: RuntimeError: no kernel image"
    ]
    assert len(checks) > 10


def test_the_report_names_what_was_missed_and_what_was_wrong():
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
        "skipped": ["experts"],
        "failed": ["prologue: OutOfResources"],
    }  # fmt: skip
    page = report.markdown(results)
    assert "1 checks, 1 wrong" in page
    assert "MISSED (>= 0.85)" in page  # ours moves 1e12 bytes in 2 s, half of the ceiling
    assert "1.50 | 0.333 TB/s | 33% | MISSED (>= 2)" in page
    assert page.index("'block_m': 128") < page.index("OutOfResources")
    assert "experts" in page.split("Skipped")[1]
    assert "prologue: OutOfResources" in page.split("DID NOT RUN")[1]
    assert len(list(report.tables(results))) == page.count("## ")


@pytest.mark.parametrize("error", [0.05, 0.1])
def test_a_check_passes_up_to_its_bound(error):
    assert Check("x", error, 0.1).passed
    assert not Check("x", 0.11, 0.1).passed
