"""VQA accuracy: soft agreement with ten annotators, on answers normalised as the official evaluation does.

The definition is that of https://visualqa.org/evaluation.html (Antol et al. 2015; Goyal et al. 2017); TextVQA and
VizWiz score the same way. Unlike the first official script, a question whose ten answers are all the same is
normalised too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from prunekit.data.example import Example
from prunekit.metrics.choice import choice

ARTICLES = {"a", "an", "the"}
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_COUNTED)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Not among it: the apostrophe, which parts possessives from plurals, the colon of times, the period of decimals."""

_ENDINGS = """
n't: are ca could did does do had has have is might must need sha should was were wo would ai
'd: he they it you there who what how why somebody someone something
'll: they you it that there what who how why everyone somebody someone something
're: they you what why when where
've: i they you we what who where could might must should would
's: he she that there what when where who why how somebody someone something
'm: i
"""
_ENDED = [
    f"{word}{ending}"
    for ending, words in (line.split(": ") for line in _ENDINGS.strip().splitlines())
    for word in words.split()
]
CONTRACTIONS = {spelt.replace("'", ""): spelt for spelt in (*_ENDED, "ma'am", "o'clock", "y'all")}
"""Contractions written without their apostrophe. Words that mean something else without it (its, lets, well, were,
ill, id, wed, shed) are not among them."""

_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")


def vqa(prediction: str, example: Example) -> float:
    """Mean over the annotators, each left out in turn, of min(1, agreeing others / 3). Of a single answer: equality."""
    return soft_accuracy(normalise(prediction), [normalise(answer) for answer in example.answers])


def by_row_vqa(prediction: str, example: Example) -> float:
    """``choice`` for an example with choices, ``vqa`` for another."""
    return (choice if example.choices else vqa)(prediction, example)


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """The same of texts that are normalised already."""
    if len(answers) == 1:
        return float(said == answers[0])
    agreeing = Counter(answers)[said]
    # Left out is one who agrees (agreeing times), or one who does not.
    total = agreeing * min(1.0, (agreeing - 1) / 3) + (len(answers) - agreeing) * min(1.0, agreeing / 3)
    return total / len(answers)


def normalise(answer: str) -> str:
    """An answer as the evaluation compares it: lower case, no articles, numbers as digits, contractions with their
    apostrophe, no periods but those before a digit, no other punctuation but apostrophe and colon."""
    text = " ".join(answer.split()).lower()
    words = [NUMBERS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Punctuation becomes a space; a mark that touches a space somewhere goes without one, and all marks do if a comma
    stands between digits, as in the official script."""
    joined = bool(_COMMA_IN_NUMBER.search(text))
    found = text
    for mark in PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if joined or touches else " ")
    return _PERIOD.sub("", found)
