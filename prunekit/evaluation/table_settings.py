"""How the table of a sweep is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.errors import check_choice

ORDERS = ("rows", "accuracy")


@dataclass(frozen=True)
class Settings:
    """How the table of a sweep is made (``table`` of the configuration).

    Attributes:
        name: of the markers in ``file``, None for no table.
        reference: the row that all others are compared with, paired.
        overlap: a row whose kept tokens those of all others are compared with (intersection over union).
        order: of the rows, as they were given or by accuracy.
        tasks: whether accuracies by task follow.
        compact: one matrix of rows × sections instead of a table for each section.
        claims: what is said about the rows, each to be judged (``judge``).
        file: a Markdown file whose text between the markers is replaced, None for none.
        rows: the only ones that run, None for all; claims about others are not measured.
    """

    name: str | None = None
    reference: str | None = None
    overlap: str | None = None
    order: str = "rows"
    tasks: bool = True
    compact: bool = False
    claims: Sequence[dict[str, Any]] = ()
    file: str | None = None
    rows: Sequence[str] | str | None = None

    @classmethod
    def of(cls, table: dict[str, Any]) -> Settings:
        """From ``table`` of the configuration."""
        check_choice("table.order", table["order"], ORDERS)
        options = {key: value for key, value in table.items() if key in cls.__dataclass_fields__}
        return cls(**{**options, "claims": table["claims"] or ()})
