"""Tables for files and for terminals."""

from collections.abc import Sequence

from rich.table import Table


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        lines: cells, all lines of the same length; the first is the head.
    """
    head, *others = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "| " + " | ".join(["---"] * len(lines[0])) + " |", *others]) + "\n"


def rich_table(lines: Sequence[Sequence[str]], title: str) -> Table:
    """Return a table for a terminal, of the same lines."""
    head, *others = lines
    table = Table(*head, title=title, title_justify="left")
    for line in others:
        table.add_row(*line)
    return table
