"""``streamchar eval``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .options import LongOptions, ShortOptions

app = typer.Typer(no_args_is_help=True, help="Score what the engine generates. Needs the extra eval.")


@app.command()
def short(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Directory of the engine to score; without it only the ground truth is scored."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Directory of the many-step engine that it was distilled from.")
    ] = None,
    whisper: Annotated[
        Path | None, typer.Option(help="Directory of Whisper weights for faster-whisper.")
    ] = None,
    sentences: Annotated[
        int, typer.Option(min=2, help="Number of sentences: half everyday, half never trained on.")
    ] = 50,
    identities: Annotated[int, typer.Option(min=2, help="Number of characters in the gallery.")] = 32,
    side: Annotated[
        int, typer.Option(min=32, help="Height and width of pictures in pixels, without a checkpoint.")
    ] = 96,
    seed: Annotated[int, typer.Option(help="Seed of sentences, motion and noise.")] = 0,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="JSON file to write; a table and frames are saved next to it."),
    ] = Path("eval-short.json"),
) -> None:
    """Speak held-out sentences with every source; score word error rate, lip sync, identity and speed."""
    options = ShortOptions(checkpoint, teacher, whisper, sentences, identities, side, seed, out)
    console = Console()
    with _errors_on(console):
        # Imported here, because torch takes seconds to load and --help does not need it.
        from ..media.mp4 import require_writable

        require_writable(out)
        from .short.command import score_short

        score_short(options, console)


@app.command("long")
def long_streams(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Directory of the engine to score; without it only the ground truth is scored."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the engine in the table.")] = "student",
    minutes: Annotated[int, typer.Option(min=1, max=60, help="Length of a stream in minutes.")] = 10,
    streams: Annotated[
        int, typer.Option(min=1, help="Number of streams, each with its own text and character.")
    ] = 1,
    identities: Annotated[int, typer.Option(min=2, help="Number of characters in the gallery.")] = 32,
    side: Annotated[
        int, typer.Option(min=32, help="Height and width of pictures in pixels, without a checkpoint.")
    ] = 96,
    sink: Annotated[
        int | None, typer.Option(min=0, help="Latents of the first chunk that stay in the cache.")
    ] = None,
    motion: Annotated[
        int | None, typer.Option(min=0, help="Latents of the last chunk that stay in the cache.")
    ] = None,
    without_pointer: Annotated[
        bool, typer.Option("--without-pointer", help="Follow planned durations instead of the pointer.")
    ] = False,
    interrupt_every: Annotated[
        float | None,
        typer.Option(
            min=10,
            help="Mean seconds between interruptions; each drops the chunk being made and changes the text.",
        ),
    ] = None,
    each_sentence: Annotated[
        bool,
        typer.Option("--each-sentence", help="Speak every sentence in its own session, without history."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of texts, motion and noise.")] = 0,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory of the results; streams already there are kept."),
    ] = Path("eval-long"),
) -> None:
    """Speak for minutes without a break and score every minute; a run that was stopped can be continued.

    All sources that were spoken into one directory share one table. Run the command once for each of them.
    """
    options = LongOptions(
        checkpoint=checkpoint,
        name=name,
        minutes=minutes,
        streams=streams,
        identities=identities,
        side=side,
        sink=sink,
        motion=motion,
        without_pointer=without_pointer,
        interrupt_every=interrupt_every,
        each_sentence=each_sentence,
        seed=seed,
        out=out,
    )
    console = Console()
    with _errors_on(console):
        from .long.command import score_long

        score_long(options, console)


@app.command("compare")
def compare_sources(
    directory: Annotated[Path, typer.Argument(help="Directory that eval long wrote.")],
    to: Annotated[str, typer.Option(help="Source that the others are compared with.")] = "ground truth",
) -> None:
    """Compare the means of all sources in a directory of eval long with one of them, and write compare.md.

    For each measure: the mean, the means of the first and the second half of the minutes, and the mean
    difference between corresponding minutes with its standard error.
    """
    console = Console()
    with _errors_on(console):
        from .long.run import compare
        from .tables import rich_table

        console.print(rich_table(compare(directory, to), f"{directory}, compared with {to}"))


@contextmanager
def _errors_on(console: Console) -> Iterator[None]:
    """Print an expected error in place of its traceback, and exit with status 1."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        message = str(error)
        if isinstance(error, ImportError):
            extra = "whisper" if error.name == "faster_whisper" else "eval"
            message += f"; pip install 'streamchar[{extra}]'"
        console.print(f"[red]{escape(message)}[/]")
        raise typer.Exit(1) from None
