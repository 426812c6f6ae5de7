"""Boxes in the words of model families: each has a frame in which it counts, and a form in which it writes.

The overlap of two boxes does not change when an axis is scaled, so a box of the data is written down once in a family's
own frame, and answers are compared with it as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Size = tuple[int, int]
"""Width and height of an image in pixels."""


@dataclass(frozen=True)
class Style:
    """How a family of models writes boxes, and by whose name presets keep prompts for it.

    Attributes:
        frame: from a box in pixels and the image's size to the family's coordinates.
        form: the text of a box, with ``{0}`` to ``{3}`` for left, top, right and bottom.
    """

    frame: Callable[[Box, Size], Box]
    form: str

    def write(self, box: Box, size: Size) -> str:
        """The text of a box in pixels of an image of this size."""
        return self.form.format(*self.frame(box, size))


def _scaled(box: Box, by: tuple[float, float]) -> Box:
    return box[0] * by[0], box[1] * by[1], box[2] * by[0], box[3] * by[1]


def _share(box: Box, size: Size) -> Box:
    return _scaled(box, (1 / size[0], 1 / size[1]))


def _thousandths(box: Box, size: Size) -> Box:
    return _scaled(box, (1000 / size[0], 1000 / size[1]))


def _square(box: Box, size: Size, side: int) -> Box:
    """Shares of a square of this side around the middle of the image."""
    left, top = (side - size[0]) / 2, (side - size[1]) / 2
    return _share((box[0] + left, box[1] + top, box[2] + left, box[3] + top), (side, side))


def _padded(box: Box, size: Size) -> Box:
    return _square(box, size, max(size))


def _cropped(box: Box, size: Size) -> Box:
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in _square(box, size, min(size)))
    return left, top, right, bottom


def _resized(box: Box, size: Size) -> Box:
    """Pixels of the image as Qwen2.5-VL's processor resizes it, under its own limits on their number."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    high, wide = smart_resize(size[1], size[0], factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
    return _scaled(box, (wide / size[0], high / size[1]))


def _bins(box: Box, size: Size) -> Box:
    left, top, right, bottom = (min(int(edge), 1023) for edge in _scaled(box, (1024 / size[0], 1024 / size[1])))
    return left, top, right, bottom


_LIST, _JSON = "[{0:.4f}, {1:.4f}, {2:.4f}, {3:.4f}]", '{{"bbox_2d": [{0:.1f}, {1:.1f}, {2:.1f}, {3:.1f}]}}'
STYLES: dict[str, Style] = {
    "plain": Style(_share, _LIST),
    "llava": Style(_padded, _LIST),
    "llava_crop": Style(_cropped, _LIST),
    "qwen2": Style(_thousandths, "<|box_start|>({0:.1f},{1:.1f}),({2:.1f},{3:.1f})<|box_end|>"),
    "qwen2.5": Style(_resized, _JSON),
    "qwen3": Style(_thousandths, _JSON),
    "internvl": Style(_thousandths, "<box>[[{0:.1f}, {1:.1f}, {2:.1f}, {3:.1f}]]</box>"),
    "paligemma": Style(_bins, "<loc{1:04}><loc{0:04}><loc{3:04}><loc{2:04}>"),
}
"""By name. "plain" are shares of the image, for models without a notation of their own. LLaVA-1.5 learned shares of the
image padded to a square; a processor that crops the middle instead ("llava_crop") shows it nothing else."""

_N = r"\s*(-?(?:\d+(?:\.\d*)?|\.\d+))\s*"
_FORMS = (
    re.compile(rf"\[{_N},{_N},{_N},{_N}\]"),
    re.compile(rf"\({_N},{_N}\)\s*,\s*\({_N},{_N}\)"),
    re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>"),
)


def parse_box(text: str) -> Box | None:
    """The first box of a text, in whatever frame it is written; None if there is none. Decoding leaves special tokens
    such as ``<box>`` out, so that none is needed."""
    matches = [match for form in _FORMS if (match := form.search(text))]
    if not matches:
        return None
    first = min(matches, key=lambda match: match.start())
    a, b, c, d = map(float, first.groups())
    return (b, a, d, c) if first[0].startswith("<loc") else (a, b, c, d)


def overlap(one: Box, two: Box) -> float:
    """Intersection over union; 0 for a box without an area."""
    wide, high = (max(0.0, min(one[i + 2], two[i + 2]) - max(one[i], two[i])) for i in (0, 1))
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (one, two)]
    union = sum(areas) - wide * high
    return wide * high / union if min(areas) > 0 else 0.0
