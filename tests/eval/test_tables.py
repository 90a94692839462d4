"""Tables for files and for terminals."""

from rich.console import Console

from streamchar.eval.tables import markdown, rich_table

ROWS = [["", "truth", "copy"], ["lips", "+0", "+3"], ["voice", "1.0", "-"]]


def test_markdown_has_a_rule_below_the_header() -> None:
    assert (
        markdown(ROWS)
        == "|  | truth | copy |\n| --- | --- | --- |\n| lips | +0 | +3 |\n| voice | 1.0 | - |\n"
    )


def test_a_terminal_shows_every_cell_and_the_title() -> None:
    console = Console(width=80)
    with console.capture() as shown:
        console.print(rich_table(ROWS, "scores"))
    text = shown.get()
    assert text.startswith("scores")
    assert all(cell in text for row in ROWS for cell in row)
