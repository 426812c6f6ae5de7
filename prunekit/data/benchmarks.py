"""The rows of public benchmarks, as their copies on the hub have them (``lmms-lab/...``), in the fields of ``rows.py``.

Prompts, splits and metrics are data: ``conf/data/NAME.yaml``. What each field of a benchmark means is here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.data.rows import shorten, text, texts
from prunekit.data.tables import Row
from prunekit.errors import RowError

Fields = dict[str, Any]

PART = "task_type"
"""The column that names a benchmark's part, where it consists of several."""


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
        fields: from a row to ``rows.FIELDS``; None for a row that the benchmark does not count, and a list for one that
            asks ``several`` questions.
        join: where the image is if the row has none.
        optional: further columns that ``fields`` looks at.
        video: whether it asks about videos, which lie as files beside its rows.
        parts: configurations of the hub that make up the benchmark; without ``data.config`` all are asked, and ``PART``
            names a row's own.
        image: the column that holds the image, or the first of them.
    """

    needs: tuple[str, ...]
    fields: Callable[[Row], Fields | list[Fields] | None]
    join: Join | None = None
    optional: tuple[str, ...] = ()
    video: bool = False
    parts: tuple[str, ...] = ()
    several: bool = False
    image: str = "image"

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
    """InfographicVQA's rows are of the same form."""
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


def _refcoco(row: Row) -> list[Fields]:
    """An object is described several times, and each description is a question."""
    fields = {"image": row["image"], "box": row["bbox"]}
    return [{**fields, "question": sentence.strip()} for sentence in texts("answer", row["answer"])]


def _ocrbench(row: Row) -> Fields:
    return {"image": row["image"], "question": row["question"], "answers": row["answer"], "group": row["question_type"]}


def _ai2d(row: Row) -> Fields:
    answer = row["answer"]
    number = int(answer) if isinstance(answer, str) and answer.isdecimal() else answer
    return {"image": row["image"], "question": row["question"], "answers": number, "choices": row["options"]}


def _mmstar(row: Row) -> Fields:
    """The options stand in the question."""
    return {
        "id": row["index"],
        "image": row["image"],
        "question": row["question"],
        "answers": row["answer"],
        "task": row["category"],
    }


def _mmmu(row: Row) -> Fields:
    """Images stand under ``image_1`` to ``image_7``; question and options say which of them are asked about."""
    options = _literal("options", row["options"])
    asked = " ".join([text("question", row["question"]), *options])
    numbers = sorted(set(re.findall(r"<image (\d)>", asked))) or ["1"]
    answer, own = row["answer"], text("id", row["id"])
    lists = isinstance(answer, str) and answer.startswith("[")
    return {
        "id": own,
        "group": own.partition("_")[2].rpartition("_")[0],  # "validation_Art_Theory_7"
        "image": [row.get(f"image_{number}") for number in numbers],
        "question": row["question"],
        "answers": _literal("answer", answer) if lists else answer,
        "choices": options or None,
    }


def _literal(name: str, value: object) -> list[str]:
    """A list of texts, as Python writes one in a text."""
    try:
        return list(texts(name, ast.literal_eval(value))) if isinstance(value, str) and value != "[]" else []
    except (ValueError, SyntaxError):
        raise RowError(f"{name} must be a list as Python writes it, not {shorten(value)}") from None


def _hallusionbench(row: Row) -> Fields | None:
    if row["image"] is None:  # asked without a picture
        return None
    answer = {"0": "no", "1": "yes"}.get(str(row["gt_answer"]))
    parts = (row[name] for name in ("category", "subcategory", "set_id", "figure_id", "question_id"))
    own = "/".join(str(part) for part in parts)
    return {"id": own, "image": row["image"], "question": row["question"], "answers": answer}


_FLOATS = (
    "a floating-point number with {} decimal place{} and provide the final value, e.g., {}, at the end".format(*words)
    for words in (("one", "", "1.2, 1.3, 1.4"), ("two", "s", "1.23, 1.34, 1.45"))
)
HINTS = {
    "integer": "an integer answer and provide the final value, e.g., 1, 2, 3, at the end",
    "list": "a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end",
    **dict(zip(("float1", "float2"), _FLOATS, strict=True)),
}
"""What MathVista asks for, by type of answer and decimals (Lu et al. 2024, appendix)."""


def _mathvista(row: Row) -> Fields:
    """An answer is written with as many decimals as it is compared by."""
    answer, kind, unit, choices = (row[name] for name in ("answer", "answer_type", "unit", "choices"))
    fields = {"id": row["pid"], "image": row["decoded_image"]}
    question = f"{text('question', row['question'])}{f' (Unit: {unit})' if unit else ''}"
    if choices:
        number = choices.index(answer) if isinstance(choices, list) and answer in choices else answer
        return {**fields, "question": question, "answers": number, "choices": choices}
    decimals = int(row["precision"] or 0) if kind == "float" else 0
    if (hint := HINTS.get(f"float{decimals}" if kind == "float" else str(kind))) is None:
        raise RowError(f"answer_type must be integer, float or list, not {shorten(kind)} with {decimals} decimals")
    try:
        written = f"{float(answer):.{decimals}f}" if kind == "float" else answer
    except (TypeError, ValueError):
        raise RowError(f"answer must be a number, not {shorten(answer)}") from None
    return {**fields, "question": question, "answers": written, "context": hint}


def _realworldqa(row: Row) -> Fields:
    """A question holds its options, and the wish for a letter, a word or a number."""
    options = re.findall(r"(?m)^[A-Z]\. +(.+?) *$", text("question", row["question"]))
    return {"image": row["image"], "question": row["question"], "answers": row["answer"], "choices": options or None}


