"""One question about one image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from prunekit.data.render import render
from prunekit.data.scene import scene_of


@dataclass(frozen=True)
class Example:
    """A question, its accepted answers and where in the image the answer is.

    ``regions`` are pixel boxes (x0, y0, x1, y1) of the image as rendered that hold what must be seen. An answer is
    right if it equals one of ``answers`` after ``strip().lower()``.
    """

    id: str  # "test-00012-3": split, image, question
    image_id: str  # examples about the same image share it
    task: str
    question: str  # plain text; the chat template is the processor's business
    answers: tuple[str, ...]
    regions: tuple[tuple[int, int, int, int], ...]
    choices: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()  # earlier questions about the image, with their answers
    others: tuple[str, ...] = ()  # ids of further images shown with it
    place: int = 0  # of image_id among the images shown

    def image(self) -> Image.Image:
        """The rendered image; a copy, so that callers may draw on it."""
        return _image(self.image_id).copy()

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of all images shown, in order."""
        return (*self.others[: self.place], self.image_id, *self.others[self.place :])

    def images(self) -> list[Image.Image]:
        """All images shown, in order."""
        return [_image(image_id).copy() for image_id in self.image_ids]


@lru_cache(maxsize=512)
def _image(image_id: str) -> Image.Image:
    return render(scene_of(image_id))
