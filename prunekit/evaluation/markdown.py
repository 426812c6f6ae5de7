"""The table of a sweep over rows as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.evaluation.table_settings import Settings

COSTS = ("flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio")


def render(results: dict[str, Any], settings: Settings) -> str:
    """Accuracy and cost of all rows, then accuracy by task, a pair of tables for each section; then the claims."""
    lines = [_head(results, settings.compact)]
    sections = list(dict.fromkeys(cell["section"] for cell in results["cells"]))
    if settings.compact:
        lines += ["", *_matrix(results["cells"], sections)]
    for section in () if settings.compact else sections:
        cells = [cell for cell in results["cells"] if cell["section"] == section]
        ran = _ordered(cells, settings.order)
        lines += ["", f"### {_title(section).capitalize()}"] if section else []
        lines += ["", *_main(ran, results)]
        lines += ["", *_tasks(ran, results)] if settings.tasks else []
    failed = [cell for cell in results["cells"] if cell["error"] is not None]
    lines += ["", *(f"- no result for `{_name(cell)}`: {cell['error']}" for cell in failed)] if failed else []
    lines += ["", *_claims(results["claims"])] if results["claims"] else []
    return "\n".join(lines).rstrip() + "\n"


def _head(results: dict[str, Any], compact: bool) -> str:
    low, high = results["dense"]["accuracy_ci"]
    dense = 100 * results["dense"]["accuracy"]["mean"]
    text = (
        f"`{results['model']}` on `{results['data']}`, {results['examples']} questions. Dense: {dense:.1f} % "
        f"[{100 * low:.1f}, {100 * high:.1f}]. Accuracies are means over tasks in percent; brackets are 95 % bootstrap "
        "intervals over images"
    )
    if compact:
        return f"{text}. After the stroke: FLOPs of the LLM's prefill over dense, by the gated-MLP formula."
    return (
        f"{text}; changes are paired on the same questions. Costs are pruned over dense: FLOPs of the LLM's prefill by "
        "the gated-MLP formula, the same with the vision encoder, stored keys, measured prefill time (†: with the "
        "vision encoder). Methods cut at layers of their own: read accuracies beside FLOPs."
    )


def _title(section: str) -> str:
    """A section in words: "keep 0.5"."""
    return section.replace("keep_ratio", "keep").replace("_", " ")


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['row']}, {cell['section']}" if cell["section"] else cell["row"]


def _ordered(cells: Sequence[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """Those that ran, as they came or the most accurate first."""
    ran = [cell for cell in cells if cell["error"] is None]
    return ran if order == "rows" else sorted(ran, key=lambda cell: (-cell["accuracy"]["mean"], cell["row"]))


def _main(cells: Sequence[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    shown = {"accuracy": "accuracy", "change": "against dense", "over_reference": f"against {results['reference']}"}
    shown |= {"overlap": f"IoU with {results['overlap']}"}
    shown = {key: title for key, title in shown.items() if any(key in cell for cell in cells)}
    columns = (*shown.values(), "tokens kept", "FLOPs", "with vision", "KV", "time")
    lines = [f"| method | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for cell in cells:
        seeds = f" ({cell['seeds']} seeds)" if cell["seeds"] > 1 else ""
        numbers = [_interval(cell, key) for key in shown]
        numbers += [f"{cell['kept']:.1f}", *(_number(cell[cost]) for cost in COSTS)]
        dagger = " †" if cell["time_with_vision"] else ""
        lines.append(f"| {cell['row']}{seeds} | {' | '.join(numbers)}{dagger} |")
    return lines


def _tasks(cells: Sequence[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    tasks = results["tasks"]
    lines = [f"| accuracy by task | {' | '.join(tasks)} |", "|---|" + "--:|" * len(tasks)]
    rows = {"dense": results["dense"]["accuracy"]} | {cell["row"]: cell["accuracy"] for cell in cells}
    return lines + [
        f"| {name} | {' | '.join(f'{100 * found[task]:.1f}' for task in tasks)} |" for name, found in rows.items()
    ]


def _matrix(cells: Sequence[dict[str, Any]], sections: Sequence[str]) -> list[str]:
    """Rows × sections: accuracy with its interval, and FLOPs over dense after the stroke."""
    by_name = {(cell["row"], cell["section"]): cell for cell in cells if cell["error"] is None}
    lines = [f"| accuracy / FLOPs | {' | '.join(map(_title, sections))} |", "|---|" + "--:|" * len(sections)]
    for row in dict.fromkeys(cell["row"] for cell in cells):
        found = [by_name.get((row, section)) for section in sections]
        texts = ["–" if c is None else f"{_interval(c, 'accuracy')} / {_number(c['flops_ratio'])}" for c in found]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return lines


def _claims(claims: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| claim | published | here | verdict |", "|---|--:|--:|---|"]
    for claim in claims:
        here = "–"
        if "ci" in claim:
            low, high = (100 * x for x in claim["ci"])
            here = f"{100 * claim['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        elif claim.get("measured") is not None:
            here = f"{claim['measured']:.3f}"
        lines.append(f"| {claim['text']} | {claim['published']} | {here} | {claim['verdict']} |")
    return lines


def _interval(cell: dict[str, Any], name: str) -> str:
    if name not in cell:
        return "–"
    low, high = cell[f"{name}_ci"]
    if name == "overlap":
        return f"{cell[name]['mean']:.2f} [{low:.2f}, {high:.2f}]"
    sign = "" if name == "accuracy" else "+"
    return f"{100 * cell[name]['mean']:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
