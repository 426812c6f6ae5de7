"""Typed options: pydantic models whose errors are one line that names the option, its value and what it takes."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, WrapValidator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from prunekit.errors import PrunekitError, UnknownNameError


@dataclass(frozen=True)
class Takes:
    """What an option takes, as its error says it: "must ``text``"; ``beyond`` is said of a value above the range."""

    text: str
    beyond: str | None = None
    choices: tuple[str, ...] = ()


def _as_given(value: object, check: typing.Callable[[object], object]) -> object:
    """The number as it was written: run folders tell 1 from 1.0."""
    check(value)
    return value


AS_GIVEN = WrapValidator(_as_given)
FINITE = Field(allow_inf_nan=False)

Flag = Annotated[bool, Strict(), Takes("be true or false")]
Text = Annotated[str, Strict(), Takes("be a text")]
Seed = Annotated[int, Strict(), Field(ge=0), Takes("be a whole number from 0 on")]
Count = Annotated[int, Strict(), Field(ge=1), Takes("be a whole number from 1 on")]
CountOrNull = Annotated[int | None, Strict(), Field(ge=1), Takes("be a whole number from 1 on or null")]
Several = Annotated[int, Strict(), Field(ge=2), Takes("be a whole number from 2 on")]
Number = Annotated[float, Strict(), FINITE, AS_GIVEN, Takes("be a number")]
FromZero = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False), AS_GIVEN, Takes("be a number from 0 on")]
AboveZero = Annotated[float, Strict(), Field(gt=0), AS_GIVEN, Takes("be a number above 0")]
Share = Annotated[
    float,
    Strict(),
    Field(ge=0, le=1, allow_inf_nan=False),
    AS_GIVEN,
    Takes("be a number from 0 on", beyond="lie in [0, 1]"),
]
ShareAboveZero = Annotated[float, Strict(), Field(gt=0, le=1), AS_GIVEN, Takes("lie in (0, 1]")]


def choice(names: Iterable[str]) -> Any:
    """The annotation of an option that takes one of ``names``."""
    known = tuple(names)

    def check(value: str) -> str:
        if value not in known:
            raise ValueError
        return value

    return Annotated[str, AfterValidator(check), Takes(f"be one of {', '.join(known)}", choices=known)]


class Options(BaseModel):
    """Base of typed options.

    Raises:
        PrunekitError: on construction, for the first option that does not fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    group: ClassVar[str] = ""
    """What stands before an option's name on the command line: "train" for train.max_steps."""

    owner: ClassVar[str] = ""
    """Whose options they are, in the error of an unknown one; the group by default."""

    def __init__(self, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self._line(error.errors()[0]) from None

    @classmethod
    def _line(cls, detail: ErrorDetails) -> PrunekitError:
        """The error of one option as one line."""
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, PrunekitError):  # of options within options, and of what two options say together
            return cause
        name, *places = detail["loc"] or ("",)
        path = (f"{cls.group}." if cls.group else "") + str(name)
        if detail["type"] == "extra_forbidden":
            return UnknownNameError(f"option of {cls.owner or cls.group}:", str(name), cls.model_fields)
        if detail["type"] == "missing":
            return PrunekitError(f"{path} is missing")
        takes = [part for part in _notes(cls.model_fields[str(name)]) if isinstance(part, Takes)]
        index = next((place for place in places if isinstance(place, int)), None)
        taken = takes[-1 if index is not None else 0] if takes else Takes(f"fit: {detail['msg']}")
        path += "" if index is None else f"[{index}]"
        if taken.choices:
            return UnknownNameError(path, str(detail["input"]), taken.choices)
        above = detail["type"].startswith("less_than")
        return PrunekitError(f"{path} must {(above and taken.beyond) or taken.text}, not {detail['input']!r}")


def _notes(field: FieldInfo) -> list[object]:
    """What stands beside a field's type, the outermost first, also within a list or an optional."""
    notes: list[object] = list(field.metadata)
    pending: list[Any] = [field.annotation]
    while pending:
        annotation = pending.pop(0)
        if typing.get_origin(annotation) is Annotated:
            notes += annotation.__metadata__
            annotation = annotation.__origin__
        pending += typing.get_args(annotation)
    return notes


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The words that a field of ``Options`` takes; none if it takes others."""
    return next((note.choices for note in _notes(field) if isinstance(note, Takes) and note.choices), ())
