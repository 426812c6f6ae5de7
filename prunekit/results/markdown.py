"""A Markdown table, and text that may stand in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RULES = {"l": "---", "r": "--:"}


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> str:
    """Lines of a table. ``align`` has a letter a column, ``l`` or ``r``; the last one stands for all that follow."""
    rules = [RULES[align[min(place, len(align) - 1)]] for place in range(len(headings))]
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (headings, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def escape_markdown(text: str) -> str:
    """Text that Markdown prints as it stands, on one line."""
    for special in "\\`*_|":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.replace("<", "&lt;").split())