def _unlettered(options: Any) -> list[str]:
    """Options without the letters before them: "A. a dog", "(B) a cat"."""
    return [re.sub(r"^\s*\(?[A-Z][.)]\s*", "", option) for option in texts("options", options)]


def _videomme(row: Row) -> Fields:
    fields = {"id": row["question_id"], "video": row["videoID"], "task": row["duration"], "question": row["question"]}
    return {**fields, "answers": row["answer"], "choices": _unlettered(row["options"])}


MVBENCH: dict[str, str] = {
    "action_sequence": "star/Charades_segment",
    "action_prediction": "star/Charades_segment",
    "action_antonym": "ssv2_video_mp4",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video_segment",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "counterfactual_inference": "clevrer/video_validation",
}
"""MVBench's tasks (Li et al. 2024, table 1), and where their videos lie in its repository's revision ``video``."""


def _mvbench(row: Row) -> Fields:
    task = text(PART, row[PART])
    if task not in MVBENCH:
        raise RowError(f"{PART} must be one of MVBench's tasks, not {shorten(task)}")
    fields = {"video": f"{MVBENCH[task]}/{text('video', row['video'])}", "task": task, "question": row["question"]}
    return {**fields, "answers": row["answer"], "choices": row["candidates"]}


def _mlvu(row: Row) -> Fields:
    """The options stand in the question's further lines, and under ``candidates`` where a copy has that column."""
    question, *options = text("question", row["question"]).splitlines()
    choices = row.get("candidates") or _unlettered([line for line in options if line.strip()])
    fields = {"video": row["video_name"], "task": row["task_type"], "question": question}
    return {**fields, "answers": row["answer"], "choices": choices}


def _longvideobench(row: Row) -> Fields:
    options = [row[f"option{number}"] for number in range(5)]
    return {
        "id": row["id"],
        "group": f"{row['duration_group']} s",
        "video": row["video_path"],
        "question": row["question"],
        "answers": row["correct_choice"],
        "choices": [option for option in options if not _blank(option) and option != "N/A"],
    }


def _egoschema(row: Row) -> Fields:
    answer = row["answer"]
    number = int(answer) if isinstance(answer, str) and answer.isdecimal() else answer
    fields = {"id": row["question_idx"], "video": row["video_idx"], "question": row["question"]}
    return {**fields, "answers": number, "choices": _unlettered(row["option"])}


def _nextqa(row: Row) -> Fields:
    return {
        "id": f"{row['video']}/{row['qid']}",
        "group": row["type"],
        "video": str(row["video"]) if isinstance(row["video"], int) else row["video"],
        "question": row["question"],
        "answers": row["answer"],
        "choices": [row[f"a{number}"] for number in range(5)],
    }


def _activitynetqa(row: Row) -> Fields:
    return {
        "id": row["question_id"],
        "video": f"v_{text('video_name', row['video_name'])}",
        "question": f"{text('question', row['question']).capitalize()}?",
        "answers": row["answer"],
    }


_ASKED = ("image", "question")
_REFCOCO = Benchmark(("image", "answer", "bbox"), _refcoco, several=True)
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
    "refcoco": _REFCOCO,
    "refcoco_plus": _REFCOCO,
    "refcocog": _REFCOCO,
    "ocrbench": Benchmark((*_ASKED, "answer", "question_type"), _ocrbench),
    "ai2d": Benchmark((*_ASKED, "options", "answer"), _ai2d),
    "mmstar": Benchmark((*_ASKED, "index", "answer", "category"), _mmstar),
    "mmmu": Benchmark(
        ("id", "question", "options", "answer", "image_1"),
        _mmmu,
        optional=tuple(f"image_{number}" for number in range(2, 8)),
        image="image_1",
    ),
    "hallusionbench": Benchmark(
        (*_ASKED, "category", "subcategory", "set_id", "figure_id", "question_id", "gt_answer"), _hallusionbench
    ),
    "mathvista": Benchmark(
        ("pid", "decoded_image", "question", "choices", "unit", "precision", "answer", "answer_type"),
        _mathvista,
        image="decoded_image",
    ),
    "infovqa": Benchmark((*_ASKED, "questionId", "answers"), _docvqa),
    "realworldqa": Benchmark((*_ASKED, "answer"), _realworldqa),
    "videomme": Benchmark(
        ("question_id", "videoID", "duration", "question", "options", "answer"), _videomme, video=True
    ),
    "mvbench": Benchmark(
        ("video", "question", "candidates", "answer", PART), _mvbench, video=True, parts=tuple(MVBENCH)
    ),
    "mlvu": Benchmark(("video_name", "question", "answer", "task_type"), _mlvu, optional=("candidates",), video=True),
    "longvideobench": Benchmark(
        ("id", "video_path", "duration_group", "question", "correct_choice", *(f"option{n}" for n in range(5))),
        _longvideobench,
        video=True,
    ),
    "egoschema": Benchmark(("question_idx", "video_idx", "question", "option", "answer"), _egoschema, video=True),
    "nextqa": Benchmark(
        ("video", "qid", "type", "question", "answer", *(f"a{n}" for n in range(5))), _nextqa, video=True
    ),
    "activitynetqa": Benchmark(("question_id", "video_name", "question", "answer"), _activitynetqa, video=True),
}
REFUSED: dict[str, str] = {
    "mmvet": "MM-Vet's score is a language model's opinion of each answer, and prunekit has no judge; ask it through "
    "lmms-eval (docs/lmms-eval.md), which calls one"
}
"""Benchmarks that cannot be scored here, with the reason."""
