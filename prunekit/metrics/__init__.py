"""What an answer is worth: the benchmarks' own metrics by name, one number in [0, 1] an example.

What a benchmark computes over all its examples (POPE's F1, MME's sums) comes from the rows of predictions.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prunekit.data.example import Example, Prediction
from prunekit.errors import check_choice
from prunekit.metrics.choice import choice, first_letter, yes_no
from prunekit.metrics.corpus import (
    Side,
    circular,
    f1_by_task,
    group_accuracy,
    hallusion,
    mme_scores,
    score_by_group,
)
from prunekit.metrics.grounding import box, box_scores
from prunekit.metrics.reasoning import mathvista, mmmu
from prunekit.metrics.text import anls, by_row, contains, exact, exact_text, relaxed, token_f1
from prunekit.metrics.vqa import by_row_vqa, vqa


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        score: what a prediction is worth for an example.
        corpus: further numbers over all rows, each as ``Side`` has it.
        doc: one line.
    """

    score: Callable[[str, Example], float]
    doc: str
    corpus: Callable[[Sequence[Side]], dict[str, float]] | None = None


METRICS: dict[str, Metric] = {
    "exact": Metric(exact, "equal to an accepted answer after strip and lower case"),
    "exact_text": Metric(exact_text, "the same, without punctuation and doubled spaces"),
    "vqa": Metric(vqa, "VQA soft accuracy: leave-one-out mean of min(1, agreeing annotators / 3), normalised answers"),
    "token_f1": Metric(token_f1, "F1 of the words that prediction and answer share, the best answer counts"),
    "anls": Metric(anls, "average normalised Levenshtein similarity, nothing below 0.5"),
    "relaxed": Metric(relaxed, "numbers within 5 % of the answer, text equal but for case"),
    "choice": Metric(choice, "the letter chosen, by rules"),
    "yes_no": Metric(yes_no, "yes or no, by the first sentence"),
    "auto": Metric(by_row, "choice for a row with choices, exact_text for others"),
    "pope": Metric(yes_no, "yes_no; over all: F1, precision, recall and the share of yes, per split", f1_by_task),
    "mme": Metric(yes_no, "yes_no; over all: acc and acc+ per category, sums of perception and cognition", mme_scores),
    "mmbench": Metric(choice, "choice; over all: a question counts if right in all rotations", circular),
    "seed": Metric(choice, "choice; over all: per question type", group_accuracy),
    "choice_groups": Metric(choice, "choice; over all: per group of questions", group_accuracy),
    "first_letter": Metric(first_letter, "the letter that the answer begins with"),
    "choice_or_vqa": Metric(by_row_vqa, "choice for a row with choices, vqa for others"),
    "mmmu": Metric(
        mmmu, "the letter named last, or an open answer, by MMMU's rules; over all: per subject", group_accuracy
    ),
    "mathvista": Metric(mathvista, "the option, or the number or list behind 'answer is', by rules without a judge"),
    "hallusion": Metric(yes_no, "yes_no; over all: by answer, by question and by figure", hallusion),
    "ocrbench": Metric(contains, "an accepted answer stands in it; over all: their number, per type", score_by_group),
    "box": Metric(box, "a box that overlaps by half or more; over all: mean overlap, share at 0.7", box_scores),
}


def metric(name: str) -> Metric:
    """A metric by name; an unknown one raises with the nearest."""
    check_choice("metric", name, METRICS)
    return METRICS[name]


def corpus_metrics(name: str, rows: Iterable[Prediction]) -> dict[str, dict[str, float]]:
    """``extra`` and ``dense_extra`` of metrics.json: the metric's numbers over all rows that are not errors.

    Args:
        rows: as predictions.jsonl holds them; empty for a metric without such numbers.
    """
    corpus = metric(name).corpus
    if corpus is None:
        return {}
    listed = list(rows)
    pruned, dense = ([side for _, side in corpus_sides(listed, dense)] for dense in (False, True))
    return {"extra": corpus(pruned), "dense_extra": corpus(dense)}


def corpus_sides(rows: Iterable[Prediction], dense: bool) -> list[tuple[Prediction, Side]]:
    """The rows that are not errors, and what a corpus metric reads of each."""
    return [(row, _side(row, dense)) for row in rows if not row.get("error")]


def _side(row: Prediction, dense: bool) -> Side:
    """What a corpus metric reads of a row."""
    prediction, correct = row["prediction"], row["correct"]
    if dense:
        prediction, correct = row["dense_prediction"], row["dense_correct"]
    group = row["id"].partition("#")[0]  # rows that belong together share what stands before the "#"
    return Side(group, row["id"], row["task"], row["answers"], prediction, float(correct))


__all__ = ["METRICS", "Metric", "Side", "corpus_metrics", "corpus_sides", "metric"]
