"""How the table of a sweep is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from prunekit.options import Count, Flag, Number, Options, Takes, Text, choice

ORDERS = ("rows", "accuracy")
USUAL = ("accuracy", "change", "over_reference", "against", "overlap", "hard", "easy", "kept", "costs")
STUDY = ("own_dense", "on_kept", "l1", "entropy", "hoyer", "minutes")
Words = Annotated[dict[str, Text], Takes("be a mapping of rows to words")]
Column = choice((*USUAL, *STUDY))


class Claim(Options):
    """A sentence about rows that the table judges.

    Either the accuracy of the row ``better`` is more than ``margin`` above that of ``worse``, "dense" being a row, in
    the mean over tasks or in one ``task``; or the ``cost`` of ``row`` is ``value``, to two decimals.
    """

    group: ClassVar[str] = "sweep.table.claims"

    text: Text
    published: str | float = "–"
    better: Text | None = None
    worse: Text | None = None
    margin: Number = 0.0
    task: Text | None = None
    row: Text | None = None
    cost: Text | None = None
    value: Number | None = None

    @property
    def rows(self) -> list[str]:
        """The rows that it names."""
        return [name for name in (self.better, self.worse, self.row) if name is not None]


class TableSettings(Options):
    """How the table of a sweep is made, and what a job does for it."""

    group: ClassVar[str] = "sweep.table"

    name: Text | None = Field(None, description="of the markers in the file, <!-- NAME:begin -->; null: no table")
    reference: Text | None = Field(None, description="the row that the others are compared with, paired")
    against: Words = Field(
        default_factory=dict, description="{ROW: words}: further rows to compare with; one of them with those before it"
    )
    overlap: Text | None = Field(None, description="the row whose kept tokens those of the others are compared with")
    order: choice(ORDERS) = Field("rows", description="of the rows")  # type: ignore[valid-type]
    columns: Annotated[tuple[Column, ...], Takes("be a list of columns")] = Field(  # type: ignore[valid-type]
        USUAL, description=f"of {', '.join((*USUAL, *STUDY))}; null: the first {len(USUAL)}"
    )
    tasks: Flag = Field(True, description="accuracies by task, too")
    task_intervals: Flag = Field(False, description="their intervals as well")
    compact: Flag = Field(False, description="one matrix of rows and settings")
    labels: Words = Field(default_factory=dict, description="{ROW: name in the table}")
    claims: tuple[Claim, ...] = Field((), description="about rows, to be judged (docs/sweeps.md)")
    note: Text | None = Field(None, description="a sentence above the table")
    published: Text | None = Field(None, description="a target of conf/published.yaml, whose values stand beside ours")
    file: Text | None = Field(None, description="a Markdown file to write the table into")
    spread: Count | None = Field(None, description="examples of each job on which its scores' spread is measured")
    picture: Text | None = Field(None, description="where the picture of a trained fusion's weights is copied to")
    narrowed: bool = False
    """Whether some rows do not run: claims about those are not measured."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Mapping[str, object]) -> Mapping[str, object]:
        return {key: value for key, value in values.items() if value is not None}

    @field_validator("claims", mode="before")
    @classmethod
    def _claims(cls, claims: object) -> object:
        """Each as its own class reads it, so that an error is that of the claim."""
        return [Claim(**c) if isinstance(c, Mapping) else c for c in claims] if isinstance(claims, list) else claims
