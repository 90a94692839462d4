"""``streamchar train``: one command a stage."""

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
from .loop import LoopConfig, TrainingError, run
from .parallel import processes, rank
from .stages import SHIPPED, Workshop

app = typer.Typer(add_completion=False)

DIRECTORY = Path("~/.cache/streamchar")

StageName = Annotated[
    str,
    typer.Argument(
        help="all, or one of data, vocoder, vae, decoder, orchestrator, aligner, teacher, student, rollout "
        "(or rollout-without-sink, rollout-without-pointer); or export, curves."
    ),
]
Where = Annotated[Path, typer.Option(help="Corpus, latents and checkpoints.")]


@app.command()
def train(
    stage: StageName,
    directory: Where = DIRECTORY,
    preset_name: Annotated[str, typer.Option("--preset", help="Sizes: tiny or 5b.")] = "tiny",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float | None, typer.Option(min=0, help="Save and stop after so long.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="In all, instead of the stage's own number.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    of: Annotated[str, typer.Option(help="Stage to export: teacher, student or a rollout.")] = "rollout",
    batch: Annotated[int | None, typer.Option(min=1, help="Examples of a step, in each process.")] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Split weights and optimiser over the processes of torchrun.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where export writes; streamchar/weights/PRESET by default.")
    ] = None,
) -> None:
    """Train a stage, or one after another all that ship, going on where it was left. Exit 1 when it cannot.

    Under torchrun, as many processes train together, each on its own examples.
    """
    if threads:
        torch.set_num_threads(threads)

    def loop(config: LoopConfig) -> LoopConfig:
        config = replace(config, steps=steps or config.steps, batch=batch or config.batch)
        return replace(config, shard=shard)

    console = Console()
    try:
        sizes = preset(preset_name)
        with processes(_device(device)) as own_device:
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
    """Return a device that is here.

    Raises:
        TrainingError: it is not.
    """
    # Counted, not tried out: under torchrun, every process would leave its context on the first GPU.
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
        console.print(f"{out} written")
    elif stage == "curves":
        from .curves import draw_curves

        console.print(f"{draw_curves(workshop.runs)} written")
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
