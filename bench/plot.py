"""The report of a run of the gate: JSON, tables, and a plot of latency against budget."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from bench.baseline import Comparison
from bench.gate import SCHEMA, Measurements, Verdict, percentile, targets
from bench.lengths import ChunkLength
from bench.report import Section, as_table

#: Label of the time of a chunk outside the engine's stages.
_OTHER = "other"
_SHARES = ("p50", "p99", "max")
#: From StreamChar (arXiv 2605.25659).
PAPER_CHUNK = "the paper's whole chunk of T = 9, 33 frames: 1.34 s"


@dataclass
class Results:
    """The measurements of a run so far."""

    session: Measurements | None = None
    comparison: Comparison | None = None
    lengths: list[ChunkLength] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    benchmarks: dict[str, dict[str, float]] = field(default_factory=dict)


def as_dict(
    results: Results, environment: Mapping[str, Any], preset: str, kind: str, factor: float
) -> dict[str, Any]:
    """Return the report of a run as plain JSON values.

    Args:
        results: the measurements.
        environment: machine, versions and date, from :func:`bench.environment.environment`.
        preset: name of the preset.
        kind: device type, ``"cpu"`` or ``"cuda"``.
        factor: factor on the budget.
    """
    session, comparison = results.session, results.comparison
    figures: dict[str, float] = {}
    if session is not None:
        figures["chunk p99, s"] = percentile(session.latencies, 99)
        figures["missed chunks"] = max(session.missed, session.underruns)
        if "denoise" in session.stages:
            figures["four denoising steps, s"] = median(session.stages["denoise"])
    baselines: dict[str, Any] = {}
    if comparison is not None:
        figures |= {name: ratio.ratio for name, ratio in comparison.ratios.items()}
        for name, samples in comparison.seconds.items():
            ratio, error = comparison.ratios.get(name), comparison.errors.get(name)
            baselines[name] = {
                "median_seconds": median(samples),
                "seconds": samples,
                "ratio": ratio.ratio if ratio else 1.0,
                "noise": ratio.noise if ratio else 0.0,
                "repeats": ratio.repeats if ratio else [],
                "error": error or 0.0,
            }
        baselines |= {name: {"failure": reason} for name, reason in comparison.failures.items()}
    return {
        "schema": SCHEMA,
        "environment": dict(environment),
        "preset": preset,
        "kind": kind,
        "budget_factor": factor,
        "passed": bool(results.verdicts) and all(verdict.passed for verdict in results.verdicts),
        "verdicts": [vars(verdict) for verdict in results.verdicts],
        "targets": [vars(verdict) for verdict in targets(kind, figures)],
        "session": session.as_dict() if session else None,
        "baselines": baselines,
        "lengths": [asdict(length) for length in results.lengths],
        "benchmarks": results.benchmarks,
    }


def sections(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the tables of a report as title, headings and rows."""
    about = report["environment"]
    title = f"{about['device']}, {about['threads']} threads, preset {report['preset']}, {about['date']}"
    rows = [
        [each["figure"], each["measured"], each["limit"], "ok" if each["passed"] else "FAILED"]
        for each in report["verdicts"]
    ]
    if rows:
        yield f"Gate: {title}", ["figure", "measured", "must be", ""], rows
    if report["session"]:
        yield _session_section(report["session"])
    if report["baselines"]:
        rows = [_baseline_row(name, each) for name, each in report["baselines"].items()]
        headings = ["contender", "median ms per chunk", "speed-up", "noise"]
        yield "Speed-up over recomputing the conditioning", headings, rows
    if report["lengths"]:
        rows = [_length_row(each) for each in report["lengths"]]
        headings = ["chunk", "denoising steps, median ms", "of playback time"]
        # The paper's time comes from other hardware, so it is named in the title instead of a row.
        yield f"Chunk lengths ({PAPER_CHUNK})", headings, rows
    if report["targets"]:
        rows = [
            [each["figure"], each["measured"], each["limit"], "met" if each["passed"] else "MISSED"]
            for each in report["targets"]
        ]
        yield "Targets, not judged", ["figure", "measured", "target", ""], rows
    rows = [
        [
            name,
            each["group"] or "",
            *(f"{each[key] * 1e3:.3f}" for key in ("median", "min", "max")),
            str(each["rounds"]),
        ]
        for name, each in report["benchmarks"].items()
    ]
    if rows:
        yield "Benchmarks", ["benchmark", "group", "median ms", "min", "max", "rounds"], rows


