"""The rows of public benchmarks, as their copies on the hub have them (``lmms-lab/...``), in the fields of ``rows.py``.

Prompts, splits and metrics are data: ``conf/data/NAME.yaml``. What each field of a benchmark means is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.data.rows import texts
from prunekit.data.tables import Row
from prunekit.errors import RowError

Fields = dict[str, Any]


@dataclass(frozen=True)
class Join:
    """Images that stand in a configuration of their own: ``key`` of a row is ``id`` of an image."""

    key: str = "imageId"
    id: str = "id"
    image: str = "image"


@dataclass(frozen=True)
class Benchmark:
    """How to read one.

    Attributes:
        needs: columns without which the file is another one.
        fields: from a row to ``rows.FIELDS``; None for a row that the benchmark does not count.
        join: where the image is if the row has none.
        optional: further columns that ``fields`` looks at.
    """

    needs: tuple[str, ...]
    fields: Callable[[Row], Fields | None]
    join: Join | None = None
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns to read."""
        return (*self.needs, *self.optional, *(("image",) if self.join else ()))


def _gqa(row: Row) -> Fields:
    return {"id": row["id"], "image": row.get("image"), "question": row["question"], "answers": row["answer"]}


def _vqav2(row: Row) -> Fields:
    answers = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in _listed(row["answers"])]
    return {"id": row["question_id"], "image": row["image"], "question": row["question"], "answers": answers}


def _listed(value: object) -> list[object]:
    """A list of mappings; older copies have a mapping of lists."""
    if isinstance(value, Mapping):
        value = value.get("answer")
    if not isinstance(value, list):
        raise RowError(f"answers must be a list, not {value!r}")
    return value


def _textvqa(row: Row) -> Fields:
    tokens = texts("ocr_tokens", row["ocr_tokens"]) if row["ocr_tokens"] else ()
    return {**_vqav2(row), "context": f"\nReference OCR token: {', '.join(tokens)}"}


def _pope(row: Row) -> Fields:
    fields = {"image": row["image"], "question": row["question"], "answers": row["answer"], "task": row["category"]}
    return {**fields, "group": row["question_id"]}


def _mme(row: Row) -> Fields:
    question = row["question"]
    if isinstance(question, str):  # the set's own wish for yes or no makes room for the prompt's
        question = question.replace(" Please answer yes or no.", "")
    fields = {"image": row["image"], "question": question, "answers": row["answer"], "task": row["category"]}
    return {**fields, "group": row["question_id"]}


def _mmbench(row: Row) -> Fields:
    choices = [row.get(letter) for letter in "ABCDE"]
    hint, index = row.get("hint"), row["index"]
    return {
        "id": index,
        "group": index % 10**6 if isinstance(index, int) else index,  # rotations of a question: index + n · 10⁶
        "image": row["image"],
        "question": row["question"],
        "answers": row["answer"],
        "choices": [choice for choice in choices if not _blank(choice)],
        "context": "" if _blank(hint) else f"{hint}\n",
    }


def _blank(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip() in ("", "nan"))


def _scienceqa(row: Row) -> Fields | None:
    if row["image"] is None:
        return None
    hint = row.get("hint")
    fields = {"image": row["image"], "question": row["question"], "answers": row["answer"], "choices": row["choices"]}
    return {**fields, "context": f"Context: {hint}\n" if hint else ""}


def _vizwiz(row: Row) -> Fields:
    return {"id": row["question_id"], "image": row["image"], "question": row["question"], "answers": row["answers"]}


def _chartqa(row: Row) -> Fields:
    kind = row["type"].removesuffix("_test") if isinstance(row["type"], str) else row["type"]
    return {"image": row["image"], "question": row["question"], "answers": row["answer"], "task": kind}


def _docvqa(row: Row) -> Fields:
    return {"id": row["questionId"], "image": row["image"], "question": row["question"], "answers": row["answers"]}


SEED_TYPES = (
    "scene", "instance identity", "instance attribute", "instance location", "instance counting", "spatial relation",
    "instance interaction", "visual reasoning", "text recognition",
)  # fmt: skip
"""SEED-Bench's question types about images, numbered from 1 (Li et al. 2023, table 1)."""


def _seed(row: Row) -> Fields | None:
    if row.get("data_type", "image") != "image":  # the rest are questions about videos
        return None
    kind = row["question_type_id"]
    known = isinstance(kind, int) and 1 <= kind <= len(SEED_TYPES)
    return {
        "id": row["question_id"],
        "group": SEED_TYPES[kind - 1] if known else f"type {kind}",
        "image": row["image"],
        "question": row["question"],
        "answers": row["answer"],
        "choices": [row[f"choice_{letter}"] for letter in "abcd"],
    }


_ASKED = ("image", "question")
BENCHMARKS: dict[str, Benchmark] = {
    "gqa": Benchmark(("id", "imageId", "question", "answer"), _gqa, join=Join()),
    "vqav2": Benchmark((*_ASKED, "question_id", "answers"), _vqav2),
    "textvqa": Benchmark((*_ASKED, "question_id", "answers"), _vqav2),
    "textvqa_ocr": Benchmark((*_ASKED, "question_id", "answers", "ocr_tokens"), _textvqa),
    "pope": Benchmark((*_ASKED, "question_id", "answer", "category"), _pope),
    "mmbench": Benchmark((*_ASKED, "index", "answer", "A", "B"), _mmbench, optional=("C", "D", "E", "hint")),
    "mme": Benchmark((*_ASKED, "question_id", "answer", "category"), _mme),
    "scienceqa": Benchmark((*_ASKED, "choices", "answer"), _scienceqa, optional=("hint",)),
    "vizwiz": Benchmark((*_ASKED, "question_id", "answers"), _vizwiz),
    "chartqa": Benchmark((*_ASKED, "type", "answer"), _chartqa),
    "docvqa": Benchmark((*_ASKED, "questionId", "answers"), _docvqa),
    "seed": Benchmark(
        (*_ASKED, "question_id", "question_type_id", "answer", "choice_a", "choice_b", "choice_c", "choice_d"),
        _seed,
        optional=("data_type",),
    ),
}
