"""Prove and time every kernel on a GPU, against its peers, in one command made to fit in nine minutes.

``python -m bench.h100 --out DIR`` checks every family against float64, measures the device's own ceilings,
times each operation beside its peers, and writes ``report.json`` (every sample, device, versions, date) and
``report.md`` (the table on the screen) into DIR after every case: a run cut short keeps what it has.
``--tune`` adds the tiles that each matrix kernel could take. Without a GPU the same code runs the ``tiny``
preset on the PyTorch path: that tests the harness, and says nothing about a GPU.
"""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import report
from bench.cases import Case, Setting, all_cases
from bench.numerics import all_checks
from bench.timing import compare, input_sets
from bench.tuning import all_tunings
from streamchar.config import preset
from streamchar.kernels._compat import FP8
from streamchar.kernels.configs import record_choice
from streamchar.numerics import relative_error

SCHEMA = 1
#: Contenders of one case are the same function up to the rounding of the narrowest dtype they use.
AGREEMENT = {"bf16": 0.02, "fp32": 0.02, "fp8": 0.2}
PACKAGES = ("torch", "triton", "fa3-fwd", "flash-attn", "numpy", "streamchar")


def main(
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.md and choices.json.")],
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu to test the harness.")] = "",
    preset_name: Annotated[str, typer.Option("--preset", help="5b, or tiny.")] = "",
    only: Annotated[str, typer.Option(help="Run the cases whose name contains this.")] = "",
    compiled: Annotated[bool, typer.Option(help="Build the torch.compile peers (GPU only).")] = True,
    tune: Annotated[bool, typer.Option(help="Also time the candidate tiles of the matrix kernels.")] = False,
    seconds: Annotated[float, typer.Option(help="Start no new case after this long.")] = 480.0,
) -> None:
    """Check, time and report; exit 1 if a kernel is wrong or does not run, 0 otherwise."""
    started = time.monotonic()
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = where.type == "cuda"
    setting = Setting(
        preset(preset_name or ("5b" if on_gpu else "tiny")),
        where,
        torch.bfloat16 if on_gpu else torch.float32,
        compiled and on_gpu,
    )
    out.mkdir(parents=True, exist_ok=True)
    # A log has no width of its own; the widest table needs this much.
    console = Console(width=None if sys.stdout.isatty() else 150)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "environment": environment(where),
        "preset": setting.preset.name,
        "ceilings": {},
        "numerics": [],
        "cases": [],
        "tuning": [],
        "skipped": [],
        "failed": [],
    }

    with torch.inference_mode(), _progress(console) as progress:
        bar = progress.add_task("ceilings", total=None)

        def step(text: str) -> bool:
            """Say what comes next, keep what there is, and tell whether time is left for it."""
            progress.update(bar, description=text)
            _save(out, results)
            if time.monotonic() - started < seconds:
                return True
            results["skipped"].append(text)
            return False

        for check in all_checks(setting):
            step(f"checked {check.name}")
            results["numerics"].append(check.as_dict())
        if on_gpu:
            results["ceilings"] = ceilings(where)
        for case in all_cases(setting):
            if only in case.name and step(case.name):
                try:
                    results["cases"].append(time_case(case, setting, out))
                except Exception as error:  # one kernel that does not run must not cost the others their turn
                    results["failed"].append(f"{case.name}: {type(error).__name__}: {error}"[:300])
        if tune and on_gpu:
            for name, tuning in all_tunings(setting):
                if only in name and step(f"tune {name}"):
                    results["tuning"].append({"name": name, "candidates": tuning()})
        results["seconds"] = time.monotonic() - started
    _save(out, results)
    for table in report.tables(results):
        console.print(table)
    console.print(f"{results['seconds']:.0f} s; raw samples in {out / 'report.json'}")
    if results["failed"] or not all(check["passed"] for check in results["numerics"]):
        sys.exit(1)


def time_case(case: Case, setting: Setting, out: Path) -> dict[str, Any]:
    """Build, cross-check and time one case; a peer that cannot run is left out with its reason."""
    sets = [case.build(seed) for seed in range(input_sets(case.bytes))]
    names, failures = list(sets[0]), {}
    ours = sets[0][names[0]]()
    for name in names[1:]:
        try:
            theirs = sets[0][name]()
        except Exception as error:  # a peer's failure must not cost the run: it is reported in its place
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        if case.comparable:
            apart = max(map(relative_error, _tensors(theirs), _tensors(ours)))
            if apart > AGREEMENT[case.unit]:
                failures[name] = f"computes something else: relative error {apart:.2g}"
    contenders = {name: [calls[name] for calls in sets] for name in names if name not in failures}
    timings = compare(contenders, setting.device)
    if case.product is not None and setting.device.type == "cuda":
        _record(case, timings, setting, out)
    return {
        "name": case.name,
        "family": case.family,
        "flop": case.flop,
        "bytes": case.bytes,
        "unit": case.unit,
        "targets": case.targets,
        "least_share": case.least_share,
        "timings": [timing.as_dict() for timing in timings.values()],
        "failures": failures,
    }


def _record(case: Case, timings: Any, setting: Setting, out: Path) -> None:
    library = timings.get("eager") or timings.get("scaled_mm")
    if library is None or case.product is None:
        return
    record_choice(
        out / "choices.json",
        device_name=torch.cuda.get_device_name(setting.device),
        triton_us=timings["streamchar"].median_us,
        cublas_us=library.median_us,
        **case.product,
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, tuple) else (value,)
    return [each for each in values if isinstance(each, torch.Tensor)]


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure what this device reaches, by the unit of a case.

    Returns:
        ``"fp32"``: bytes a second of a large copy, read and written, which bounds the fused passes;
        ``"bf16"`` and ``"fp8"``: FLOP a second of a product of 8192 cubed.
    """
    source = torch.randn(2**29, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=device).to(torch.bfloat16) for _ in "ab")
    copy = compare({"copy": [lambda: target.copy_(source)]}, device)["copy"]
    product = compare({"product": [lambda: a @ b]}, device)["product"]
    a8, b8, one = a.to(FP8), b.to(FP8), torch.ones((), device=device)
    product8 = compare(
        {"product": [lambda: torch._scaled_mm(a8, b8.t(), one, one, out_dtype=torch.bfloat16)]}, device
    )["product"]
    return {
        "fp32": 2 * source.nbytes / copy.median_us * 1e6,
        "bf16": 2 * 8192**3 / product.median_us * 1e6,
        "fp8": 2 * 8192**3 / product8.median_us * 1e6,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Describe the device, its state, the versions and the date."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": versions,
        "device": platform.processor() or platform.machine(),
        "threads": os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "state": _smi(),
        }
    return found


def _smi() -> str | None:
    query = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _save(out: Path, results: dict[str, Any]) -> None:
    (out / "report.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "report.md").write_text(report.markdown(results))


def _progress(console: Console) -> Progress:
    return Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)


if __name__ == "__main__":
    typer.run(main)
