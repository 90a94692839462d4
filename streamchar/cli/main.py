"""The ``streamchar`` command."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from .doctor import Report, State, diagnose
from .machine import inspect_machine

# Set before torch starts its OpenMP threads. By default they busy-wait for each other so long that a chunk
# took ten times as long on cores shared with other processes. A shorter spin costs nothing on idle cores.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Streaming text-to-character generation.")

_MARKS: dict[State, str] = {
    "ok": "[green]✓[/]",
    "optional": "[dim]·[/]",
    "missing": "[yellow]+[/]",
    "broken": "[red]✗[/]",
}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"streamchar {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle options that belong to no command."""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show this machine's hardware and software, which backend is used, and what to install.

    The exit code is 0 if the package can run here.
    """
    report = diagnose(inspect_machine())
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report, Console())
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def speak(
    text: Annotated[str, typer.Argument(help="Text to speak.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="MP4 file to write.")] = Path("out.mp4"),
    preset: Annotated[str, typer.Option(help="tiny or 5b.")] = "tiny",
    reference: Annotated[Path | None, typer.Option(help="Reference image of the character.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same media.")] = 0,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop after this many seconds of media.")
    ] = None,
) -> None:
    """Speak a text into an MP4 file.

    The exit code is 1 on an error and 130 on Ctrl-C. The part written before Ctrl-C plays.
    """
    from .speak import NOISE, speak_to_file, summary_table

    console = Console()
    try:
        summary = speak_to_file(
            text, out, preset_name=preset, reference=reference, seed=seed, seconds=seconds, console=console
        )
    except KeyboardInterrupt:
        console.print("Interrupted before anything was spoken.")
        raise typer.Exit(130) from None
    except (ValueError, RuntimeError, OSError) as error:
        console.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(summary_table(summary, out))
    if summary.random_weights:
        console.print(f"[yellow]{NOISE}[/]")
    if summary.interrupted:
        console.print(f"Interrupted; {escape(str(out))} contains what was spoken.")
        raise typer.Exit(130)


#: Settings of commands that forward their arguments to another app, which is imported only when needed.
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_FORWARD, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a part of the system. --help lists the stages."""
    from ..train.cli import app as trainer

    trainer(context.args, prog_name="streamchar train")


@app.command("eval", context_settings=_FORWARD, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluate the speech and video of the weights. --help lists the protocols."""
    from ..eval.cli import app as evaluator

    evaluator(context.args, prog_name="streamchar eval")


def print_report(report: Report, console: Console) -> None:
    """Print the report as tables, then each install command on an unwrapped line of its own."""
    found = Table(title=f"streamchar {__version__}", title_justify="left", show_header=False, expand=False)
    for _ in range(4):
        found.add_column(overflow="fold")
    for part in report.components:
        found.add_row(_MARKS[part.state], part.name, escape(part.found), f"[dim]{escape(part.note)}[/]")
    console.print(found)

    if report.choices:
        choices = Table("kernels", "work", "backend", "reason", title='backend="auto"', title_justify="left")
        for choice in report.choices:
            choices.add_row(choice.stage, choice.work, f"[bold]{choice.backend}[/]", escape(choice.why))
        console.print(choices)

    for title, states in (("To install", ("missing", "broken")), ("Optional", ("optional",))):
        commands = {part.install: part for part in report.components if part.install and part.state in states}
        if commands:
            console.print(f"[bold]{title}[/]")
        for command, part in commands.items():
            console.print(f"  {escape(command)}  [dim]# {part.name}[/]", soft_wrap=True, highlight=False)
    console.print("[green]Ready.[/]" if report.ok else "[red]Cannot run here; see ✗ above.[/]")
