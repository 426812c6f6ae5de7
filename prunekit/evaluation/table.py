"""The table that a run prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def _percent(value: float, interval: list[float] | None = None, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.1f}"
    if interval is None:
        return text
    low, high = (f"{100 * x:{sign}.1f}" for x in interval)
    return f"{text} [dim]\\[{low}, {high}][/dim]"


def accuracy_table(metrics: dict[str, Any]) -> Table:
    """Dense against pruned, a row a task, with 95 % intervals."""
    title = (
        f"{metrics['model']} on {metrics['data']}, {metrics['examples']} questions: {method_name(metrics['method'])}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("task", "n", "dense %", "pruned %", "change (paired)"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    counts = metrics["examples_per_task"]
    for task in [*counts, "mean"]:
        table.add_row(
            task,
            str(counts.get(task, metrics["examples"])),
            _percent(metrics["dense_accuracy"][task], metrics["dense_accuracy_ci"][task]),
            _percent(metrics["accuracy"][task], metrics["accuracy_ci"][task]),
            _percent(metrics["change"][task], metrics["change_ci"][task], signed=True),
            style="bold" if task == "mean" else None,
            end_section=task == list(counts)[-1],
        )
    return table


def cost_table(metrics: dict[str, Any]) -> Table:
    """Ratios of pruned to dense cost, and the tokens that each layer processed."""
    table = Table(title="cost, pruned / dense", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="left")
    both = metrics["flops_ratio_with_vision"]
    with_vision = ", vision encoder included" if metrics["prefill_ratio_includes_vision"] else ""
    rows = {
        "FLOPs of the LLM's prefill (gated-MLP formula)": f"{metrics['flops_ratio']:.3f}",
        "FLOPs with the vision encoder": "unknown layout" if both is None else f"{both:.3f}",
        "KV cache": f"{metrics['kv_ratio']:.3f}",
        f"prefill time, measured{with_vision}": f"{metrics['prefill_ratio']:.3f}",
        "tokens in each layer (mean)": " ".join(f"{n:.0f}" for n in metrics["tokens_per_layer"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def method_name(method: dict[str, Any]) -> str:
    """One line that says what was run."""
    parts = f"{method['scorer']} · {method['fusion']} · {method['schedule']}"
    extra = [method[k] for k, usual in (("selector", "topk"), ("reducer", "drop")) if method[k] != usual]
    parts = " · ".join([parts, *extra])
    budget = f"keep {method.get('keep_tokens') or method['keep_ratio']}"
    if "budget" in method:
        budget = method["budget"]
    name = f"{method['name']} = " if method["name"] else ""
    return f"{name}{parts}, {budget}, cut before layers {', '.join(map(str, method['layers']))}"


def print_tables(metrics: dict[str, Any]) -> None:
    """Both tables, on standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(accuracy_table(metrics))
    console.print(cost_table(metrics))
