"""One question about an image, several images, or a video."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypedDict

from PIL import Image

from prunekit.data.pictures import READING, Picture
from prunekit.data.render import render
from prunekit.data.scene import scene_of
from prunekit.data.videos import Clip, Video
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

    A ``video`` is shown after all ``pictures``; ``image_id`` then names the video.

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
    video: Video | None = field(default=None, repr=False, compare=False)

    def image(self) -> Image.Image:
        """The image asked about, of a video the middle one of the sampled frames; a copy, so that callers may draw on
        it. Raises RowError as ``images`` and ``clip`` do."""
        if (clip := self.clip()) is not None:
            return clip.frames[len(clip.frames) // 2]
        return self.images()[self.place]

    @property
    def media(self) -> tuple[str, ...]:
        """What is shown, in order: "image" or "video"."""
        shown = len(self.image_ids)
        return ("image",) * shown if self.video is None else ("image",) * (shown - 1) + ("video",)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of all images and videos shown, in order."""
        return (*self.others[: self.place], self.image_id, *self.others[self.place :])

    def images(self) -> list[Image.Image]:
        """All images shown, in order; not the frames of a video.

        Raises:
            RowError: if the row or one of its images cannot be used, naming file and row.
        """
        if self.error:
            raise RowError(self.error)
        if self.pictures or self.video is not None:
            return [picture.load() for picture in self.pictures]
        return [_image(image_id).copy() for image_id in self.image_ids]

    def clip(self) -> Clip | None:
        """The sampled frames of the video, None without one. Raises RowError if the row or the video cannot be used."""
        if self.error:
            raise RowError(self.error)
        return None if self.video is None else self.video.load()

    def digest(self) -> str:
        """Digest of all that a model is shown: images, frames, earlier turns, the question. Raises RowError."""
        content = hashlib.sha256(repr((self.question, self.history)).encode())
        for picture in self.pictures:
            content.update(f"{READING} {picture.digest()}".encode())
        if self.video is not None:
            content.update(f"{READING} {self.video.digest()}".encode())
        for image in [] if self.pictures else self.images():
            content.update(f"{image.size} {image.mode}".encode() + image.tobytes())
        return content.hexdigest()[:24]


@lru_cache(maxsize=512)
def _image(image_id: str) -> Image.Image:
    return render(scene_of(image_id))
