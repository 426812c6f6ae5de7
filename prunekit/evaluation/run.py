"""One evaluation: dense and pruned answers to the same examples, metrics, and the files of the run folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import cast

from prunekit import metrics, ranks
from prunekit.cost import vision_macs
from prunekit.data.example import Example, Prediction
from prunekit.digests import id_number
from prunekit.errors import PrunekitError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.faults import BatchLimit
from prunekit.evaluation.kept import FILE as KEPT
from prunekit.evaluation.kept import record_kept
from prunekit.evaluation.loop import Loop
from prunekit.evaluation.regions import regions_for
from prunekit.evaluation.timing import prefill_ratio
from prunekit.evaluation.totals import Totals
from prunekit.evaluation.windows import Walk
from prunekit.families import Family, make_family
from prunekit.files import write_json
from prunekit.models import LoadedModel
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import component_name
from prunekit.records import rows
from prunekit.records.folder import METRICS, RUN
from prunekit.records.identity import Identity, run_name
from prunekit.records.lock import claimed
from prunekit.records.metrics import Method, Metrics
from prunekit.records.runs import SCHEMA

OUTPUTS = (METRICS, "kept.png", KEPT)
SCORER_FACTS = ("draws", "uses_regions")
TIMED_BATCH = 8


@dataclass
class Evaluation:
    """What a run found: ``metrics`` as metrics.json holds them, ``rows`` as predictions.jsonl does, by example; of a
    stream those of its first window. Examples that could not be used are not among them."""

    metrics: Metrics
    rows: list[Prediction]
    examples: list[Example]


def evaluate(
    loaded: LoadedModel,
    examples: Iterable[Example],
    pruner: Pruner,
    folder: Path,
    *,
    data: str = "mini",
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 8,
    resume: bool = False,
    overwrite: bool = False,
    batcher: Batcher | None = None,
    metric: str | None = None,
    window: int | None = None,
) -> Evaluation:
    """Evaluate ``pruner`` against the dense model and write ``metrics.json`` and ``predictions.jsonl`` to ``folder``.

    Dense answers are kept by content and not computed twice. With ``resume`` the predictions already in the folder
    stand, if they are of the same method; without it a finished run of another configuration is replaced only under
    ``overwrite``. Runs that share a ``batcher`` encode each image once. Under ``accelerate launch`` or ``torchrun`` the
    processes share the examples, the first one writes, and all return the same.

    Args:
        examples: a list, or a stream, of which a ``window`` is held at a time.
        metric: what a prediction is worth (``prunekit.metrics``); that of the data by default, else "exact".

    Raises:
        PrunekitError: for data without a usable example, a model that cannot be pruned so, a folder to resume that is
            of another configuration, and a run that in the end has not a row for every example.
        FolderError: while another process writes the folder, and for one that holds another finished run.
    """
    ranks.join()
    handle = pruner.apply(loaded.model)  # what the model cannot do is said before any work is done
    handle.remove()
    total, metric, asked = length_hint(examples, -1), metric or metric_of(examples), getattr(examples, "digest", "")
    examples, batcher = _some(examples, data), batcher or Batcher(loaded)
    identity = identity_of(loaded, pruner, data, max_new_tokens, metric, asked)
    with claimed(folder):
        done, name = _prepare(folder, identity, resume, overwrite), run_name(identity)
        limits = {side: BatchLimit(batch_size) for side in ("dense", "pruned")}
        walk = Walk(examples, batch_size, window)
        loop = Loop(batcher, pruner, folder, metrics.metric(metric).score, max_new_tokens, limits, name, done)
        loop.run(walk, None if total < 0 else total, data)
        rows.gather(folder, walk.places, name)
        totals = Totals(make_family(loaded.model))
        shown = {example.id: example for example in (examples if walk.whole else loop.head)}
        counted = list(_count(folder, totals, walk, shown, name))
        _check_count(folder, totals, walk)
        measured: Metrics = {}
        if ranks.is_first():
            record_kept(batcher, [shown[row["id"]] for row in counted], pruner, folder / KEPT)
            measured = {
                "schema": SCHEMA,
                "method": _method(pruner, handle.plan.cut_layers),
                "model": loaded.name,
                "data": data,
                "seed": seed,
                "metric": metric,
                **_measured(loop, totals),
            }
            if extra := metrics.corpus_metrics(metric, _of(walk, folder, name)):
                measured |= {"extra": extra["extra"], "dense_extra": extra["dense_extra"]}
        measured = ranks.share(measured)
        write_json(folder / METRICS, measured)
    return Evaluation(measured, counted, [shown[row["id"]] for row in counted])


def _check_count(folder: Path, totals: Totals, walk: Walk) -> None:
    """Raise unless every example that was asked has its row: other numbers are no result."""
    counted, asked = len(totals.asked) + totals.errors, len(walk.places)
    if counted != asked:
        raise PrunekitError(
            f"'{folder}': {counted} of {asked} examples have a row: something else changed {rows.FILE} during the run; "
            "resume=true asks what is missing"
        )


def metric_of(examples: Iterable[Example]) -> str:
    """The metric that data name; "exact" where they do not."""
    return getattr(examples, "metric", "exact")


def identity_of(
    loaded: LoadedModel, pruner: Pruner, data: str, max_new_tokens: int, metric: str = "exact", asked: str = ""
) -> Identity:
    """The run's identity, as ``run.json`` holds it; ``asked`` is the digest of how the data's rows become questions."""
    rest = {name: value for name, value in {"metric": metric, "asked": asked}.items() if value not in ("exact", "")}
    return {**pruner.describe(), "model": loaded.digest, "data": data, "max_new_tokens": max_new_tokens, **rest}


def _some(examples: Iterable[Example], data: str) -> Iterable[Example]:
    """The same examples, of which there is one at least."""
    if isinstance(examples, Sequence):
        first, same = next(iter(examples), None), examples
    else:
        rest = iter(examples)
        first = next(rest, None)
        same = itertools.chain([first], rest)  # type: ignore[assignment,list-item]
    if first is None:
        raise PrunekitError(f"data '{data}': no examples")
    return same


def _prepare(folder: Path, identity: Identity, resume: bool, overwrite: bool) -> set[int]:
    """Make the folder ready: ids that are done in it. By the first process; all learn what comes of it."""
    resume = ranks.share(resume)

    def make_ready() -> None:
        begun = any(rows.read(folder))
        if RUN.continues(folder, identity, resume=resume, overwrite=overwrite, begun=begun):
            rows.mend(folder, run_name(identity))
        else:
            rows.clear(folder)
        for name in OUTPUTS:  # of an earlier run: they must not pass for this one's
            (folder / name).unlink(missing_ok=True)
        RUN.write(folder, identity)

    ranks.by_first(make_ready)
    return rows.finished_ids(folder) if resume else set()


def _of(walk: Walk, folder: Path, name: str) -> Iterator[Prediction]:
    """The rows of this run and data; a folder may hold others, of a run with more examples."""
    return (row for row in rows.read(folder) if row.get("run") == name and id_number(row["id"]) in walk.places)


def _count(folder: Path, totals: Totals, walk: Walk, shown: dict[str, Example], name: str) -> Iterator[Prediction]:
    """Count the rows of this data; those of the examples ``shown``, without errors."""
    for row in _of(walk, folder, name):
        totals.add(row)
        if row["id"] in shown and not row.get("error"):
            yield row


def _measured(loop: Loop, totals: Totals) -> Metrics:
    """What a finished loop comes to."""
    limit = min(limit.size for limit in loop.limits.values())
    return {
        "examples": len(totals.asked),
        "errors": totals.errors,
        **totals.accuracy(),
        **totals.cost(_vision_macs(loop.batcher, totals.family, loop.head[0])),
        "prefill_ratio": _prefill_ratio(loop.batcher, loop.head, loop.pruner, limit),
        "prefill_ratio_includes_vision": not loop.batcher.shares(loop.pruner) or "video" in loop.head[0].media,
    }


def _method(pruner: Pruner, layers: Sequence[int]) -> Method:
    names = {kind: component_name(component) for kind, component in pruner.components.items()}
    budget = {"keep_ratio": pruner.keep_ratio, **pruner.kept_share}
    facts = {flag: True for flag in SCORER_FACTS if getattr(pruner.scorer, flag)}  # a table may lack the scorer's class
    method = {"name": pruner.name, **names, "positions": pruner.positions, **budget, "layers": list(layers), **facts}
    return cast(Method, method)


def _vision_macs(batcher: Batcher, family: Family, example: Example) -> float | None:
    """MACs of the vision encoder for the images and frames of one example. Those of a data set differ in size with some
    families only; there the first example stands for all."""
    return vision_macs(family, batcher.encoded([example]))


def _prefill_ratio(batcher: Batcher, examples: Sequence[Example], pruner: Pruner, limit: int) -> float:
    # The shortest prompts: there are enough of one length, so that nothing of the batch is padding. Of videos one
    # alone: some models take no batch of unequal lengths.
    moving = any(example.video is not None for example in examples)
    batch = next(batcher.batches(examples, 1 if moving else min(TIMED_BATCH, limit)))
    inputs = batcher.inputs(batch, pruner)
    return prefill_ratio(batcher.loaded.model, pruner, inputs, regions=regions_for(pruner, batch))
