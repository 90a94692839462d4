"""Check the kernels and measure chunks and kernels on a GPU, in one command of under nine minutes.

``python -m bench.h100 --out DIR`` runs its stages in order of importance:

    numerics    every kernel family against float64, because the time of a wrong kernel means nothing
    chunk       the session of 60 chunks that the gate judges, the denoising steps of this chunk and of the
                paper's, the speed-up over baselines that recompute their conditioning
    kernels     the device's peak rates, then each operation and its peers

After every stage it writes its results to DIR: ``report.json`` (all samples, device, versions, date),
``report.md`` (the tables on the screen), ``latency.png`` and ``choices.json``, which can replace
``kernels/_shared/choices.json``. The deadline also interrupts a running stage; the report names the stages
that were left out. ``--tune`` also times the tile sizes that each matrix kernel could use. Without a GPU the
same code runs the ``tiny`` preset on the PyTorch path, which tests the harness and says nothing about a GPU.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import plot, report
from bench.cases import CUBLAS, Case, Setting, all_cases
from bench.chunk import measure_chunk
from bench.environment import environment
from bench.numerics import all_checks
from bench.run import Run
from bench.timing import compare, input_sets
from bench.tuning import all_tunings
from streamchar.config import preset
from streamchar.engine import StreamCharEngine
from streamchar.kernels._shared.compat import FP8
from streamchar.kernels._shared.configs import record_choice
from streamchar.numerics import relative_error

SCHEMA = 1
#: Largest relative error between contenders of a case, by unit: the rounding of the narrowest dtype in use.
AGREEMENT = {"bf16": 0.02, "fp32": 0.02, "fp8": 0.2}


def main(
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.md, latency.png, choices.json.")],
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu to test the harness.")] = "",
    preset_name: Annotated[str, typer.Option("--preset", help="5b or tiny.")] = "",
    only: Annotated[str, typer.Option(help="Run only stages and cases whose name contains this.")] = "",
    compiled: Annotated[
        bool, typer.Option(help="Also time torch.compile peers of the kernels (GPU).")
    ] = True,
    tune: Annotated[bool, typer.Option(help="Also time the candidate tiles of the matrix kernels.")] = False,
    seconds: Annotated[float, typer.Option(help="Deadline in seconds; interrupts a running stage.")] = 500.0,
) -> None:
    """Check, measure and report; exit 1 if a kernel is wrong or unchecked or a stage fails, 0 otherwise."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = where.type == "cuda"
    if on_gpu and where.index is not None:
        # Streams, events and graphs are created on the current device.
        torch.cuda.set_device(where)
    setting = Setting(
        preset(preset_name or ("5b" if on_gpu else "tiny")),
        where,
        torch.bfloat16 if on_gpu else torch.float32,
        compiled and on_gpu,
    )
    out.mkdir(parents=True, exist_ok=True)
    # Without a terminal there is no width; the widest table needs this much.
    console = Console(width=None if sys.stdout.isatty() else 150)
    with _progress(console) as progress:
        bar = progress.add_task("", total=None)
        results = measure(
            setting,
            out,
            only=only,
            tune=tune,
            seconds=seconds,
            say=lambda text: progress.update(bar, description=text),
        )
    for section in _sections(results):
        console.print(report.as_table(section))
    console.print(f"{results['seconds']:.0f} s; raw samples in {out / 'report.json'}")
    if not proven(results):
        sys.exit(1)


def proven(results: dict[str, Any]) -> bool:
    """Return whether every kernel was checked and is right, and no stage failed."""
    checked = bool(results["numerics"]) and "numerics" not in results["left_out"]
    return checked and not results["failed"] and all(check["passed"] for check in results["numerics"])


