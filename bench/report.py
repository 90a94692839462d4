"""Turn the raw results of a run into tables, for the screen and for a page."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

Rows = list[list[str]]

_CASE_HEADINGS = [
    "operation",
    "implementation",
    "median µs",
    "95 %",
    "ratio to ours",
    "rate",
    "of ceiling",
    "target",
]


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of a run for a rich console."""
    for title, headings, rows in _sections(results):
        table = Table(title=title, box=box.SIMPLE, title_justify="left")
        for heading in headings:
            table.add_column(heading)
        for row in rows:
            table.add_row(*row)
        yield table


def markdown(results: dict[str, Any]) -> str:
    """Return the same tables as a Markdown page."""
    about = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items() if version)
    parts = [f"# {about['device']}, preset {results['preset']}", "", f"{about['date']}; {versions}", ""]
    for title, headings, rows in _sections(results):
        parts += [f"## {title}", "", _line(headings), _line(["---"] * len(headings))]
        parts += [_line(row) for row in rows] + [""]
    return "\n".join(parts)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _sections(results: dict[str, Any]) -> Iterator[tuple[str, list[str], Rows]]:
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
        yield (
            "Measured ceilings",
            ["copy TB/s", "bf16 TFLOP/s"],
            [
                [
                    f"{ceilings['copy_bytes_per_second'] / 1e12:.2f}",
                    f"{ceilings['bf16_flop_per_second'] / 1e12:.0f}",
                ]
            ],
        )
    rows = [row for case in results["cases"] for row in _case_rows(case, results["ceilings"])]
    yield "Timings", _CASE_HEADINGS, rows
    for tuning in results["tuning"]:
        best = sorted(tuning["candidates"], key=lambda candidate: candidate["median_us"] or float("inf"))
        rows = [
            [str(each["config"]), f"{each['median_us']:.1f}" if each["median_us"] else each["failure"]]
            for each in best
        ]
        yield f"Tiles of {tuning['name']}", ["tile", "median µs"], rows
    if results["skipped"]:
        yield "Skipped for lack of time", ["operation"], [[name] for name in results["skipped"]]


def _case_rows(case: dict[str, Any], ceilings: dict[str, float]) -> Iterator[list[str]]:
    ours = case["timings"][0]["median_us"]
    for index, timing in enumerate(case["timings"]):
        ratio = timing["median_us"] / ours
        target = case["targets"].get(timing["name"])
        met = "" if target is None else f"{'met' if ratio >= target else 'MISSED'} (>= {target:g})"
        rate, share = _rate(case, timing["median_us"], ceilings)
        yield [
            case["name"] if index == 0 else "",
            timing["name"] + ("" if timing["method"] != "stream" else " (launches)"),
            f"{timing['median_us']:.1f}",
            f"{timing['low_us']:.1f} - {timing['high_us']:.1f}",
            f"{ratio:.2f}",
            rate,
            share,
            met,
        ]
    for name, reason in case["failures"].items():
        yield ["", name, "-", "-", "-", reason, "", ""]


def _rate(case: dict[str, Any], median_us: float, ceilings: dict[str, float]) -> tuple[str, str]:
    if case["unit"] == "fp32":
        rate = case["bytes"] / median_us * 1e6
        share = rate / ceilings["copy_bytes_per_second"] if ceilings else None
        return f"{rate / 1e12:.2f} TB/s", "" if share is None else f"{share:.0%}"
    rate = case["flop"] / median_us * 1e6
    share = rate / ceilings["bf16_flop_per_second"] if ceilings and case["unit"] == "bf16" else None
    return f"{rate / 1e12:.0f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.0f} GFLOP/s", (
        "" if share is None else f"{share:.0%}"
    )
