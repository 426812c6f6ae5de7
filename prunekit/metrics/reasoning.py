"""Answers behind some reasoning, read by rules: MMMU's own, and MathVista's without the judge that extracts them."""

from __future__ import annotations

import ast
import re

from prunekit.data.example import Example
from prunekit.metrics.choice import LETTERS, choice

_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?e[+-]?\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?\b|\d*\.\d+|\d+\b)")
_BEFORE_ANSWER = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_ANSWER = re.compile(r"(?i)\banswer(?:\s+is|\s*:)")


def mmmu(prediction: str, example: Example) -> float:
    """1 if the letter that is named last, or of an open question an answer, is right, as the official evaluation (Yue
    et al. 2024) reads them; where that draws a letter at random, for want of any, the answer is wrong."""
    if example.choices:
        return float(last_letter(prediction, example.choices) == example.answers[0])
    wanted = [form for answer in example.answers for form in _forms(answer)]
    return float(any(_equal(said, form) for said in open_answers(prediction) for form in wanted))


def last_letter(prediction: str, options: tuple[str, ...]) -> str | None:
    """The option named last: "(B)", else "B" before a space, else "B."; of a longer answer that has none of these, the
    option whose text comes last."""
    for mark in ",.!?;:'":
        prediction = prediction.strip(mark)
    text, known = f" {prediction} ", LETTERS[: len(options)]
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if named := [letter for letter in known if form.format(letter) in text]:
            return max(named, key=lambda letter: text.rfind(place.format(letter)))
    quoted = dict(zip(known, (text.lower().rfind(option.lower()) for option in options), strict=True))
    last = max(quoted, key=lambda letter: quoted[letter])
    return last if len(text.split()) > 5 and quoted[last] >= 0 else None


def open_answers(prediction: str) -> list[str | float]:
    """What an open answer may say: the shortest end of each line behind "is", "so" and the like (in the last line "="
    too), and the numbers in it; the whole text where no line has such a word."""
    text = prediction.strip().strip(".").lower()
    lines, ends = text.split("\n"), []
    for number, line in enumerate(lines, 1):
        words = (*_BEFORE_ANSWER, "=") if number == len(lines) else _BEFORE_ANSWER
        behind = [end for word in words if word in line and (end := line.split(word)[-1].strip())]
        if behind and (shortest := min(behind, key=len)) not in ",.:;!?'":
            ends.append(shortest)
    ends = ends or [text]
    numbers = [number for end in ends for number in _NUMBER.findall(end)]
    return [form for said in (*ends, *numbers) for form in _forms(said)]


def _forms(text: str) -> list[str | float]:
    """A number to two decimals, else the text; of a single letter with a space on either side."""
    text = text.strip().lower()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _equal(said: str | float, wanted: str | float) -> bool:
    """Numbers are equal, a text has the other in it."""
    if isinstance(said, str):
        return isinstance(wanted, str) and wanted in said
    return said == wanted


def mathvista(prediction: str, example: Example) -> float:
    """1 for the option's letter by ``choice``, the whole part of a whole number, a number rounded to the answer's own
    decimals, or the same list (Lu et al. 2024, section 3.3). The number is the first behind "answer is" or "answer:",
    else the last of the text."""
    wanted = example.answers[0].strip()
    if example.choices:
        return choice(prediction, example)
    behind = _ANSWER.split(prediction)[-1]
    if wanted.startswith("["):
        lists = re.findall(r"\[[^\[\]]*\]", behind)
        return float(bool(lists) and _literal(lists[-1]) == _literal(wanted))
    numbers = [float(number.replace(",", "")) for number in _NUMBER.findall(behind.lower())]
    if not numbers:
        return 0.0
    number = numbers[0] if _ANSWER.search(prediction) else numbers[-1]
    decimals = len(wanted.partition(".")[2])
    said = round(number, decimals) if decimals else float(int(number))
    return float(said == float(wanted))


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
