"""Record steady chunks with PyTorch's profiler: ``python -m profiles.trace --out DIR --preset tiny``.

Writes ``trace.json.gz``, a Chrome trace in which ranges of stages and layers enclose their operators, and
``operators.txt``, a table of the operators (on a GPU, the kernels) that took longest, which it also prints.
It needs neither a GPU nor Nsight.
"""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function

from profiles.steady import Chunks, Device, Graphs, PresetName, WarmUp, advance, latency_table, open_speech
from streamchar import profiling


class TraceBackend:
    """Records ranges in the trace of the PyTorch profiler, which does not show NVTX ranges."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def push(self, name: str) -> None:
        """Open a range."""
        opened = record_function(name)
        opened.__enter__()
        self._open().append(opened)

    def pop(self) -> None:
        """Close the most recent range of this thread."""
        self._open().pop().__exit__(None, None, None)

    def _open(self) -> list[record_function]:
        if not hasattr(self._threads, "open"):
            self._threads.open = []
        opened: list[record_function] = self._threads.open
        return opened


def main(
    out: Annotated[Path, typer.Option(help="Folder for trace.json.gz and operators.txt.")],
    preset_name: PresetName = "",
    chunks: Chunks = 2,
    warm_up: WarmUp = 3,
    device: Device = "",
    graphs: Graphs = True,
    top: Annotated[int, typer.Option(min=1, help="Number of operators in the table.")] = 25,
) -> None:
    """Trace the steady chunks of a session."""
    engine, speech = open_speech(preset_name, device, chunks + warm_up, graphs)
    advance(speech, warm_up)
    on_gpu = engine.device.type == "cuda"
    profiling.enable(TraceBackend())
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        made = advance(speech, chunks)
        if on_gpu:
            torch.cuda.synchronize(engine.device)
    profiling.disable()
    out.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(out / "trace.json.gz"))
    operators = operator_table(profiler.key_averages(), chunks, top, on_gpu)
    with (out / "operators.txt").open("w") as file:
        Console(file=file, width=120).print(operators)
    console = Console()
    console.print(latency_table(engine, made))
    console.print(operators)
    console.print(f"{out / 'trace.json.gz'}: open in ui.perfetto.dev or chrome://tracing", soft_wrap=True)


def operator_table(events: Iterable[FunctionEventAvg], chunks: int, top: int, on_gpu: bool) -> Table:
    """Return a table of the kernels, or without a GPU the operators, by self time."""
    # An operator's time includes that of its kernels, so the sum counts only one of the two.
    kind = "CUDA" if on_gpu else "CPU"
    rows = [
        (float(event.self_device_time_total if on_gpu else event.self_cpu_time_total), event)
        for event in events
        if event.device_type.name == kind and not event.is_user_annotation
    ]
    rows.sort(key=lambda row: row[0], reverse=True)
    total = sum(microseconds for microseconds, _ in rows) or 1.0
    heading = "kernel" if on_gpu else "operator"
    table = Table(heading, title=f"Self time by {heading}", title_justify="left")
    for column in ("calls per chunk", "ms per chunk", "share"):
        table.add_column(column, justify="right")
    for microseconds, event in rows[:top]:
        cells = (f"{event.count / chunks:.1f}", f"{microseconds / chunks / 1000:.3f}")
        table.add_row(escape(str(event.key)), *cells, f"{microseconds / total:.1%}")
    return table


if __name__ == "__main__":
    typer.run(main)
