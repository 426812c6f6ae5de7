"""Our metrics beside lmms-eval's functions for the same benchmarks, on hand-made answers: in how many pairs of a
prediction and an answer both give the same credit, and in which they do not.

Run in an environment with ``pip install -e '.[lmms]'``: ``python -m tools.measure_metrics``. No network.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prunekit.data.example import Example
from prunekit.files import put_between
from prunekit.metrics import metric
from prunekit.results.markdown import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
NUMBERS = ("12", "12.0", "12.4", "12%", "1,200", "1200", "0.12", "-3", "0", "3.14", "1e3", "nan", "")
TEXTS = (
    "",
    "red",
    "Red.",
    " a red car ",
    "a red car",
    "the red car",
    "cars",
    "12 kg",
    "$12",
    "two",
    "2",
    "yes",
    "No",
    "grey\ncat",
)
SPOKEN = (
    "It is 12", "so the answer is 12.", "The result = 12", "about 12 kg, thus 13", "12 or 13", "is red.\nAnswer red",
    "therefore 1,200 units", "the final answer is -3", "x = 3.14", "answer: 0.12",
)  # fmt: skip
LETTERS = (
    "B", "(B)", "B.", "B. cat", "b", "(b)", "The answer is B", "The answer is (B).", "Answer: B", "A or B",
    "(A) no, (B)", "I would choose option B because it purrs", "cat",
    "It is surely a cat that sits there", "A cat", "none", "", "C",
    "option b", "B, as A is wrong", "the answer is b. cat",
)  # fmt: skip
BOXES = (
    "[0.1, 0.2, 0.5, 0.6]", "[0.1,0.2,0.5,0.6]", "The box is [0.12, 0.2, 0.5, 0.55].", "[0, 0, 1, 1]", "none", "",
    "[0.3, 0.3, 0.9, 0.9] and [0.1, 0.2, 0.5, 0.6]", "[0.1, 0.2, 0.5]", "[0.5, 0.6, 0.1, 0.2]",
)  # fmt: skip
OPTIONS = ("dog", "cat", "red car", "12")
Score = Callable[[str, Example], float]


@dataclass(frozen=True)
class Pairing:
    """A metric of ours, lmms-eval's function in the same form, and what both are shown."""

    name: str
    theirs: Score
    predictions: Iterable[str]
    answers: Iterable[tuple[str, ...]]
    choices: tuple[str, ...] = ()


def pairings() -> list[Pairing]:
    """One for each benchmark of which lmms-eval has a function that needs no judge."""
    from lmms_eval.api.metrics import anls
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness
    from lmms_eval.tasks.mmmu import utils as mmmu
    from lmms_eval.tasks.mmstar.utils import exact_match
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
    from lmms_eval.tasks.refcoco.utils_rec import compute_accuracy, parse_float_sequence_within
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results

    def ocrbench(prediction: str, example: Example) -> float:
        kind = "HME100k" if example.id.startswith("Handwritten Mathematical") else "other"
        row = {"answer": [*example.answers], "dataset": kind, "question_type": ""}
        return float(ocrbench_process_results(row, [prediction])["ocrbench_accuracy"]["score"])

    def mmmu_choice(prediction: str, example: Example) -> float:
        index, letters = mmmu.get_multi_choice_info([*example.choices])
        return float(mmmu.parse_multi_choice_response(prediction, letters, index) == example.answers[0])

    def mmmu_open(prediction: str, example: Example) -> float:
        return float(mmmu.eval_open([*example.answers], mmmu.parse_open_response(prediction)))

    def refcoco(prediction: str, example: Example) -> float:
        answer = parse_float_sequence_within(example.answers[0])
        return float(compute_accuracy(parse_float_sequence_within(prediction), answer))

    def textvqa(prediction: str, example: Example) -> float:
        row = {"answers": [*example.answers], "question_id": 0}
        return float(textvqa_process_results(row, [prediction])["exact_match"])

    texts, numbers = [(text,) for text in TEXTS if text], [(number,) for number in NUMBERS if number]
    several = [("red", "a red car"), ("12", "twelve", "12 kg"), ("nothing at all", "grey cat")]
    ten = [(("red",) * yes + ("car",) * (10 - yes)) for yes in range(11)] + [("12",) * 10, ("2", "two") * 5]
    letters = [(letter,) for letter in "ABCD"]
    free = (*TEXTS, *NUMBERS, *SPOKEN)
    return [
        Pairing("ocrbench", ocrbench, free, [*texts, *numbers, *several]),
        Pairing("anls", lambda p, e: float(anls([*e.answers], [p])["anls"]), free, [*texts, *numbers, *several]),
        Pairing("relaxed", lambda p, e: float(relaxed_correctness(p, e.answers[0])), free, [*texts, *numbers]),
        Pairing("vqa", textvqa, free, ten),
        Pairing("mmmu", mmmu_choice, LETTERS, letters, OPTIONS),
        Pairing("mmmu", mmmu_open, free, [*texts, *numbers, *several]),
        Pairing("first_letter", lambda p, e: float(exact_match(p, e.answers[0])), LETTERS, letters, OPTIONS),
        Pairing("box", refcoco, BOXES, [(text,) for text in BOXES[:4]]),
    ]


def main() -> int:
    """Write the table into docs/benchmarks.md, and print it with the pairs that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=12, help="pairs that differ to print of each metric")
    given = parser.parse_args()
    random.seed(0)  # MMMU's rule draws a letter where none is named
    differing, rows = [], []
    for pairing in pairings():
        ours, pairs = metric(pairing.name), 0
        other: list[tuple[str, tuple[str, ...], float, float | str]] = []
        for prediction, answers in itertools.product(pairing.predictions, pairing.answers):
            example = Example("0", "0", "", "", answers, choices=pairing.choices)
            mine = ours.score(prediction, example)
            try:
                their: float | str = pairing.theirs(prediction, example)
            except Exception as error:
                their = type(error).__name__
            pairs += 1
            if isinstance(their, str) or abs(mine - their) > 1e-9:
                other.append((prediction, answers, mine, their))
        kind = "options" if pairing.choices else "free"
        rows.append([f"`{pairing.name}`", kind, str(pairs), str(pairs - len(other))])
        differing += [(pairing.name, *entry) for entry in other[: given.most]]
    table = markdown_table(["metric", "answers", "pairs", "same credit"], rows, align="llrr")
    print(table)
    put_between(PAGE, table, "official")
    for entry in differing:
        print(*map(repr, entry), sep="  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
