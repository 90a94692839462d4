"""Run a session and mark its steady chunks for a profiler: ``python -m profiles.steady --preset 5b``.

The first chunks fill the cache and warm up. On a GPU the chunks after them run between cudaProfilerStart and
cudaProfilerStop. Ranges are recorded if NVTX is available. Without a profiler the script only prints the
latency of every stage.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table

from streamchar import profiling
from streamchar.engine import StreamCharEngine
from streamchar.runtime.graphs import GraphPool, Step
from streamchar.runtime.queues import QueueName
from streamchar.session import Speech
from streamchar.types import Chunk

#: Repeated without end, so that the text does not end before the chunks do.
TEXT = "the quick brown fox jumps over the lazy dog "

PresetName = Annotated[str, typer.Option("--preset", help="tiny or 5b; by default 5b on a GPU.")]
Device = Annotated[str, typer.Option(help="cuda, cuda:1 or cpu.")]
Chunks = Annotated[int, typer.Option(min=1, help="Steady chunks to profile.")]
WarmUp = Annotated[int, typer.Option("--warm-up", min=0, help="Chunks generated before them.")]
Graphs = Annotated[
    bool, typer.Option(help="Replay CUDA graphs; without them the ranges of layers enclose their kernels.")
]


class DirectStep(Step):
    """A step that is never captured, so that profilers see what runs inside it."""

    def __init__(self, name: str, work: Callable[[], None], pool: GraphPool, queue: QueueName) -> None:
        super().__init__(name, work, pool, queue)
        self.name, self.work = name, work

    def __call__(self) -> None:
        """Run the work on the current stream."""
        with profiling.span(self.name):
            self.work()


class DirectPool(GraphPool):
    """A pool whose steps are never captured."""

    def step(self, name: str, work: Callable[[], None], queue: QueueName = "main") -> Step:
        """Return ``work`` as a step that runs directly."""
        return DirectStep(name, work, self, queue)


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
        profiling.enable()
    except profiling.RangesUnavailableError as error:
        console.print(f"No ranges: {error}", markup=False)
    with profiled(engine.device):
        made = advance(speech, chunks)
    profiling.disable()
    console.print(latency_table(engine, made))


def open_speech(
    preset_name: str, device: str, chunks: int, graphs: bool = True
) -> tuple[StreamCharEngine, Speech]:
    """Build an engine and let it speak. Its weights are random; latency does not depend on them.

    Args:
        preset_name: by default ``"5b"`` on a GPU and ``"tiny"`` elsewhere.
        device: by default CUDA if available.
        chunks: number of chunks that the speech yields.
        graphs: whether the engine captures its steps in CUDA graphs; otherwise it runs them directly.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = preset_name or ("5b" if where.type == "cuda" else "tiny")
    with nullcontext() if graphs else patch("streamchar.engine.GraphPool", DirectPool):
        engine = StreamCharEngine.from_preset(name, random_weights=True, device=where)
    picture = engine.preset.picture
    reference = torch.rand(3, picture.height, picture.width, generator=torch.Generator().manual_seed(0))
    session = engine.open(reference * 2 - 1)
    seconds = chunks * engine.preset.seconds
    return engine, session.speak(itertools.repeat(TEXT), max_seconds=seconds)


def advance(speech: Speech, chunks: int) -> list[Chunk]:
    """Generate ``chunks`` chunks."""
    return [next(speech) for _ in range(chunks)]


@contextmanager
def profiled(device: torch.device) -> Iterator[None]:
    """Let an attached profiler record the block; waits for the device at both ends."""
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
    """Return the latency of every stage over all chunks, and its share of a chunk's playback time."""
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
