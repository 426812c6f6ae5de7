"""Whether a box is where it should be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.data.boxes import overlap, parse_box
from prunekit.data.example import Example
from prunekit.metrics.corpus import Side

THRESHOLD = 0.5


def iou(prediction: str, answer: str) -> float:
    """Intersection over union of two boxes of one notation; 0 for a text without a box."""
    said, wanted = parse_box(prediction), parse_box(answer)
    return 0.0 if said is None or wanted is None else overlap(said, wanted)


def box(prediction: str, example: Example) -> float:
    """1 if the boxes overlap by half of their union or more (Yu et al. 2016, "Modeling context in referring
    expressions", section 5)."""
    return float(iou(prediction, example.answers[0]) >= THRESHOLD)


def box_scores(rows: Sequence[Side]) -> dict[str, float]:
    """``iou``, its mean; ``acc@0.7``, the share of boxes that overlap by so much; ``boxes``, the share of answers that
    hold a box at all."""
    if not rows:
        return {}
    overlaps = np.array([iou(row.prediction, row.answers[0]) for row in rows])
    boxes = float(np.mean([parse_box(row.prediction) is not None for row in rows]))
    return {"iou": float(overlaps.mean()), "acc@0.7": float((overlaps >= 0.7).mean()), "boxes": boxes}
