"""The table of ``task=study`` as Markdown."""

from __future__ import annotations

from typing import Any

NONE = "–"
COLUMNS = (
    "accuracy",
    "against no training",
    "against LoRA without pruning",
    "against dense",
    "its own dense",
    "attention on what stays",
    "on the image",
    "entropy",
    "Hoyer",
    "minutes",
)


def render(results: dict[str, Any]) -> str:
    """One table for each keep ratio."""
    train = results["train"]
    lines = [
        f"{results['examples']} questions of `{results['data']}`; {train['max_steps']} steps of {train['batch_size']} "
        f"questions, keep ratio drawn from {train['keep_random']} in each, penalty `{train['penalty']}` unless a row "
        "names another. Accuracies in percent, means over tasks; brackets are 95 % bootstrap intervals over images, "
        "changes paired.",
    ]
    shown = [column for column in COLUMNS if any(_cells(row)[column] != NONE for row in results["rows"])]
    for keep in dict.fromkeys(row["keep"] for row in results["rows"]):
        lines += ["", f"#### Keep {keep:g}", "", f"| | {' | '.join(shown)} |", "|---|" + "--:|" * len(shown)]
        for row in (row for row in results["rows"] if row["keep"] == keep):
            cells = _cells(row)
            lines.append(f"| {row['variant']['label']} | {' | '.join(cells[column] for column in shown)} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> dict[str, str]:
    numbers, spread = row["numbers"], row["spread"]
    shown = [_interval(numbers, name) for name in ("accuracy", "gain", "over_dense_training", "change")]
    shown.append(f"{100 * numbers['own_dense']:.1f}")
    shown += [f"{100 * spread[name]:.1f} %" for name in ("on_kept", "l1")]
    shown += [f"{spread[name]:.3f}" for name in ("entropy", "hoyer")]
    shown.append(NONE if row["seconds"] is None else f"{row['seconds'] / 60:.1f}")
    return dict(zip(COLUMNS, shown, strict=True))


def _interval(numbers: dict[str, Any], name: str) -> str:
    if name not in numbers:
        return NONE
    sign = "" if name == "accuracy" else "+"
    low, high = numbers[f"{name}_ci"]
    return f"{100 * numbers[name]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
