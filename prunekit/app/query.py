"""What a user asks the explorer: a picture or clip, a question, methods and a budget; a link or file holds the same."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from prunekit.errors import PrunekitError
from prunekit.options import Flag, Options, ShareAboveZero, Takes, Text

MOST_METHODS, MOST_LETTERS, MOST_BYTES = 4, 2000, 64 * 2**20
CONTROLS = ("random", "uniform", "oracle")
"""Methods to compare with; the oracle needs an example whose data say where the answer is."""


class Upload(Options):
    """A user's own picture or clip, held in memory: ``data`` is the encoded file in base64."""

    group: ClassVar[str] = "upload"

    name: Text = Field(description="the file's name, for errors")
    video: Flag = Field(False, description="a clip, not a picture")
    data: Text = Field(description="the file in base64", repr=False)

    def content(self) -> bytes:
        """The encoded file. Raises PrunekitError for a broken or too large one."""
        if len(self.data) * 3 // 4 > MOST_BYTES:
            raise PrunekitError(f"{self.name}: larger than {MOST_BYTES >> 20} MB")
        try:
            return base64.b64decode(self.data, validate=True)
        except binascii.Error:
            raise PrunekitError(f"{self.name}: the upload is broken") from None


class Query(Options):
    """One question to the explorer.

    Raises:
        PrunekitError: for what is missing or does not fit, in words for the page.
    """

    owner: ClassVar[str] = "a saved state"

    example: Text | None = Field(None, description="id of an example whose picture is shown")
    upload: Upload | None = Field(None, description="the picture or clip in place of an example's")
    question: Text
    methods: Annotated[tuple[Text, ...], Takes("be a list of names")]
    keep_ratio: ShareAboveZero = Field(0.25, description="share of the visual tokens that stays")
    budget: Text = Field("", description="in place of it a count, or flops:0.5, mean_tokens:64, final:64")
    compare: Annotated[tuple[Text, ...], Takes("be a list of names")] = ()
    before: Text = Field("", description="an earlier question about the same picture, to compare the choice with")

    @field_validator("question", "before")
    @classmethod
    def _fits(cls, text: str) -> str:
        if len(text) > MOST_LETTERS:
            raise PrunekitError(f"the question has {len(text)} letters, more than {MOST_LETTERS}")
        return text.strip()

    @model_validator(mode="after")
    def _complete(self) -> Query:
        if (self.example is None) == (self.upload is None):
            raise PrunekitError("pick one of the pictures, or upload one")
        if not self.question:
            raise PrunekitError("the question is empty: type one")
        if not 1 <= len(self.methods) <= MOST_METHODS:
            raise PrunekitError(f"choose one to {MOST_METHODS} methods, not {len(self.methods)}")
        return self

    @classmethod
    def parse(cls, text: str) -> Query:
        """From the JSON of a link or a saved file."""
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            entries = None
        if not isinstance(entries, dict):
            raise PrunekitError("this is no state that the explorer saved")
        return cls(**entries)

    @property
    def share(self) -> dict[str, Any]:
        """How much stays, as ``Pruner`` takes it."""
        budget = self.budget.strip()
        if not budget:
            return {"keep_ratio": self.keep_ratio}
        return {"keep_tokens": int(budget)} if budget.isdecimal() else {"budget": budget}

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen methods and those to compare with, each once."""
        return tuple(dict.fromkeys((*self.methods, *self.compare)))
