"""Numbers over all rows of a benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prunekit.metrics.choice import says


class Side(NamedTuple):
    """One side of a line of predictions.jsonl, pruned or dense; rows of one ``group`` belong together."""

    group: str
    id: str
    task: str
    answers: Sequence[str]
    prediction: str
    correct: float


PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def by(rows: Sequence[Side], key: str) -> dict[str, list[Side]]:
    """Rows by the value of ``key``, in order of appearance."""
    groups: dict[str, list[Side]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, key)].append(row)
    return dict(groups)


def f1_by_task(rows: Sequence[Side]) -> dict[str, float]:
    """POPE (Li et al. 2023): precision, recall and F1 of "yes", and how often it is said, for each split; ``f1`` is the
    mean of the splits' F1, as LLaVA-1.5's table has it."""
    found: dict[str, float] = {}
    scores = []
    for task, members in by(rows, "task").items():
        said = np.array([says(row.prediction) == "yes" for row in members])
        true = np.array([says(row.answers[0]) == "yes" for row in members])
        hits = float((said & true).sum())
        precision, recall = _ratio(hits, said.sum()), _ratio(hits, true.sum())
        scores.append(_ratio(2 * precision * recall, precision + recall))
        found |= {
            f"f1/{task}": scores[-1],
            f"precision/{task}": precision,
            f"recall/{task}": recall,
            f"yes_share/{task}": float(said.mean()),
        }
    return {"f1": float(np.mean(scores)) if scores else 0.0, **found}


def mme_scores(rows: Sequence[Side]) -> dict[str, float]:
    """MME (Fu et al. 2023): a category's score is 100 · (acc + acc+), acc+ the share of images with both questions
    right, of those with both in the run; ``perception`` and ``cognition`` are the sums over their categories, ``total``
    is the sum of both."""
    found: dict[str, float] = {}
    for category, members in by(rows, "task").items():
        acc = float(np.mean([row.correct for row in members]))
        pairs = [pair for pair in by(members, "group").values() if len(pair) == 2]
        plus = _ratio(sum(all(row.correct == 1 for row in pair) for pair in pairs), len(pairs))
        found |= {f"acc/{category}": acc, f"acc_plus/{category}": plus, f"score/{category}": 100 * (acc + plus)}
    perception, cognition = (
        sum(found.get(f"score/{category}", 0.0) for category in half) for half in (PERCEPTION, COGNITION)
    )
    return {"perception": perception, "cognition": cognition, "total": perception + cognition, **found}


def circular(rows: Sequence[Side]) -> dict[str, float]:
    """MMBench (Liu et al. 2023): ``circular`` counts a question if it is right in every rotation of its options,
    ``vanilla`` looks at the unrotated one (the first of its group) alone."""
    questions = list(by(rows, "group").values())
    if not questions:
        return {}
    right = [[row.correct == 1 for row in sorted(question, key=_rotation)] for question in questions]
    return {"circular": float(np.mean([all(r) for r in right])), "vanilla": float(np.mean([r[0] for r in right]))}


def _rotation(row: Side) -> int:
    number = row.id.partition("#")[2]
    return int(number) if number.isdecimal() else 0


def group_accuracy(rows: Sequence[Side]) -> dict[str, float]:
    """Mean over the rows of each group (SEED-Bench's question types)."""
    return {f"accuracy/{g}": float(np.mean([r.correct for r in m])) for g, m in sorted(by(rows, "group").items())}


def hallusion(rows: Sequence[Side]) -> dict[str, float]:
    """HallusionBench (Guan et al. 2024): the share of right answers (``aAcc``), of questions that are answered rightly
    about each of their figures (``qAcc``), and of figures about which every question is (``fAcc``)."""
    if not rows:
        return {}
    names = [row.id.split("/") for row in rows]  # category, subcategory, set, figure, question
    shares = {"aAcc": float(np.mean([row.correct == 1 for row in rows]))}
    for key, left_out in (("qAcc", 3), ("fAcc", 4)):
        right: dict[tuple[str, ...], bool] = {}
        for name, row in zip(names, rows, strict=True):
            group = (*name[:left_out], *name[left_out + 1 :])
            right[group] = right.get(group, True) and row.correct == 1
        shares[key] = float(np.mean(list(right.values())))
    return shares


def score_by_group(rows: Sequence[Side]) -> dict[str, float]:
    """The right answers among all rows as ``score`` (OCRBench's is out of 1000), and the mean of each group."""
    return {"score": float(sum(row.correct for row in rows)), **group_accuracy(rows)}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
