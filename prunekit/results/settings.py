"""How the table of a sweep is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunekit.errors import check_choice

ORDERS = ("rows", "accuracy")
USUAL = ("accuracy", "change", "over_reference", "against", "overlap", "kept", "costs")
STUDY = ("own_dense", "on_kept", "l1", "entropy", "hoyer", "minutes")


@dataclass(frozen=True)
class TableSettings:
    """How the table of a sweep is made (``table`` of the configuration).

    Attributes:
        name: of the markers in ``file``, ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; null for no table.
        reference: the row that all others are compared with, paired.
        against: further rows to compare with, each with the words for it in the heading; a row of these is compared
            with those before it alone.
        overlap: a row whose kept tokens those of all others are compared with (intersection over union).
        order: of the rows, as they were given or by accuracy.
        columns: those that are shown, in order: of ``USUAL`` and ``STUDY``.
        tasks: whether accuracies by task follow.
        compact: one matrix of rows × sections instead of a table for each section.
        claims: what is said about the rows, each to be judged (``judge``).
        note: a sentence above the table.
        file: a Markdown file whose text between the markers is replaced; null for none.
        rows: the only ones that run, null for all; claims about others are not measured.
    """

    name: str | None = None
    reference: str | None = None
    against: Mapping[str, str] = field(default_factory=dict)
    overlap: str | None = None
    order: str = "rows"
    columns: Sequence[str] = USUAL
    tasks: bool = True
    compact: bool = False
    claims: Sequence[dict[str, Any]] = ()
    note: str | None = None
    file: str | None = None
    rows: Sequence[str] | str | None = None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> TableSettings:
        """From ``table`` of the configuration."""
        check_choice("table.order", table["order"], ORDERS)
        for column in table["columns"] or ():
            check_choice("table.columns", column, (*USUAL, *STUDY))
        options = {key: value for key, value in table.items() if key in cls.__dataclass_fields__}
        return cls(**{key: value for key, value in options.items() if value is not None})
