"""Run a session and mark its steady chunks for a profiler: ``python -m profiles.steady --preset 5b``.

The first chunks fill the memory and warm everything up. What follows is bracketed by cudaProfilerStart and
cudaProfilerStop where there is a GPU, with ranges on where something takes them. Without a profiler, and on a
CPU, it prints the latency of every stage, no more.
"""

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from streamchar import ranges
from streamchar.capture import Step
from streamchar.engine import StreamCharEngine
from streamchar.session import Chunk, Speech

#: Said over and over, so that the text cannot end before the chunks do.
TEXT = "the quick brown fox jumps over the lazy dog "

PresetName = Annotated[str, typer.Option("--preset", help="tiny or 5b; by default 5b on a GPU.")]
Device = Annotated[str, typer.Option(help="cuda, cuda:1 or cpu.")]
Chunks = Annotated[int, typer.Option(min=1, help="Steady chunks to profile.")]
WarmUp = Annotated[int, typer.Option("--warm-up", min=0, help="Chunks made before them.")]
Graphs = Annotated[
    bool, typer.Option(help="Replay CUDA graphs; without them the ranges of layers enclose their kernels.")
]


def main(
    preset_name: PresetName = "",
    chunks: Chunks = 4,
    warm_up: WarmUp = 3,
    device: Device = "",
    graphs: Graphs = True,
) -> None:
    """Profile the steady chunks of a session and print their latency by stage."""
    console = Console()
    engine, speech = open_speech(preset_name, device, chunks + warm_up, graphs)
    advance(speech, warm_up)
    try:
        ranges.enable()
    except ranges.RangesUnavailableError as error:
        console.print(f"No ranges: {error}", markup=False)
    with profiled(engine.device):
        made = advance(speech, chunks)
    ranges.disable()
    console.print(latency_table(engine, made))


def open_speech(
    preset_name: str, device: str, chunks: int, graphs: bool = True
) -> tuple[StreamCharEngine, Speech]:
    """Build an engine with random weights, whose latency is that of trained ones, and let it speak.

    Args:
        preset_name: by default ``"5b"`` on a GPU and ``"tiny"`` elsewhere.
        device: by default CUDA where there is one.
        chunks: how many the speech will give.
        graphs: whether steps are captured; if not, every step is a plain call, for this process.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = preset_name or ("5b" if where.type == "cuda" else "tiny")
    if not graphs:
        Step.__call__ = _call_plainly  # type: ignore[method-assign, assignment]
    engine = StreamCharEngine.from_preset(name, random_weights=True, device=where)
    picture = engine.preset.picture
    reference = torch.rand(3, picture.height, picture.width, generator=torch.Generator().manual_seed(0))
    session = engine.open(reference * 2 - 1)
    seconds = chunks * engine.preset.seconds
    return engine, session.speak(itertools.repeat(TEXT), max_seconds=seconds)


def _call_plainly(step: Step) -> None:
    step._work()


def advance(speech: Speech, chunks: int) -> list[Chunk]:
    """Make that many chunks."""
    return [next(speech) for _ in range(chunks)]


@contextmanager
def profiled(device: torch.device) -> Iterator[None]:
    """Tell an attached profiler to record what happens inside, complete on the device at both ends."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    try:
        yield
        torch.cuda.synchronize(device)
    finally:
        torch.cuda.profiler.stop()


def latency_table(engine: StreamCharEngine, chunks: list[Chunk]) -> Table:
    """Return the latency of every stage, over the chunks given, and the share of the chunk's own duration."""
    budget = engine.preset.seconds
    name = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "CPU"
    title = f"{engine.preset.name} on {name}: {len(chunks)} chunks of {budget * 1000:.0f} ms"
    table = Table("stage", title=title, title_justify="left")
    for heading in ("median ms", "max ms", "of budget"):
        table.add_column(heading, justify="right")
    for stage in chunks[0].latency:
        seconds = [chunk.latency[stage] for chunk in chunks]
        median = statistics.median(seconds)
        cells = (f"{median * 1000:.2f}", f"{max(seconds) * 1000:.2f}", f"{median / budget:.1%}")
        table.add_row(stage, *cells, style="bold" if stage == "total" else None)
    return table


if __name__ == "__main__":
    typer.run(main)
