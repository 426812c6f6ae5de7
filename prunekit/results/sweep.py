"""What a sweep over rows found: accuracies, paired differences and claims, recomputed from the files of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.files import put_between, write_json, write_whole
from prunekit.loaded import base_name
from prunekit.records.runs import Question, Run, read_run
from prunekit.records.sweep import outcomes
from prunekit.results.columns import Estimate
from prunekit.results.difficulty import groups, is_downsampled
from prunekit.results.entries import share_of
from prunekit.results.published import published_table
from prunekit.results.seeds import Side, answers, costs, kept, mean
from prunekit.results.settings import Claim, TableSettings
from prunekit.results.statistics import accuracies, intervals, iou, task_names
from prunekit.results.sweep_table import Cell, Judged, Summary, render

SEED = "seed"
"""What varies within a row and is averaged over; all else makes sections."""


def right(runs: Sequence[Run], questions: Sequence[Question], key: Side = "correct") -> np.ndarray:
    """``key`` of each example, a mean over seeds."""
    return answers(runs, [q.id for q in questions], key).mean(0)


def overlap(runs: Sequence[Run], other: Run, questions: Sequence[Question]) -> np.ndarray:
    """Intersection over union of the kept tokens with those of another run, a mean over seeds."""
    return np.mean([[iou(run.rows[q.id]["kept"], other.rows[q.id]["kept"]) for q in questions] for run in runs], axis=0)


def read(sweep: Path) -> list[Cell]:
    """All rows of a sweep's folder, each at each of its settings, in the order of the plan."""
    cells: dict[tuple[str, str], Cell] = {}
    for outcome in outcomes(sweep):
        section = ", ".join(f"{key} {value}" for key, value in outcome.values.items() if key != SEED)
        cell = cells.setdefault((outcome.row, section), Cell(outcome.row, section, outcome.label))
        if outcome.error is None:
            cell.runs.append(read_run(outcome.folder))
        elif cell.error is None:
            cell.error = outcome.error
    return list(cells.values())


def summarise(sweep: Path, settings: TableSettings) -> Summary:
    """All rows of a sweep: accuracies, paired differences with 95 % intervals, costs, claims.

    Compared are the examples that every finished run has answered.

    Raises:
        PrunekitError: if no run is finished, or the runs are of different models or data.
    """
    cells = read(sweep)
    done = [cell for cell in cells if cell.runs]
    if not done:
        reason = next((cell.error for cell in cells if cell.error), "the sweep has no rows")
        raise PrunekitError(f"table: no run in '{sweep}' is finished: {reason}")
    runs = [run for cell in done for run in cell.runs]
    for key in ("model", "data"):
        several = sorted({base_name(str(run.metrics[key])) for run in runs})
        if len(several) > 1:
            raise PrunekitError(f"table: the runs differ in their {key}: {', '.join(several)}")
    questions = common(runs)
    dense = right(done[0].runs, questions, "dense_correct")
    for cell in done:
        peers = {other.row: other.runs for other in done if other.section == cell.section}
        measure(cell, peers, questions, dense, settings)
        tell_apart(cell, control_of(cell, done), questions, dense)
    whole = {cell.row: cell for cell in done if not cell.section}
    known = {row: right(cell.runs, questions) for row, cell in whole.items()} | {"dense": dense}
    names = None if settings.narrowed else {cell.row for cell in cells} | {"dense"}
    return Summary(
        name=settings.name,
        model=base_name(str(runs[0].metrics["model"])),
        data=base_name(str(runs[0].metrics["data"])),
        examples=len(questions),
        tasks=task_names(questions),
        reference=settings.reference,
        overlap=settings.overlap,
        dense=estimate(questions, dense),
        cells=cells,
        claims=[judge(claim, known, whole, questions, names) for claim in settings.claims],
    )


def common(runs: Sequence[Run]) -> list[Question]:
    """The examples that all runs have answered, by id: so that the bootstrap draws the same images whatever order they
    were answered in."""
    answered = [{i for i, row in run.rows.items() if not row.get("error")} for run in runs]
    ids = sorted(set.intersection(*answered))
    if not ids:
        raise PrunekitError("table: the runs have no example in common")
    return [runs[0].questions[i] for i in ids]


