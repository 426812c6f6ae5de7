"""The comparison of methods as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def render(results: dict[str, Any]) -> str:
    """One pair of tables for each keep ratio: accuracy and cost, then accuracy by task."""
    low, high = results["dense"]["accuracy_ci"]
    dense = 100 * results["dense"]["accuracy"]["mean"]
    lines = [
        f"`{results['model']}` on `{results['data']}`, {results['examples']} questions. Dense: {dense:.1f} % "
        f"[{100 * low:.1f}, {100 * high:.1f}]. Accuracies are means over tasks in percent; brackets are 95 % bootstrap "
        "intervals over images; changes are paired on the same questions. Costs are pruned over dense: FLOPs of the "
        "LLM's prefill by the gated-MLP formula, the same with the vision encoder, stored keys, measured prefill time.",
    ]
    for keep in dict.fromkeys(cell["keep_ratio"] for cell in results["cells"]):
        cells = [cell for cell in results["cells"] if cell["keep_ratio"] == keep]
        lines += ["", f"### Keep {keep:g}", "", *_main(cells), "", *_tasks(cells, results)]
        lines += ["", *(f"- `{cell['method']}` is refused: {cell['refusal']}" for cell in cells if cell["refusal"])]
    return "\n".join(lines).rstrip() + "\n"


def _main(cells: Sequence[dict[str, Any]]) -> list[str]:
    columns = ("accuracy", "against dense", "against random", "tokens kept", "FLOPs", "with vision", "KV", "time")
    lines = [f"| method | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for cell in _ranked(cells):
        seeds = f" ({cell['seeds']} seeds)" if cell["seeds"] > 1 else ""
        costs = [_number(cell[k]) for k in ("flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio")]
        shown = [_interval(cell, name) for name in ("accuracy", "change", "over_random")]
        shown += [f"{cell['kept']:.1f}", *costs]
        lines.append(f"| {cell['method']}{seeds} | {' | '.join(shown)} |")
    return lines


def _tasks(cells: Sequence[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    tasks = results["tasks"]
    lines = [f"| accuracy by task | {' | '.join(tasks)} |", "|---|" + "--:|" * len(tasks)]
    rows = [("dense", results["dense"]["accuracy"]), *((c["method"], c["accuracy"]) for c in _ranked(cells))]
    return lines + [f"| {name} | {' | '.join(f'{100 * found[task]:.1f}' for task in tasks)} |" for name, found in rows]


def _ranked(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that ran, the most accurate first."""
    ran = [cell for cell in cells if cell["refusal"] is None]
    return sorted(ran, key=lambda cell: (-cell["accuracy"]["mean"], cell["method"]))


def _interval(cell: dict[str, Any], name: str) -> str:
    if name not in cell:
        return "–"
    sign = "" if name == "accuracy" else "+"
    low, high = cell[f"{name}_ci"]
    return f"{100 * cell[name]['mean']:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
