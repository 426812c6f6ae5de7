"""The comparison as Markdown, LaTeX and CSV. Best in bold only where it is significantly the best of its budget."""

from __future__ import annotations

import csv
import io

from prunekit.results.columns import (
    Cell,
    Column,
    Estimate,
    Line,
    Value,
    Words,
    against,
    by_task,
    columns,
    table,
    task_columns,
)
from prunekit.results.compare import SIGNIFICANT, Comparison, Row
from prunekit.results.difficulty import GROUPS
from prunekit.results.entries import DENSE
from prunekit.results.markdown import escape_markdown, markdown_table
from prunekit.results.numbers import with_interval
from prunekit.results.seeds import COSTS
from prunekit.results.statistics import Interval

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "·": r"$\cdot$", "–": "--", "−": "$-$",
}  # fmt: skip
EVERYTHING = 1e9
"""Stands for the dense model's tokens where rows are sorted by how many stay."""


def caption(comparison: Comparison) -> str:
    """What the numbers of the table are, in a few sentences."""
    images = len({q.image_id for q in comparison.questions})
    parts = [
        f"{comparison.model} on {comparison.data}, {len(comparison.questions)} questions about {images} images.",
        "Accuracy in percent, mean over tasks, with 95 % intervals",
        f"({comparison.resamples:,} bootstrap draws of images, of seeds as well where there are several).",
        "Differences are paired on the same questions; p is two-sided, adjusted by Holm over the rows compared with",
        f"{comparison.reference}. Bold: better than every other method of its budget, adjusted p < {SIGNIFICANT}.",
        "FLOPs, KV cache and measured prefill time are pruned over dense.",
    ]
    if controls := comparison.controls:
        names = " or ".join(controls)
        parts.append(f"Hard: only the examples that {names} (of the nearest budget) gets wrong; easy: the others.")
    return " ".join(parts)


def main_columns(comparison: Comparison) -> dict[str, Column]:
    """Accuracy, differences, cost, and hard and easy questions where a run tells them apart."""
    reference = {} if comparison.reference == DENSE else {"over_reference": against(comparison.reference)}
    groups = GROUPS if comparison.controls else ()
    return columns(["keep", "accuracy", "change"]) | reference | columns(["p", *COSTS, "kept", *groups])


def lines(comparison: Comparison) -> list[Line]:
    """The lines of the tables."""
    return [_line(row) for row in comparison.rows]


def _line(row: Row) -> Line:
    entry, versus = row.entry, row.over_reference
    kept = EVERYTHING if entry.kept is None else entry.kept
    values: dict[str, Value] = {
        "keep": Words(entry.keep, kept),
        "accuracy": Estimate(row.accuracy, row.intervals["mean"]),
        **entry.costs,
        "kept": Words("all", kept) if entry.kept is None else kept,
        **by_task(row.accuracy),
    }
    if entry.runs:
        values["change"] = row.over_dense.estimate
    if versus is not None:
        p = versus.adjusted if versus.interval else None
        values |= {"over_reference": versus.estimate, "p": Words("<0.001", p) if p is not None and p < 0.001 else p}
    for name, group in row.groups.items():
        share = with_interval(group.accuracy, group.interval)
        values[name] = Words(f"{share} (n={group.examples})", group.accuracy)
    best = {"accuracy" if name == "mean" else f"accuracy/{name}" for name in row.best}
    return Line(f"{entry.method} ({row.seeds} seeds)" if row.seeds > 1 else entry.method, values, best)


def main_table(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of accuracy, differences and cost."""
    return table(lines(comparison), main_columns(comparison))


def _all_tables(comparison: Comparison) -> list[tuple[list[str], list[list[Cell]]]]:
    """The main table, and where there are several tasks accuracy by task."""
    tasks = columns(["keep"]) | task_columns(comparison.tasks)
    return [main_table(comparison), *([table(lines(comparison), tasks)] if len(comparison.tasks) > 1 else [])]


def markdown(comparison: Comparison) -> str:
    """``table.md``: accuracy and cost, then accuracy by task."""
    tables = [_markdown(*table) for table in _all_tables(comparison)]
    notes = "\n".join(f"- {escape_markdown(note)}" for note in comparison.notes)
    return "\n\n".join(part for part in (escape_markdown(caption(comparison)), *tables, notes) if part) + "\n"


def _markdown(headings: list[str], rows: list[list[Cell]]) -> str:
    cells = [[f"**{text}**" if best else text for text, best in ((escape_markdown(c.text), c.best) for c in row)]
             for row in rows]  # fmt: skip
    return markdown_table([escape_markdown(heading) for heading in headings], cells)


def latex(comparison: Comparison) -> str:
    """``table.tex``: the same two tables as plain ``tabular``s that need no package."""
    tables = [_latex(*table) for table in _all_tables(comparison)]
    return "\n\n".join([f"% {' '.join(caption(comparison).split())}", *tables]) + "\n"


def _latex(headings: list[str], rows: list[list[Cell]]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", r"\hline"]
    lines += [" & ".join(map(escape_latex, headings)) + r" \\", r"\hline"]
    for row in rows:
        cells = [rf"\textbf{{{escape_latex(c.text)}}}" if c.best else escape_latex(c.text) for c in row]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(TEX.get(letter, letter) for letter in " ".join(text.split()))


def comma_separated(comparison: Comparison) -> str:
    """``table.csv``: every number, unrounded, a row an entry."""
    rows = [_record(row, comparison) for row in comparison.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _record(row: Row, comparison: Comparison) -> dict[str, object]:
    record: dict[str, object] = {
        "label": row.entry.label, "method": row.entry.method, "keep": row.entry.keep,
        "examples": len(comparison.questions),
        "accuracy": row.accuracy["mean"], **_ends("accuracy", row.intervals["mean"]), "best": "mean" in row.best,
        "seeds": row.seeds, **_ends("seeds", row.seed_interval),
    }  # fmt: skip
    for name, change in (("over_dense", row.over_dense), ("over_reference", row.over_reference)):
        record |= {name: change.value if change else None, **_ends(name, change.interval if change else None)}
    versus = row.over_reference
    tested = versus if versus is not None and versus.interval else None  # one image alone tells nothing
    record |= {"reference": versus and versus.other, "p": tested and tested.p, "p_holm": tested and tested.adjusted}
    record |= {cost: row.entry.costs[cost] for cost in COSTS} | {"kept": row.entry.kept}
    for name in GROUPS:
        group = row.groups.get(name)
        record |= {f"{name}_control": group and group.control, f"{name}_examples": group and group.examples}
        record |= {f"{name}_accuracy": group and group.accuracy, **_ends(name, group.interval if group else None)}
    for task in comparison.tasks:
        record |= {f"accuracy/{task}": row.accuracy[task], **_ends(f"accuracy/{task}", row.intervals[task])}
    return record


def _ends(name: str, interval: Interval) -> dict[str, object]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
