"""``streamchar train``: trains one stage or all of them."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape

from ..config import preset
from .distributed.parallel import process_group, rank
from .loop import LoopConfig, TrainingError, run
from .workshop import SHIPPED, Workshop

app = typer.Typer(add_completion=False)

DIRECTORY = Path("~/.cache/streamchar")

StageName = Annotated[
    str,
    typer.Argument(
        help="all, or one of data, vocoder, vae, decoder, orchestrator, aligner, teacher, student, rollout, "
        "rollout-without-sink, rollout-without-pointer; or export or curves."
    ),
]
Where = Annotated[Path, typer.Option(help="Directory of corpus, latents and checkpoints.")]


@app.command()
def train(
    stage: StageName,
    directory: Where = DIRECTORY,
    preset_name: Annotated[str, typer.Option("--preset", help="Preset: tiny or 5b.")] = "tiny",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Save and stop after this many minutes.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Total number of steps; the stage's default if not given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of CPU threads.")] = None,
    of: Annotated[str, typer.Option(help="Stage to export: teacher, student or a rollout.")] = "rollout",
    batch: Annotated[int | None, typer.Option(min=1, help="Examples per step in each process.")] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Shard weights and optimizer state over the torchrun processes.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for export; streamchar/weights/PRESET by default.")
    ] = None,
) -> None:
    """Train a stage, or with "all" every stage that ships; resumes from the last checkpoint.

    Under torchrun, all processes train together, each on its own examples. Exits with status 1 on an error.
    """
    if threads:
        torch.set_num_threads(threads)

    def loop(config: LoopConfig) -> LoopConfig:
        config = replace(config, steps=steps or config.steps, batch=batch or config.batch)
        return replace(config, shard=shard)

    console = Console()
    try:
        sizes = preset(preset_name)
        with process_group(_device(device)) as own_device:
            workshop = Workshop(directory.expanduser(), sizes, own_device)
            target = out or Path("streamchar/weights", preset_name)
            _train(workshop, stage, loop, minutes, of, target, console)
    except ImportError as error:
        _exit(console, f"{error}; training needs: pip install 'streamchar[train]'")
    except (ValueError, RuntimeError, OSError) as error:
        _exit(console, str(error))


def _exit(console: Console, message: str) -> None:
    console.print(f"[red]{escape(message)}[/]", soft_wrap=True)
    raise typer.Exit(1) from None


def _device(name: str) -> torch.device:
    """Return the device called ``name``.

    Raises:
        TrainingError: the device does not exist.
    """
    # Devices are counted, not tried: under torchrun, every process would create a context on the first GPU.
    count = torch.cuda.device_count()
    try:
        device = torch.device(name)
        if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < count):
            return device
    except RuntimeError:
        pass
    raise TrainingError(f"device must be cpu or one of {count} cuda devices, got {name}; try cpu")


def _train(
    workshop: Workshop,
    stage: str,
    loop: Callable[[LoopConfig], LoopConfig],
    minutes: float | None,
    of: str,
    out: Path,
    console: Console,
) -> None:
    if stage == "data":
        console.print(f"{len(workshop.corpus())} recordings")
    elif stage == "export":
        from .export import export

        export(workshop, of, out)
        console.print(f"wrote {out}")
    elif stage == "curves":
        from .curves import draw_curves

        console.print(f"wrote {draw_curves(workshop.runs)}")
    else:
        started = time.monotonic()
        for name in SHIPPED if stage == "all" else (stage,):
            left = None if minutes is None else minutes - (time.monotonic() - started) / 60
            ready = workshop.stage(name, loop)
            done = run(ready, workshop.runs, left)
            if rank() == 0:
                console.print(f"{name}: {done} of {ready.config.steps} steps")
            if done < ready.config.steps:
                break
