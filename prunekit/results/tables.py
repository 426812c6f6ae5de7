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


def caption(found: Comparison) -> str:
    """What the numbers of the table are, in a few sentences."""
    images = len({q.image_id for q in found.questions})
    parts = [
        f"{found.model} on {found.data}, {len(found.questions)} questions about {images} images.",
        f"Accuracy in percent, mean over tasks, with 95 % intervals ({found.resamples:,} bootstrap draws of images, of",
        "seeds as well where there are several). Differences are paired on the same questions; p is two-sided,",
        f"adjusted by Holm over the rows compared with {found.reference}. Bold: better than every other method of its",
        f"budget, adjusted p < {SIGNIFICANT}. FLOPs, KV cache and measured prefill time are pruned over dense.",
    ]
    if controls := found.hard_controls:
        parts.append(f"Hard: only the examples that {' or '.join(controls)} (of the nearest budget) gets wrong.")
    return " ".join(parts)


def main_table(found: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of accuracy, differences and cost."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("method", lambda r: (_name(r), False)),
        ("keep", lambda r: (r.entry.keep, False)),
        ("accuracy", lambda r: (with_interval(r.accuracy["mean"], r.intervals["mean"]), "mean" in r.best)),
        ("over dense", lambda r: (_difference(r.over_dense if r.entry.runs else None), False)),
    ]
    if found.reference != DENSE:
        columns += [(f"over {found.reference}", lambda r: (_difference(r.over_reference), False))]
    columns += [
        ("p", lambda r: (_p(r.over_reference), False)),
        ("FLOPs", lambda r: (ratio(r.entry.costs["flops_ratio"]), False)),
        ("with vision", lambda r: (ratio(r.entry.costs["flops_ratio_with_vision"]), False)),
        ("KV", lambda r: (ratio(r.entry.costs["kv_ratio"]), False)),
        ("time", lambda r: (ratio(r.entry.costs["prefill_ratio"]), False)),
        ("kept", lambda r: ("all" if r.entry.kept is None else f"{r.entry.kept:.1f}", False)),
    ]
    if found.hard_controls:
        columns += [("hard", lambda r: (_hard(r), False))]
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in found.rows]


def task_table(found: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of accuracy by task."""
    rows: list[list[Cell]] = []
    for row in found.rows:
        cells = [(f"{100 * row.accuracy[task]:.1f}", task in row.best) for task in found.tasks]
        rows.append([(_name(row), False), (row.entry.keep, False), *cells])
    return ["method", "keep", *found.tasks], rows


def markdown(found: Comparison) -> str:
    """``table.md``: accuracy and cost, then accuracy by task."""
    tables = [_markdown(*main_table(found)), _markdown(*task_table(found))] if len(found.tasks) > 1 else [
        _markdown(*main_table(found))]  # fmt: skip
    notes = "\n".join(f"- {escape_markdown(note)}" for note in found.notes)
    return "\n\n".join(part for part in (escape_markdown(caption(found)), *tables, notes) if part) + "\n"


def _markdown(headings: list[str], rows: list[list[Cell]]) -> str:
    cells = [[f"**{escape_markdown(text)}**" if bold else escape_markdown(text) for text, bold in row] for row in rows]
    return markdown_table([escape_markdown(heading) for heading in headings], cells)


def latex(found: Comparison) -> str:
    """``table.tex``: the same two tables as plain ``tabular``s that need no package."""
    tables = [main_table(found)] + ([task_table(found)] if len(found.tasks) > 1 else [])
    return "\n\n".join([f"% {' '.join(caption(found).split())}", *(_latex(*table) for table in tables)]) + "\n"


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


def comma_separated(found: Comparison) -> str:
    """``table.csv``: every number, unrounded, a row an entry."""
    rows = [_record(row, found) for row in found.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _record(row: Row, found: Comparison) -> dict[str, object]:
    low, high = row.intervals["mean"]
    record: dict[str, object] = {
        "label": row.entry.label, "method": row.entry.method, "keep": row.entry.keep, "examples": len(found.questions),
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
    for task in found.tasks:
        record |= {f"accuracy/{task}": row.accuracy[task], **_ends(f"accuracy/{task}", row.intervals[task])}
    return record


def _ends(name: str, interval: list[float] | None) -> dict[str, object]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _name(row: Row) -> str:
    return f"{row.entry.method} ({row.seeds} seeds)" if row.seeds > 1 else row.entry.method


def _difference(found: Difference | None) -> str:
    return NONE if found is None else with_interval(found.value, found.interval, signed=True)


def _p(found: Difference | None) -> str:
    if found is None:
        return NONE
    return "<0.001" if found.adjusted < 0.001 else f"{found.adjusted:.3f}"


def _hard(row: Row) -> str:
    found = row.hard
    return NONE if found is None else f"{with_interval(found.accuracy, found.interval)} (n={found.examples})"