def measure(
    cell: Cell,
    peers: Mapping[str, Sequence[Run]],
    questions: Sequence[Question],
    dense: np.ndarray,
    settings: TableSettings,
) -> None:
    """Set the estimates and numbers of a cell; ``peers`` are the runs of its section by row."""
    own, ids = right(cell.runs, questions), [q.id for q in questions]
    values = {"accuracy": own, "change": own - dense}
    if (reference := peers.get(settings.reference or "")) is not None:
        values["over_reference"] = own - right(reference, questions)
    for row in settings.against:
        if row == cell.row:
            break
        if row in peers:
            values[f"over_{row}"] = own - right(peers[row], questions)
    if (other := peers.get(settings.overlap or "")) is not None:
        values["overlap"] = overlap(cell.runs, other[0], questions)
    cell.estimates = {name: estimate(questions, value) for name, value in values.items()}
    metrics = [run.metrics for run in cell.runs]
    cell.time_with_vision = metrics[0].get("prefill_ratio_includes_vision", False)
    dense_of_its_own = right(cell.runs, questions, "dense_correct").tolist()
    cell.numbers = {
        "kept": kept(cell.runs, ids),
        **costs(cell.runs),
        "own_dense": accuracies(questions, dense_of_its_own)["mean"],
    }
    if all("spread" in m for m in metrics):
        cell.numbers |= {key: mean(m["spread"][key] for m in metrics) for key in metrics[0]["spread"]}
    if all(m.get("training_seconds") is not None for m in metrics):
        cell.numbers["training_seconds"] = mean(m["training_seconds"] for m in metrics)


def control_of(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The downsampled image of the same budget; the only one there is for a row that keeps all tokens."""
    controls = [c for c in cells if c.section == cell.section and is_downsampled(c.runs[0].method)]
    method = cell.runs[0].method
    same = [c for c in controls if share_of(c.runs[0].method) == share_of(method)]
    if not same and len(controls) == 1 and method.get("keep_ratio") == 1:
        return controls[0]
    return same[0] if same else None


def tell_apart(cell: Cell, control: Cell | None, questions: Sequence[Question], dense: np.ndarray) -> None:
    """Set a cell's estimates on the questions that its ``control`` gets wrong and on those that it gets right; of the
    control itself those of the dense model."""
    if control is None:
        return
    own = dense if control is cell else right(cell.runs, questions)
    for name, places in groups(right(control.runs, questions)[None]).items():
        key = f"dense_{name}" if control is cell else name
        cell.estimates[key] = estimate([questions[i] for i in places], own[places])
        cell.numbers[f"{name}_examples"] = len(places)


def estimate(questions: Sequence[Question], values: np.ndarray) -> Estimate:
    """Means of ``values`` (one an example) by task, and the interval of their mean."""
    numbers = values.tolist()
    each = intervals(questions, numbers)
    return Estimate(accuracies(questions, numbers), each["mean"], each)


def judge(
    claim: Claim,
    known: Mapping[str, np.ndarray],
    cells: Mapping[str, Cell],
    questions: Sequence[Question],
    names: set[str] | None,
) -> Judged:
    """Whether a claim holds here. One about accuracies holds if the paired interval lies wholly above the margin, does
    not if it lies wholly below, and is open in between; of a task without questions nothing was measured. ``names`` are
    the rows that it may name, None where some were left out."""
    for row in claim.rows:
        if names is not None and row not in names:
            raise UnknownNameError("row in sweep.table.claims:", row, names)
    if (cell := cells.get(claim.row or "")) is not None:
        cost = cell.numbers[str(claim.cost)]
        same = cost is not None and claim.value is not None and round(cost, 2) == round(claim.value, 2)
        return Judged(claim, "holds" if same else "does not hold", measured=cost)
    better, worse = known.get(claim.better or ""), known.get(claim.worse or "")
    if better is not None and worse is not None:
        over = estimate(questions, better - worse)
        if claim.task is not None:
            if claim.task not in over.by_task:  # a limit may leave no question of it
                return Judged(claim, f"not measured: of {', '.join(over.intervals)} none is '{claim.task}'")
            over = Estimate({"mean": over.by_task[claim.task]}, over.intervals[claim.task])
        low, high = over.interval or (-np.inf, np.inf)
        verdict = "holds" if low > claim.margin else "does not hold" if high < claim.margin else "open"
        return Judged(claim, verdict, difference=over)
    return Judged(claim, "not measured")


def write_results(sweep: Path, settings: TableSettings) -> list[str]:
    """``results.json`` and ``results.md`` in the sweep's folder, the same table between the markers of ``file``; the
    files' names. The table goes to standard output."""
    if settings.published is not None:
        text, record = published_table(sweep, settings.published)
    else:
        summary = summarise(sweep, settings)
        text, record = render(summary, settings), summary.record()
    write_json(sweep / "results.json", record)
    write_whole(sweep / "results.md", text)
    print(text)
    written = [str(sweep / "results.json"), str(sweep / "results.md")]
    if settings.file is not None:
        put_between(Path(settings.file), text, str(settings.name))
        written.append(settings.file)
    return written
