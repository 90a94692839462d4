"""Tables of the results of ``python -m bench.h100``, for the console and for a Markdown page."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

#: Title, headings and rows of a table.
Section = tuple[str, list[str], list[list[str]]]

_CASE_HEADINGS = [
    "operation",
    "implementation",
    "median µs",
    "95 %",
    "time / ours",
    "rate",
    "of ceiling",
    "target",
]


def as_table(section: Section) -> Table:
    """Return a section as a table for a rich console."""
    title, headings, rows = section
    table = Table(title=escape(title), box=box.SIMPLE, title_justify="left")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def markdown(results: dict[str, Any], tables: Iterable[Section]) -> str:
    """Return the tables of a run as a Markdown page.

    Args:
        results: content of report.json.
        tables: the tables in order.
    """
    about = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items() if version)
    parts = [f"# {about['device']}, preset {results['preset']}", "", f"{about['date']}; {versions}", ""]
    for title, headings, rows in tables:
        parts += [f"## {title}", "", _line(headings), _line(["---"] * len(headings))]
        parts += [_line(row) for row in rows] + [""]
    return "\n".join(parts)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def sections(results: dict[str, Any]) -> Iterator[Section]:
    """Yield the tables of the kernels, and of stages that failed or were left out."""
    checks = results["numerics"]
    wrong = sum(not check["passed"] for check in checks)
    rows = [
        [
            check["name"],
            f"{check['error']:.2e}",
            f"{check['bound']:.2e}",
            "ok" if check["passed"] else "WRONG",
        ]
        for check in checks
    ]
    yield (
        f"Numerics against float64: {len(checks)} checks, {wrong} wrong",
        ["check", "error", "bound", ""],
        rows,
    )
    if results["ceilings"]:
        ceilings = results["ceilings"]
        spelled = [
            f"{ceilings[unit] / 1e12:.{digits}f}" for unit, digits in (("fp32", 2), ("bf16", 0), ("fp8", 0))
        ]
        yield "Measured ceilings", ["copy TB/s", "bf16 TFLOP/s", "fp8 TFLOP/s"], [spelled]
    rows = [row for case in results["cases"] for row in _case_rows(case, results["ceilings"])]
    yield "Timings", _CASE_HEADINGS, rows
    for tuning in results["tuning"]:
        best = sorted(tuning["candidates"], key=lambda candidate: candidate["median_us"] or float("inf"))
        rows = [
            [str(each["config"]), f"{each['median_us']:.1f}" if each["median_us"] else each["failure"]]
            for each in best
        ]
        yield f"Tiles of {tuning['name']}", ["tile", "median µs"], rows
    if results["failed"]:
        yield "FAILED STAGES", ["stage and reason"], [[reason] for reason in results["failed"]]
    if results["left_out"]:
        yield (
            "LEFT OUT because of the deadline or without an engine",
            ["stage"],
            [[name] for name in results["left_out"]],
        )


def _case_rows(case: dict[str, Any], ceilings: dict[str, float]) -> Iterator[list[str]]:
    work = case["bytes"] if case["unit"] == "fp32" else case["flop"]
    ours = case["timings"][0]["median_us"]
    for index, timing in enumerate(case["timings"]):
        ratio = timing["median_us"] / ours
        rate = work / timing["median_us"] * 1e6
        share = rate / ceilings[case["unit"]] if ceilings else None
        verdict = _verdict(ratio, case["targets"].get(timing["name"]))
        if index == 0 and share is not None:
            verdict = _verdict(share, case["least_share"])
        yield [
            case["name"] if index == 0 else "",
            timing["name"] + ("" if timing["method"] != "stream" else " (launches)"),
            f"{timing['median_us']:.1f}",
            f"{timing['low_us']:.1f} - {timing['high_us']:.1f}",
            f"{ratio:.2f}",
            f"{rate / 1e12:.3g} T{'B' if case['unit'] == 'fp32' else 'FLOP'}/s",
            "" if share is None else f"{share:.0%}",
            verdict,
        ]
    for name, reason in case["failures"].items():
        yield ["", name, "-", "-", "-", reason, "", ""]


def _verdict(value: float, least: float | None) -> str:
    return "" if least is None else f"{'met' if value >= least else 'MISSED'} (>= {least:g})"