def write(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write JSON, tables and, if matplotlib is installed, the plot; return the written files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json", folder / "report.txt"]
    written[0].write_text(json.dumps(report, indent=1) + "\n")
    with written[1].open("w") as file:
        console = Console(file=file, width=160)
        for section in sections(report):
            console.print(as_table(section))
    if report["session"]:
        picture = folder / "latency.png"
        if draw(picture, report["session"], report["budget_factor"], report["preset"]):
            written.append(picture)
    return written


def draw(file: Path, session: Mapping[str, Any], factor: float, preset: str) -> bool:
    """Draw the latency of each chunk, by stage, against the budget; return False without matplotlib.

    Args:
        file: PNG file to write.
        session: from :meth:`bench.gate.Measurements.as_dict`.
        factor: factor on the budget.
        preset: name of the preset, for the title.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    latencies, budget = session["latencies"], session["budget_seconds"] * factor
    numbers = range(len(latencies))
    below = [0.0] * len(latencies)
    stages = {name: times for name, times in session["stages"].items() if name != "total"}
    inside = [sum(times) for times in zip(*stages.values())] or below
    # Outside the engine's stages: the session's own work and the wait for the copy to the host.
    stages[_OTHER] = [max(0.0, total - known) for total, known in zip(latencies, inside)]
    for name, times in stages.items():
        axes.bar(numbers, times, bottom=below, width=1.0, label=name)
        below = [low + time for low, time in zip(below, times)]
    axes.axhline(budget, color="black", label=f"budget x {factor:g} = {budget:.2f} s")
    axes.axhline(session["p99_seconds"], color="black", linestyle=":", label="p99")
    axes.axvline(session["window_chunks"] - 0.5, color="grey", linewidth=0.8, label="window full")
    axes.set(xlabel="chunk", ylabel="seconds", title=f"Latency against the playback budget, preset {preset}")
    axes.margins(x=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(file, dpi=120)
    return True


def _session_section(session: Mapping[str, Any]) -> Section:
    count = len(session["latencies"])
    rows = [
        [
            "chunk latency p50 / p99 / max",
            " / ".join(f"{session[f'{k}_seconds']:.3f}" for k in _SHARES) + " s",
        ],
        ["playback budget", f"{session['budget_seconds']:.3f} s"],
        ["deadlines met", f"{session['deadlines_met']:.1%} of {count}"],
        ["underruns, worst stall", f"{session['underruns']}, {session['worst_stall_seconds']:.3f} s"],
        ["time to first frame", f"{session['first_frame_seconds']:.3f} s"],
        ["time to first audio", f"{session['first_audio_seconds']:.3f} s"],
        ["RTF, window full", f"{session['rtf']:.3f}"],
        ["audio-video skew", f"{session['skew_samples']} samples"],
    ]
    rows += [[f"{name}, median", f"{median(times):.3f} s"] for name, times in session["stages"].items()]
    return f"Session of {count} chunks", ["figure", "value"], rows


def _baseline_row(name: str, each: Mapping[str, Any]) -> list[str]:
    if "failure" in each:
        return [name, "-", each["failure"], "-"]
    lead = "" if name == "ours" else f"{each['ratio']:.2f}"
    noise = "" if name == "ours" else f"{each['noise']:.2f}"
    return [name, f"{each['median_seconds'] * 1e3:.1f}", lead, noise]


def _length_row(each: Mapping[str, Any]) -> list[str]:
    seconds, media = median(each["seconds"]), each["media_seconds"]
    label = f"T = {each['latent_frames']}, {media:.3f} s of media"
    return [label, f"{seconds * 1e3:.1f}", f"{seconds / media:.1%}"]
