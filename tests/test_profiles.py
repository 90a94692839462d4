"""The profiling scripts run without a GPU, and what needs a GPU is at least well formed."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.autograd import DeviceType

from profiles.steady import profiled
from profiles.trace import operator_table

ROOT = Path(__file__).parents[1]
SCRIPTS = ("nsys.sh", "ncu.sh")


def run(*arguments: object) -> str:
    """Run a profile of the tiny preset on the CPU and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments), "--preset", "tiny", "--device", "cpu"],
        cwd=ROOT,
        env={**kept, "COLUMNS": "150"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shell(folder: Path, script: str, *arguments: str) -> list[list[str]]:
    """Run a script with fake profilers that record their arguments, and return the recorded calls."""
    for tool in ("nsys", "ncu"):
        fake = folder / tool
        fake.write_text(f'#!/bin/sh\nprintf "%s\\n" {tool} "$@" "" >>"{folder}/calls"\n')
        fake.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", ROOT / "profiles" / script, *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=True,
        capture_output=True,
    )
    return [call.splitlines() for call in (folder / "calls").read_text().split("\n\n") if call]


def test_steady_prints_the_latency_of_every_stage() -> None:
    printed = run("profiles.steady", "--chunks", 2, "--warm-up", 0)
    assert "2 chunks of 1333 ms" in printed
    for stage in ("prefill", "denoise", "commit", "video", "audio", "total"):
        assert re.search(rf"{stage} .*\d\.\d\d .*%", printed), stage


def test_steady_runs_its_steps_without_graphs() -> None:
    assert "total" in run("profiles.steady", "--chunks", 1, "--warm-up", 0, "--no-graphs")


def test_trace_writes_operators_inside_ranges_and_a_table(tmp_path: Path) -> None:
    printed = run("profiles.trace", "--out", tmp_path, "--chunks", 1, "--warm-up", 1, "--top", 5)
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    ranges = [event for event in events if event.get("cat") == "user_annotation"]
    named: dict[str, list[dict]] = {}
    for event in ranges:
        named.setdefault(event["name"], []).append(event)
    (chunk,), (step,) = named["chunk"], named["step 0"]
    inside = [
        event
        for event in named["layer 0"]
        if step["ts"] <= event["ts"] and event["ts"] + event["dur"] <= step["ts"] + step["dur"]
    ]
    assert len(inside) == 2  # one of the language model, one of the transformer
    assert chunk["ts"] <= step["ts"]
    assert {"prefill", "commit", "video", "frames", "audio"} <= set(named)
    assert any(event.get("cat") == "cpu_op" for event in events)
    table = (tmp_path / "operators.txt").read_text()
    assert table.count("aten::") == 5
    assert "aten::" in printed
    assert "layer 0" not in table


def test_on_a_gpu_the_table_counts_each_kernel_once_without_ranges() -> None:
    def event(key: str, kind: DeviceType, microseconds: float, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            count=4,
            device_type=kind,
            self_device_time_total=microseconds,
            self_cpu_time_total=1.0,
            is_user_annotation=annotation,
        )

    events = [
        event("aten::mm", DeviceType.CPU, 3000.0),
        event("gemm_kernel", DeviceType.CUDA, 3000.0),
        event("norm_kernel[1]", DeviceType.CUDA, 1000.0),
        event("step 0", DeviceType.CUDA, 4000.0, annotation=True),
    ]
    printed = io.StringIO()
    Console(file=printed, width=100).print(operator_table(events, chunks=2, top=9, on_gpu=True))
    lines = [line for line in printed.getvalue().splitlines() if "%" in line]
    assert [re.findall(r"[\w\[\].%]+", line) for line in lines] == [
        ["gemm_kernel", "2.0", "1.500", "75.0%"],
        ["norm_kernel[1]", "2.0", "0.500", "25.0%"],
    ]


