"""Boxes: every notation against pixels counted one by one."""

from __future__ import annotations

import random

import pytest

from prunekit.data.boxes import STYLES, overlap, parse_box
from prunekit.data.example import Example
from prunekit.metrics import corpus_metrics, metric
from prunekit.metrics.grounding import iou


def draw(rng: random.Random, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box with corners on pixels."""
    (left, right), (top, bottom) = (sorted(rng.sample(range(side + 1), 2)) for side in size)
    return left, top, right, bottom


def counted(one: tuple[int, ...], two: tuple[int, ...]) -> float:
    """Overlap by the pixels that both boxes have, and those that one has."""
    pixels = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (one, two)]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


@pytest.mark.parametrize("name", [name for name in STYLES if name != "llava_crop"])
def test_overlap_in_each_notation_is_that_of_the_pixels(name):
    rng, style = random.Random(7), STYLES[name]
    for _ in range(60):
        size = rng.randint(20, 60), rng.randint(20, 60)
        one, two = draw(rng, size), draw(rng, size)
        ours = iou(style.write(two, size), style.write(one, size))
        assert ours == pytest.approx(counted(one, two), abs=0.12 if name == "paligemma" else 0.02)


def test_a_cropped_image_shows_the_part_of_a_box_inside_it():
    style = STYLES["llava_crop"]
    assert parse_box(style.write((0, 0, 60, 40), (80, 40))) == (0, 0, 1, 1)  # the middle square is 20 to 60
    assert parse_box(style.write((30, 10, 70, 40), (80, 40))) == (0.25, 0.25, 1, 1)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, .25,0.5,1]", (0.1, 0.25, 0.5, 1.0)),
        ("It is at [[12, 30, 500, 999]].", (12, 30, 500, 999)),  # InternVL without its special tokens
        ('```json\n[\n\t{"bbox_2d": [3, 4, 50, 60], "label": "cat"}\n]\n```', (3, 4, 50, 60)),
        ("(12,30),(500,999)", (12, 30, 500, 999)),  # Qwen2-VL likewise
        ("<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", (1, 2, 3, 4)),
        ("<loc0010><loc0020><loc0300><loc0400> cat", (20, 10, 400, 300)),  # top before left
        ("[1, 2, 3, 4] and [5, 6, 7, 8]", (1, 2, 3, 4)),
        ("(1,2),(3,4) or [5, 6, 7, 8]", (1, 2, 3, 4)),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, cat]", None),
        ("the left one", None),
        ("", None),
    ],
)
def test_boxes_are_read(text, box):
    assert parse_box(text) == box


def test_boxes_without_an_area_overlap_with_nothing():
    assert overlap((0, 0, 4, 4), (2, 2, 2, 4)) == overlap((4, 4, 0, 0), (0, 0, 4, 4)) == 0
    assert overlap((3, 3, 3, 3), (3, 3, 3, 3)) == 0


def test_half_of_the_union_is_enough():
    example = Example("0", "image", "task", "question", ("[0, 0, 10, 10]",))
    score = metric("box").score
    assert score("[0, 0, 10, 5]", example) == 1 and score("[0, 0, 10, 4.9]", example) == 0
    assert score("nowhere", example) == 0
    rows = [
        {"id": str(n), "task": "t", "answers": ["[0, 0, 10, 10]"], "prediction": text, "correct": 0,
         "dense_prediction": text, "dense_correct": 0}
        for n, text in enumerate(("[0, 0, 10, 8]", "[0, 0, 10, 5]", "no", "[20, 20, 30, 30]"))
    ]  # fmt: skip
    assert corpus_metrics("box", rows)["extra"] == {"iou": pytest.approx(0.325), "acc@0.7": 0.25, "boxes": 0.75}
