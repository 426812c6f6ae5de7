"""Which option, or yes or no: read from free text by rules, without a judge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prunekit.data.example import Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = r"([B-Z])(?![\w'])|(A)(?![\w'])(?!\s+(?!because\b|since\b|as\b)\w)|([a-z])(?=[.,)]|\s*$)"
_SAID = re.compile(rf"\b(?i:answer|option|choice)(?:\s+is)?\s*:?\s*(?:\(([A-Za-z])\)|{_LETTER})")
_MARKED = re.compile(r"\(([A-Za-z])\)|(?<![\w'])([A-Za-z])[).:](?!\w)")
_FIRST_LETTER = re.compile(r"\(?([A-Za-z])(?:\)|[.:]|$|\n)")


def choice(prediction: str, example: Example) -> float:
    """1 if the option that the prediction names is the answer's; ``answers`` hold the letter."""
    return float(chosen(prediction, example.choices) == example.answers[0].strip().upper())


def chosen(prediction: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a prediction names, None if it names none or several.

    In this order: a letter that the prediction begins with ("B", "(b)", "B. a dog"), the letter after "answer is" and
    the like, the one letter marked as such ("... so (B)"), a capital that stands alone, an option quoted in full. "A"
    is taken for an article where words follow it.
    """
    text = prediction.strip()
    known = LETTERS[: len(options)]
    first = _FIRST_LETTER.match(text)
    if first and first[1].upper() in known:
        return first[1].upper()
    said = {"".join(groups).upper() for groups in _SAID.findall(text)} & set(known)
    marked = {"".join(groups).upper() for groups in _MARKED.findall(text)} & set(known)
    alone = {word for word in re.findall(r"(?<![\w'])[A-Z](?![\w'])", text) if word in known}
    alone -= {"A"} if re.search(r"(?<![\w'])A\s+\w", text) else set()
    for letters in (said, marked, alone, _quoted(text, options)):
        if letters:
            return next(iter(letters)) if len(letters) == 1 else None
    return None


def first_letter(prediction: str, example: Example) -> float:
    """1 if an answer begins with the right letter, bare or behind "(", "option " or "the answer is ", whatever follows
    it (MMStar's rule, Chen et al. 2024)."""
    text, letter = prediction.strip().lower().replace("\n", " "), example.answers[0].strip().lower()
    return float(any(text.startswith(f"{words}{letter}") for words in ("", "(", "option ", "the answer is ")))


def _quoted(text: str, options: Sequence[str]) -> set[str]:
    """Letters of the options whose words stand in the text; the longest first, and what it covers counts no more."""
    said, found = f" {_words(text)} ", set()
    for letter, option in sorted(zip(LETTERS, options, strict=False), key=lambda pair: -len(_words(pair[1]))):
        if (words := _words(option)) and f" {words} " in said:
            found.add(letter)
            said = said.replace(f" {words} ", " | ")
    return found


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))


def yes_no(prediction: str, example: Example) -> float:
    """1 if the prediction says what the answer ("yes" or "no") does; one that says neither is wrong."""
    said = says(prediction)
    return float(said != "" and said == says(example.answers[0]))


def says(text: str) -> str:
    """ "yes", "no" or "": the first sentence denies if it has the word no or not (POPE's rule, Li et al. 2023), and
    affirms if it has the word yes."""
    words = set(_words(re.split(r"[.!?\n]", text.strip(), maxsplit=1)[0]).split())
    if words & {"no", "not"}:
        return "no"
    return "yes" if "yes" in words else ""