def test_on_a_gpu_the_profiler_stops_even_if_a_chunk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    with profiled(torch.device("cuda")):
        calls.append("chunk")
    assert calls == ["synchronize", "start", "chunk", "synchronize", "stop"]
    calls.clear()
    with pytest.raises(KeyError), profiled(torch.device("cuda")):
        raise KeyError
    assert calls[-1] == "stop"
    calls.clear()
    with profiled(torch.device("cpu")):
        pass
    assert calls == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_bash_and_print_their_usage(script: str) -> None:
    path = ROOT / "profiles" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run(["bash", path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: profiles/{script} OUT")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_nsys_captures_between_profiler_calls_and_forwards_options(tmp_path: Path) -> None:
    profile, stats = shell(tmp_path, "nsys.sh", "out dir", "--gpu-metrics-devices=0", "--", "--chunks", "2")
    assert profile[:2] == ["nsys", "profile"]
    assert {"--capture-range=cudaProfilerApi", "--capture-range-end=stop"} <= set(profile)
    assert f"--output={tmp_path}/out dir/steady" in profile
    program = profile.index("python")
    assert profile[program - 1] == "--gpu-metrics-devices=0"
    assert profile[program:] == ["python", "-m", "profiles.steady", "--chunks", "2"]
    assert stats[-1] == f"{tmp_path}/out dir/steady.nsys-rep"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_ncu_starts_with_the_profiler_off_and_forwards_options(tmp_path: Path) -> None:
    options = ("--clock-control", "none", "--launch-count", "4")
    profile, summary = shell(tmp_path, "ncu.sh", "out", "attention.*", *options, "--", "--preset", "5b")
    assert profile[profile.index("--profile-from-start") + 1] == "off"
    assert profile[profile.index("--kernel-name") + 1] == "regex:attention.*"
    program = profile.index("python")
    assert profile[program - 4 : program] == [*options]
    assert profile[program + 1 : program + 3] == ["-m", "profiles.steady"]
    assert profile[-2:] == ["--preset", "5b"]
    assert summary[1:3] == ["--import", f"{tmp_path}/out/steady.ncu-rep"]


def test_the_readme_lists_the_options_that_the_scripts_pass() -> None:
    readme = (ROOT / "profiles" / "README.md").read_text()
    for script in SCRIPTS:
        text = (ROOT / "profiles" / script).read_text()
        for option in re.findall(r"^ {4}(--[a-z-]+)", text, re.MULTILINE):
            assert option in readme, f"{script}: {option}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name
)
def test_workflows_are_valid_yaml_with_runners_and_steps(path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(path.read_text())
    # YAML 1.1 parses the key "on" as True.
    assert {"name", True, "jobs"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"]
        assert all("uses" in step or "run" in step for step in job["steps"])


@pytest.fixture
def h100() -> dict:
    """Return the workflow of the H100 runner."""
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / ".github" / "workflows" / "h100.yml").read_text())


def find(steps: list[dict], key: str, part: str) -> int:
    """Return the index of the only step whose ``key`` contains ``part``."""
    (found,) = (index for index, step in enumerate(steps) if part in step.get(key, ""))
    return found


def test_the_h100_workflow_gates_and_benchmarks_every_push(h100: dict) -> None:
    # Not filtered by branch and not open to forks.
    assert h100[True] == {"push": None, "workflow_dispatch": None}
    codegen, benchmark = h100["jobs"]["codegen"], h100["jobs"]["benchmark"]
    assert codegen["runs-on"] == "ubuntu-latest"
    recorded = json.loads((ROOT / "profiles" / "codegen" / "sm_90.json").read_text())
    assert set(codegen["strategy"]["matrix"]["triton"]) == set(recorded)
    assert "if" not in codegen["steps"][find(codegen["steps"], "run", "-m streamchar.codegen")]
    assert benchmark["runs-on"] == ["self-hosted", "h100"]
    assert benchmark["needs"] == "codegen"
    assert "if" not in benchmark
    assert benchmark["concurrency"] == {"group": "h100", "cancel-in-progress": False}


def test_kernels_are_timed_and_results_kept_even_if_the_gate_fails(h100: dict) -> None:
    steps = h100["jobs"]["benchmark"]["steps"]
    install, restore = find(steps, "name", "Install"), find(steps, "uses", "actions/cache/restore")
    gate, suite = find(steps, "run", "pytest bench/"), find(steps, "run", "-m bench.h100")
    save, upload = find(steps, "uses", "actions/cache/save"), find(steps, "uses", "actions/upload-artifact")
    assert install < restore < gate < suite < save < upload
    # A step without a condition is skipped after a failed step.
    assert all("if" not in steps[index] for index in (install, restore, gate))
    assert steps[suite]["if"] == f"always() && steps.{steps[install]['id']}.outcome == 'success'"
    assert steps[upload]["if"] == "always()"
    # A failed run is kept only if it is the first, or there might never be one to compare with.
    first = f"steps.{steps[restore]['id']}.outputs.cache-matched-key == ''"
    passed = f"steps.{steps[gate]['id']}.outcome == 'success'"
    assert steps[save]["if"] == f"always() && github.ref == 'refs/heads/main' && ({passed} || {first})"
    assert steps[save]["with"]["path"] == steps[restore]["with"]["path"] == ".benchmarks"
    assert steps[save]["with"]["key"] == steps[restore]["with"]["key"]
    assert steps[save]["with"]["key"].startswith(steps[restore]["with"]["restore-keys"])
    assert {"results", ".benchmarks", "profiles/bench"} <= set(steps[upload]["with"]["path"].split())


def run_gate(folder: Path, workflow: dict, code: int) -> tuple[int, list[str]]:
    """Run the gate's step as the runner does, with a fake Python that exits with ``code``.

    For ``-c``, the fake Python prints ``record.json``, the path of the record, and writes the code it was
    given to ``asked``. Returns the exit code of the step and the arguments of Python.
    """
    steps = workflow["jobs"]["benchmark"]["steps"]
    step = steps[find(steps, "run", "pytest bench/")]
    # The runner's shell "bash" stops at the first failure, also inside a pipe.
    assert step["shell"] == "bash"
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then printf %s "$2" >asked; echo record.json; exit; fi\n'
        f"printf '%s\\n' \"$@\" >calls\nexit {code}\n"
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=folder,
        env={**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("compared", [False, True])
def test_the_gate_gets_the_recorded_and_previous_results(
    tmp_path: Path, h100: dict, recorded: bool, compared: bool
) -> None:
    if recorded:
        (tmp_path / "record.json").write_text("{}")
    if compared:
        (tmp_path / ".benchmarks" / "machine").mkdir(parents=True)
        (tmp_path / ".benchmarks" / "machine" / "0001_last.json").write_text("{}")
    code, arguments = run_gate(tmp_path, h100, 0)
    assert code == 0
    assert arguments[:4] == ["-m", "pytest", "bench/", "--benchmark"]
    assert ("--gate-record" in arguments) is not recorded
    assert ("--benchmark-compare" in arguments) is compared
    assert ("--benchmark-compare-fail=median:10%" in arguments) is compared
    assert "" not in arguments


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_failing_gate_fails_its_step(tmp_path: Path, h100: dict) -> None:
    code, _ = run_gate(tmp_path, h100, 1)
    assert code == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_workflow_asks_the_gate_for_the_path_of_the_record(
    tmp_path: Path, h100: dict, capsys: pytest.CaptureFixture
) -> None:
    run_gate(tmp_path, h100, 0)
    exec((tmp_path / "asked").read_text(), {})
    place = Path(capsys.readouterr().out.strip())
    assert place.parent == ROOT / "profiles" / "bench"
    assert place.suffix == ".json"
