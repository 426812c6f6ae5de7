"""The table of a sweep over rows as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunekit.results.markdown import markdown_table
from prunekit.results.numbers import NONE, ratio, with_interval
from prunekit.results.settings import USUAL, TableSettings

Cell = dict[str, Any]
Column = tuple[str, Callable[[Cell], str]]
"""A heading, and the text of a cell below it."""


def render(results: dict[str, Any], settings: TableSettings) -> str:
    """Accuracy and cost of all rows, then accuracy by task, a pair of tables for each section; then the claims."""
    lines = [_head(results, settings)]
    sections = list(dict.fromkeys(cell["section"] for cell in results["cells"]))
    if settings.compact:
        lines += ["", _matrix(results["cells"], sections)]
    for section in () if settings.compact else sections:
        cells = [cell for cell in results["cells"] if cell["section"] == section]
        ran = _ordered(cells, settings.order)
        lines += ["", f"### {_title(section).capitalize()}"] if section else []
        lines += ["", _main(ran, results, settings)]
        lines += ["", _tasks(ran, results)] if settings.tasks else []
    failed = [cell for cell in results["cells"] if cell["error"] is not None]
    lines += ["", *(f"- no result for `{_name(cell)}`: {cell['error']}" for cell in failed)] if failed else []
    lines += ["", _claims(results["claims"])] if results["claims"] else []
    return "\n".join(lines).rstrip() + "\n"


def _head(results: dict[str, Any], settings: TableSettings) -> str:
    dense = results["dense"]
    accuracy = with_interval(dense["accuracy"]["mean"], dense["accuracy_ci"], unit=" %")
    text = (
        f"`{results['model']}` on `{results['data']}`, {results['examples']} questions. Dense: {accuracy}. Accuracies "
        "are means over tasks in percent; brackets are 95 % bootstrap intervals over images"
    )
    if settings.compact:
        text += ". After the stroke: FLOPs of the LLM's prefill over dense, by the gated-MLP formula."
    else:
        text += "; changes are paired on the same questions."
        if "costs" in settings.columns:
            text += (
                " Costs are pruned over dense: FLOPs of the LLM's prefill by the gated-MLP formula, the same with the "
                "vision encoder, stored keys, measured prefill time (†: with the vision encoder). Methods cut at "
                "layers of their own: read accuracies beside FLOPs."
            )
    return f"{text} {settings.note}" if settings.note else text


def _title(section: str) -> str:
    """A section in words: "keep 0.5"."""
    return section.replace("keep_ratio", "keep").replace("_", " ")


def _name(cell: Cell) -> str:
    return f"{cell['row']}, {cell['section']}" if cell["section"] else cell["row"]


def _ordered(cells: Sequence[Cell], order: str) -> list[Cell]:
    """Those that ran, as they came or the most accurate first."""
    ran = [cell for cell in cells if cell["error"] is None]
    return ran if order == "rows" else sorted(ran, key=lambda cell: (-cell["accuracy"]["mean"], cell["row"]))


def _main(cells: Sequence[Cell], results: dict[str, Any], settings: TableSettings) -> str:
    columns = _columns(results, settings)
    shown = [columns[key] for key in columns if any(key in cell for cell in cells)]
    rows = []
    for cell in cells:
        seeds = f" ({cell['seeds']} seeds)" if cell["seeds"] > 1 else ""
        rows.append([f"{cell['label']}{seeds}", *(text(cell) for _, text in shown)])
    first = "method" if settings.columns == USUAL else ""
    return markdown_table([first, *(title for title, _ in shown)], rows)


def _columns(results: dict[str, Any], settings: TableSettings) -> dict[str, Column]:
    """The columns that the settings name, by what they show of a cell."""

    def interval(name: str, **form: Any) -> Callable[[Cell], str]:
        return lambda cell: with_interval(cell[name]["mean"], cell[f"{name}_ci"], **form) if name in cell else NONE

    def number(name: str, form: str, scale: float = 1, unit: str = "") -> Callable[[Cell], str]:
        return lambda cell: NONE if cell.get(name) is None else f"{scale * cell[name]:{form}}{unit}"

    def time(cell: Cell) -> str:
        return ratio(cell["prefill_ratio"]) + (" †" if cell["time_with_vision"] else "")

    costs: dict[str, Column] = {
        "flops_ratio": ("FLOPs", number("flops_ratio", ".3f")),
        "flops_ratio_with_vision": ("with vision", number("flops_ratio_with_vision", ".3f")),
        "kv_ratio": ("KV", number("kv_ratio", ".3f")),
        "prefill_ratio": ("time", time),
    }
    against: dict[str, Column] = {
        f"over_{row}": (f"against {words}", interval(f"over_{row}", signed=True))
        for row, words in settings.against.items()
    }
    known: dict[str, Column] = {
        "accuracy": ("accuracy", interval("accuracy")),
        "change": ("against dense", interval("change", signed=True)),
        "over_reference": (f"against {results['reference']}", interval("over_reference", signed=True)),
        "overlap": (f"IoU with {results['overlap']}", interval("overlap", scale=1, digits=2)),
        "kept": ("tokens kept", number("kept", ".1f")),
        "own_dense": ("its own dense", number("own_dense", ".1f", 100)),
        "on_kept": ("attention on what stays", number("on_kept", ".1f", 100, " %")),
        "l1": ("on the image", number("l1", ".1f", 100, " %")),
        "entropy": ("entropy", number("entropy", ".3f")),
        "hoyer": ("Hoyer", number("hoyer", ".3f")),
        "training_seconds": ("minutes", number("training_seconds", ".1f", 1 / 60)),
    }
    groups = {"costs": costs, "against": against, "minutes": {"training_seconds": known["training_seconds"]}}
    shown: dict[str, Column] = {}
    for name in settings.columns:
        shown |= groups[name] if name in groups else {name: known[name]}
    return shown


def _tasks(cells: Sequence[Cell], results: dict[str, Any]) -> str:
    rows = {"dense": results["dense"]["accuracy"]} | {cell["label"]: cell["accuracy"] for cell in cells}
    shares = [[name, *(f"{100 * by_task[task]:.1f}" for task in results["tasks"])] for name, by_task in rows.items()]
    return markdown_table(["accuracy by task", *results["tasks"]], shares)


def _matrix(cells: Sequence[Cell], sections: Sequence[str]) -> str:
    """Rows × sections: accuracy with its interval, and FLOPs over dense after the stroke."""
    by_name = {(cell["label"], cell["section"]): cell for cell in cells if cell["error"] is None}

    def text(cell: Cell | None) -> str:
        if cell is None:
            return NONE
        return f"{with_interval(cell['accuracy']['mean'], cell['accuracy_ci'])} / {ratio(cell['flops_ratio'])}"

    labels = dict.fromkeys(cell["label"] for cell in cells)
    rows = [[label, *(text(by_name.get((label, section))) for section in sections)] for label in labels]
    return markdown_table(["accuracy / FLOPs", *map(_title, sections)], rows)


def _claims(claims: Sequence[dict[str, Any]]) -> str:
    def here(claim: dict[str, Any]) -> str:
        if "ci" in claim:
            return with_interval(claim["difference"], claim["ci"], signed=True)
        return ratio(claim.get("measured"))

    rows = [[claim["text"], claim["published"], here(claim), claim["verdict"]] for claim in claims]
    return markdown_table(["claim", "published", "here", "verdict"], rows, align="lrrl")
