"""The comparison as Markdown, LaTeX and CSV. Best in bold only where it is significantly the best of its budget."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from prunekit.results.compare import SIGNIFICANT, Comparison, Difference, Row
from prunekit.results.entries import DENSE
from prunekit.results.markdown import escape_markdown, markdown_table
from prunekit.results.numbers import NONE, ratio, with_interval
from prunekit.results.seeds import COSTS

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "·": r"$\cdot$", "–": "--", "−": "$-$",
}  # fmt: skip
Cell = tuple[str, bool]
"""Text, and whether it is bold."""


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
    if controls := comparison.hard_controls:
        parts.append(f"Hard: only the examples that {' or '.join(controls)} (of the nearest budget) gets wrong.")
    return " ".join(parts)


def main_table(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of accuracy, differences and cost."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("method", lambda r: (_name(r), False)),
        ("keep", lambda r: (r.entry.keep, False)),
        ("accuracy", lambda r: (with_interval(r.accuracy["mean"], r.intervals["mean"]), "mean" in r.best)),
        ("over dense", lambda r: (_difference(r.over_dense if r.entry.runs else None), False)),
    ]
    if comparison.reference != DENSE:
        columns += [(f"over {comparison.reference}", lambda r: (_difference(r.over_reference), False))]
    columns += [
        ("p", lambda r: (_p(r.over_reference), False)),
        ("FLOPs", lambda r: (ratio(r.entry.costs["flops_ratio"]), False)),
        ("with vision", lambda r: (ratio(r.entry.costs["flops_ratio_with_vision"]), False)),
        ("KV", lambda r: (ratio(r.entry.costs["kv_ratio"]), False)),
        ("time", lambda r: (ratio(r.entry.costs["prefill_ratio"]), False)),
        ("kept", lambda r: ("all" if r.entry.kept is None else f"{r.entry.kept:.1f}", False)),
    ]
    if comparison.hard_controls:
        columns += [("hard", lambda r: (_hard(r), False))]
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in comparison.rows]


def task_table(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of accuracy by task."""
    rows: list[list[Cell]] = []
    for row in comparison.rows:
        cells = [(f"{100 * row.accuracy[task]:.1f}", task in row.best) for task in comparison.tasks]
        rows.append([(_name(row), False), (row.entry.keep, False), *cells])
    return ["method", "keep", *comparison.tasks], rows


def _all_tables(comparison: Comparison) -> list[tuple[list[str], list[list[Cell]]]]:
    return [main_table(comparison), *([task_table(comparison)] if len(comparison.tasks) > 1 else [])]


def markdown(comparison: Comparison) -> str:
    """``table.md``: accuracy and cost, then accuracy by task."""
    tables = [_markdown(*table) for table in _all_tables(comparison)]
    notes = "\n".join(f"- {escape_markdown(note)}" for note in comparison.notes)
    return "\n\n".join(part for part in (escape_markdown(caption(comparison)), *tables, notes) if part) + "\n"


def _markdown(headings: list[str], rows: list[list[Cell]]) -> str:
    cells = [[f"**{escape_markdown(text)}**" if bold else escape_markdown(text) for text, bold in row] for row in rows]
    return markdown_table([escape_markdown(heading) for heading in headings], cells)


def latex(comparison: Comparison) -> str:
    """``table.tex``: the same two tables as plain ``tabular``s that need no package."""
    tables = [_latex(*table) for table in _all_tables(comparison)]
    return "\n\n".join([f"% {' '.join(caption(comparison).split())}", *tables]) + "\n"


def _latex(headings: list[str], rows: list[list[Cell]]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", r"\hline"]
    lines += [" & ".join(map(escape_latex, headings)) + r" \\", r"\hline"]
    for row in rows:
        cells = [rf"\textbf{{{escape_latex(text)}}}" if bold else escape_latex(text) for text, bold in row]
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
    low, high = row.intervals["mean"]
    record: dict[str, object] = {
        "label": row.entry.label, "method": row.entry.method, "keep": row.entry.keep,
        "examples": len(comparison.questions),
        "accuracy": row.accuracy["mean"], "accuracy_low": low, "accuracy_high": high, "best": "mean" in row.best,
        "seeds": row.seeds, **_ends("seeds", row.seed_interval),
    }  # fmt: skip
    for name, change in (("over_dense", row.over_dense), ("over_reference", row.over_reference)):
        record |= {name: change.value if change else None, **_ends(name, change.interval if change else None)}
    versus, hard = row.over_reference, row.hard
    record |= {"reference": versus and versus.other, "p": versus and versus.p, "p_holm": versus and versus.adjusted}
    record |= {cost: row.entry.costs[cost] for cost in COSTS} | {"kept": row.entry.kept}
    record |= {"hard_control": hard and hard.control, "hard_examples": hard and hard.examples}
    record |= {"hard_accuracy": hard and hard.accuracy, **_ends("hard", hard.interval if hard else None)}
    for task in comparison.tasks:
        record |= {f"accuracy/{task}": row.accuracy[task], **_ends(f"accuracy/{task}", row.intervals[task])}
    return record


def _ends(name: str, interval: list[float] | None) -> dict[str, object]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _name(row: Row) -> str:
    return f"{row.entry.method} ({row.seeds} seeds)" if row.seeds > 1 else row.entry.method


def _difference(difference: Difference | None) -> str:
    return NONE if difference is None else with_interval(difference.value, difference.interval, signed=True)


def _p(difference: Difference | None) -> str:
    if difference is None:
        return NONE
    return "<0.001" if difference.adjusted < 0.001 else f"{difference.adjusted:.3f}"


def _hard(row: Row) -> str:
    hard = row.hard
    return NONE if hard is None else f"{with_interval(hard.accuracy, hard.interval)} (n={hard.examples})"
