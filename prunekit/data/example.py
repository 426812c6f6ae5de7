"""One question about one image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypedDict

from PIL import Image

from prunekit.data.pictures import READING, Picture
from prunekit.data.render import render
from prunekit.data.scene import scene_of
from prunekit.errors import RowError


class Prediction(TypedDict, total=False):
    """One example's line of ``predictions.jsonl``: a pruned and a dense answer, or the ``error`` of an unusable row.
    ``kept`` lists the visual tokens that stay after the last cut."""

    id: str
    image_id: str
    run: str
    task: str
    question: str
    answers: list[str]
    prediction: str
    dense_prediction: str
    correct: float
    dense_correct: float
    kept: list[int]
    prompt_tokens: int
    tokens_per_layer: list[int]
    vision_tokens: list[int]
    error: str


@dataclass(frozen=True)
class Example:
    """A question, its accepted answers and where in the image the answer is.

    ``regions`` are pixel boxes (x0, y0, x1, y1) that hold what must be seen, in the image as ``image()`` gives it:
    upright. The data's metric (``prunekit.metrics``) scores an answer. For the embedded data it is right if it equals
    one of ``answers`` after ``strip().lower()``.
    """

    id: str  # "test-00012-3": split, image, question
    image_id: str  # examples about the same image share it
    task: str
    question: str  # plain text; the chat template is the processor's business
    answers: tuple[str, ...]
    regions: tuple[tuple[int, int, int, int], ...] = ()
    choices: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()  # earlier questions about the image, with their answers
    others: tuple[str, ...] = ()  # ids of further images shown with it
    place: int = 0  # of image_id among the images shown
    error: str = field(default="", repr=False)  # why the row it was read from cannot be used, naming file and row
    pictures: tuple[Picture, ...] = field(default=(), repr=False, compare=False)  # of data that are not embedded

    def image(self) -> Image.Image:
        """The image asked about; a copy, so that callers may draw on it. Raises RowError as ``images`` does."""
        return self.images()[self.place]

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of all images shown, in order."""
        return (*self.others[: self.place], self.image_id, *self.others[self.place :])

    def images(self) -> list[Image.Image]:
        """All images shown, in order.

        Raises:
            RowError: if the row or one of its images cannot be used, naming file and row.
        """
        if self.error:
            raise RowError(self.error)
        if self.pictures:
            return [picture.load() for picture in self.pictures]
        return [_image(image_id).copy() for image_id in self.image_ids]

    def digest(self) -> str:
        """Digest of all that a model is shown: the images, earlier turns, the question. Raises RowError."""
        content = hashlib.sha256(repr((self.question, self.history)).encode())
        for picture in self.pictures:
            content.update(f"{READING} {picture.digest()}".encode())
        for image in [] if self.pictures else self.images():
            content.update(f"{image.size} {image.mode}".encode() + image.tobytes())
        return content.hexdigest()[:24]


@lru_cache(maxsize=512)
def _image(image_id: str) -> Image.Image:
    return render(scene_of(image_id))
