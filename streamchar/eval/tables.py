"""Format tables for files and for terminals."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        rows: cells of each row, the header first; all rows have the same length.
    """
    header, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([header, "| " + " | ".join(["---"] * len(rows[0])) + " |", *others]) + "\n"


def rich_table(rows: Sequence[Sequence[str]], title: str) -> Table:
    """Return a table for a terminal.

    Args:
        rows: cells of each row, the header first.
        title: shown above the table.
    """
    header, *others = rows
    table = Table(*header, title=title, title_justify="left")
    for row in others:
        table.add_row(*row)
    return table


def print_targets(met: Mapping[str, bool], source: str, console: Console) -> None:
    """Print the targets of a source, each with a tick or a cross."""
    for target, reached in met.items():
        console.print(f"{'[green]✓[/]' if reached else '[red]✗[/]'} {source}: {target}")
