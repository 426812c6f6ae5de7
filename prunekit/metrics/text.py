"""Metrics that compare texts: exact match, word F1, ANLS, relaxed accuracy."""

from __future__ import annotations

import string
from collections import Counter

from prunekit.data.example import Example
from prunekit.metrics.choice import choice

ANLS_FLOOR = 0.5
TOLERANCE = 0.05
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact(prediction: str, example: Example) -> float:
    """1 if equal to an accepted answer after stripping and lower-casing."""
    return float(prediction.strip().lower() in {answer.strip().lower() for answer in example.answers})


def plain(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def exact_text(prediction: str, example: Example) -> float:
    """1 if equal to an accepted answer in lower case without punctuation (GQA)."""
    return float(plain(prediction) in {plain(answer) for answer in example.answers})


def by_row(prediction: str, example: Example) -> float:
    """``choice`` for an example with choices, ``exact_text`` for another."""
    return (choice if example.choices else exact_text)(prediction, example)


FORMULAS = "Handwritten Mathematical Expression Recognition"
"""OCRBench's group of questions that are compared without spaces, and with regard to case."""


def contains(prediction: str, example: Example) -> float:
    """1 if an accepted answer stands in the prediction, in lower case (OCRBench, Liu et al. 2024)."""
    formula = example.id.startswith(FORMULAS)

    def form(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    return float(any(form(answer) in form(prediction) for answer in example.answers))


def token_f1(prediction: str, example: Example) -> float:
    """Harmonic mean of precision and recall of the shared words, counted with repeats; the best over the answers
    (SQuAD, Rajpurkar et al. 2016, section 6.1)."""
    return max(_word_f1(plain(prediction).split(), plain(answer).split()) for answer in example.answers)


def _word_f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def anls(prediction: str, example: Example) -> float:
    """1 − normalised edit distance to the nearest answer, 0 where that distance is above 0.5; without regard to case
    (Biten et al. 2019, "Scene Text Visual Question Answering", section 5.1; at 0.5 itself, which the paper counts as
    wrong, as the official script)."""
    said = " ".join(prediction.lower().split())
    best = max(_similarity(said, " ".join(answer.lower().split())) for answer in example.answers)
    return best if best >= ANLS_FLOOR else 0.0


def _similarity(first: str, second: str) -> float:
    longest = max(len(first), len(second))
    return 1.0 - edit_distance(first, second) / longest if longest else 1.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance, one row of the table at a time."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        left, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (a != b))
    return row[-1]


def relaxed(prediction: str, example: Example) -> float:
    """1 for a number within 5 % of the answer's, or for text equal but for case (Masry et al. 2022, "ChartQA",
    section 5.1; Methani et al. 2020). As in the official script "12%" is 0.12, "1,200" no number, and an answer of zero
    is compared as text."""
    return float(any(_relaxed(prediction, answer) for answer in example.answers))


def _relaxed(prediction: str, answer: str) -> bool:
    said, wanted = number(prediction), number(answer)
    if said is not None and wanted:
        return abs(said - wanted) <= TOLERANCE * abs(wanted)
    return prediction.strip().lower() == answer.strip().lower()


def number(text: str) -> float | None:
    """The number that a text is, percent signs understood; None if it is none."""
    text = text.strip()
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    if value != value or value in (float("inf"), float("-inf")):  # "nan" and "inf" are words here
        return None
    return value / 100 if share else value