def measure(
    setting: Setting,
    out: Path,
    *,
    seconds: float,
    only: str = "",
    tune: bool = False,
    say: Callable[[str], None] = print,
    build: Callable[[], StreamCharEngine] | None = None,
) -> dict[str, Any]:
    """Run all stages and return the content of report.json.

    Args:
        setting: device, preset and dtype.
        out: folder to write to; must exist.
        seconds: time until the deadline.
        only: run only stages and cases whose name contains this; the numerics stage always runs.
        tune: whether to time the candidate tiles of the matrix kernels too.
        say: called with the name of every stage before it begins.
        build: builds the engine; by default with the setting's preset and random weights.
    """
    where, kind = setting.device, setting.device.type
    found = plot.Results()
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "environment": environment(where),
        "preset": setting.preset.name,
        "ceilings": {},
        "numerics": [],
        "cases": [],
        "tuning": [],
    }

    def keep() -> None:
        results.update(failed=run.failed, left_out=run.left_out, seconds=run.elapsed)
        results["chunk"] = plot.as_dict(found, results["environment"], setting.preset.name, kind, 1.0)
        (out / "report.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "report.md").write_text(report.markdown(results, _sections(results)))

    run = Run(seconds, keep, say)
    with torch.inference_mode():
        run.stage("numerics", lambda: results["numerics"].extend(_checks(setting, say)))
    name = setting.preset.name
    make = build or partial(StreamCharEngine.from_preset, name, random_weights=True, device=where)
    measure_chunk(run, make, kind, found, only)
    # Free the engine's memory for the inputs of the kernels.
    gc.collect()
    with torch.inference_mode():
        if kind == "cuda":
            run.stage("ceilings", lambda: results["ceilings"].update(ceilings(where)))
        for case in all_cases(setting):
            if only in case.name:
                timed = run.stage(case.name, partial(time_case, case, setting, out))
                results["cases"] += [timed] if timed else []
        if tune and kind == "cuda":
            for name, tuning in all_tunings(setting):
                if only in name:
                    candidates = run.stage(f"tune {name}", tuning)
                    results["tuning"] += [{"name": name, "candidates": candidates}] if candidates else []
    keep()
    if found.session is not None:
        plot.draw(out / "latency.png", results["chunk"]["session"], 1.0, setting.preset.name)
    return results


def _checks(setting: Setting, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    for check in all_checks(setting):
        say(f"checked {check.name}")
        yield check.as_dict()


def _sections(results: dict[str, Any]) -> list[report.Section]:
    return [*plot.sections(results["chunk"]), *report.sections(results)]


def time_case(case: Case, setting: Setting, out: Path) -> dict[str, Any]:
    """Build and time one case; a peer that fails or computes something else is reported and not timed."""
    sets = [case.build(seed) for seed in range(input_sets(case.bytes, setting.device))]
    names, failures = list(sets[0]), {}
    ours = sets[0][names[0]]()
    for name in names[1:]:
        try:
            theirs = sets[0][name]()
        except Exception as error:  # a failing peer is reported and does not stop the run
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
    library = timings.get(CUBLAS)
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
    """Measure the peak rates of a device.

    Returns:
        By unit of a case, ``"fp32"``: bytes per second that a large copy reads and writes, which bounds the
        fused passes; ``"bf16"`` and ``"fp8"``: FLOP per second of a product of two 8192 x 8192 matrices.
    """
    torch.cuda.empty_cache()
    source = torch.randn(2**29, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=device).to(torch.bfloat16) for _ in "ab")
    copy = compare({"copy": [lambda: target.copy_(source)]}, device)["copy"]
    product = compare({"product": [lambda: a @ b]}, device)["product"]
    a8, b8, one = a.to(FP8), b.to(FP8), torch.ones((), device=device)
    fast: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    product8 = compare({"product": [lambda: torch._scaled_mm(a8, b8.t(), one, one, **fast)]}, device)[
        "product"
    ]
    return {
        "fp32": 2 * source.nbytes / copy.median_us * 1e6,
        "bf16": 2 * 8192**3 / product.median_us * 1e6,
        "fp8": 2 * 8192**3 / product8.median_us * 1e6,
    }


def _progress(console: Console) -> Progress:
    return Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)


if __name__ == "__main__":
    typer.run(main)
