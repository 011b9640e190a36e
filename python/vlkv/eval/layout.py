"""A table of texts, as Markdown and for the console."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.table import Table


def as_markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as Markdown: the names of the columns, then the rows, one line each."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [names, ["---"] * len(names), *rows])


def as_console(
    title: str, names: Sequence[str], rows: Sequence[Sequence[str]], ends: Collection[int] = ()
) -> Table:
    """The table for the console, with a line below the rows of the numbers `ends`. The first column is at the left."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(*row, end_section=number in ends)
    return table
