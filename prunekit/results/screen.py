"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def screen_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> Table:
    """A table. ``align`` has a letter a column, ``l`` or ``r``; the last one stands for all that follow."""
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if align[min(place, len(align) - 1)] == "l" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def show(table: Table, width: int = 120) -> None:
    """Print a table; ``width`` is that of a file, which has none of its own."""
    Console(width=None if Console().is_terminal else width).print(table)
