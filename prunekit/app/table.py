"""The explorer's small table: methods over the first examples of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from prunekit.app.explore import DENSE, Explorer, Tick
from prunekit.app.query import Query
from prunekit.data.example import Example
from prunekit.errors import PrunekitError, RowError
from prunekit.evaluation.answers import Answer, answer_all
from prunekit.evaluation.faults import BatchLimit
from prunekit.evaluation.totals import Totals
from prunekit.results.numbers import ratio, with_interval

BATCH = 8
HEADINGS = ("method", "accuracy % [95 %]", "change [95 %]", "FLOPs", "KV cache", "tokens a layer")


@dataclass(frozen=True)
class Line:
    """One row under ``HEADINGS``; ``cells`` are empty past the name where the method failed with ``error``."""

    cells: tuple[str, ...]
    error: str = ""


def tabulate(
    explorer: Explorer, query: Query, count: int, tick: Tick = lambda text, done: None
) -> Iterator[list[Line]]:
    """The rows of the dense model and the query's methods on the first ``count`` examples, one more each time.

    Raises:
        PrunekitError: where the dense model can answer none of them.
    """
    examples = list(islice(explorer.examples.values(), count))
    lines: list[Line] = []
    dense: dict[str, Answer] = {}
    names = (DENSE, *query.names)
    for number, name in enumerate(names):
        done = 0

        def step(more: int) -> None:
            nonlocal done
            done += more
            tick(f"{name}: {done} of {len(examples)}", (number + done / len(examples)) / len(names))  # noqa: B023

        try:
            answers = _answers(explorer, name, query, examples, step)
            dense = dense or answers
            lines = [*lines, _line(explorer, name, examples, dense, answers)]
        except PrunekitError as error:
            if name == DENSE:
                raise
            lines = [*lines, Line((name,) + ("",) * (len(HEADINGS) - 1), " ".join(str(error).split()))]
        yield lines


def _answers(
    explorer: Explorer, name: str, query: Query, examples: list[Example], step: Callable[[int], None]
) -> dict[str, Answer]:
    """A method's answers by the examples' ids; those of examples that cannot be used are left out."""
    with explorer.lock:
        pruner = None if name == DENSE else explorer.fitted(explorer.pruner(name, query), examples[0])
        answered = answer_all(
            explorer.batcher,
            examples,
            pruner,
            limit=BatchLimit(BATCH),
            max_new_tokens=explorer.max_new_tokens,
            progress=step,
        )
        answers = {example.id: answer for example, answer in answered if not isinstance(answer, RowError)}
    if not answers:
        raise PrunekitError("none of the examples can be answered")
    return answers


def _line(
    explorer: Explorer, name: str, examples: list[Example], dense: dict[str, Answer], answers: dict[str, Answer]
) -> Line:
    """The row of a method, by the sums that an evaluation makes."""
    totals = Totals(explorer.family)
    for example in (example for example in examples if example.id in answers and example.id in dense):
        own, whole = answers[example.id], dense[example.id]
        totals.add(
            {
                "image_id": example.image_id,
                "task": example.task,
                "correct": explorer.score(own.text, example),
                "dense_correct": explorer.score(whole.text, example),
                "prompt_tokens": own.prompt_tokens,
                "tokens_per_layer": own.tokens or [own.prompt_tokens] * explorer.family.depth,
            }
        )
    accuracy, cost = totals.accuracy(), totals.cost(None)
    tokens = cost["tokens_per_layer"]
    change = with_interval(accuracy["change"]["mean"], accuracy["change_ci"]["mean"], signed=True)
    return Line(
        (
            name,
            with_interval(accuracy["accuracy"]["mean"], accuracy["accuracy_ci"]["mean"]),
            "" if name == DENSE else change,
            ratio(cost["flops_ratio"]),
            ratio(cost["kv_ratio"]),
            f"{sum(tokens) / len(tokens):.0f}",
        )
    )
