"""The table that a run prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from prunekit.records.metrics import Method, Metrics
from prunekit.results.numbers import ratio, with_interval
from prunekit.results.screen import screen_table, show


def _percent(value: float, interval: Sequence[float] | None, signed: bool = False) -> str:
    number, _, ends = with_interval(value, interval, signed=signed).partition(" ")
    return f"{number} [dim]\\{ends}[/dim]"


def accuracy_table(metrics: Metrics) -> Table:
    """Dense against pruned, a row a task, with 95 % intervals."""
    left_out = f" ({metrics['errors']} rows could not be used)" if metrics.get("errors") else ""
    asked = f"{metrics['examples']} questions{left_out}"
    title = f"{metrics['model']} on {metrics['data']}, {asked}: {method_name(metrics['method'])}"
    table = screen_table(title, ("task", "n", "dense %", "pruned %", "change (paired)"), ())
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


def cost_table(metrics: Metrics) -> Table:
    """Ratios of pruned to dense cost, and the tokens that each layer processed."""
    table = Table(title="cost, pruned / dense", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="left")
    both = metrics["flops_ratio_with_vision"]
    with_vision = ", vision encoder included" if metrics["prefill_ratio_includes_vision"] else ""
    rows = {
        "FLOPs of the LLM's prefill (gated-MLP formula)": ratio(metrics["flops_ratio"]),
        "FLOPs with the vision encoder": "unknown layout" if both is None else ratio(both),
        "KV cache": ratio(metrics["kv_ratio"]),
        f"prefill time, measured{with_vision}": ratio(metrics["prefill_ratio"]),
        "tokens in each layer (mean)": " ".join(f"{n:.0f}" for n in metrics["tokens_per_layer"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def benchmark_table(metrics: Metrics) -> Table | None:
    """The benchmark's own numbers over all questions, dense against pruned: those that are not of a part ("f1", not
    "f1/random"), or the parts' where there are no others. None for a metric without any."""
    if not (pruned := metrics.get("extra")):
        return None
    whole = [name for name in pruned if "/" not in name] or list(pruned)
    rows = [[name, *(f"{side[name]:.4g}" for side in (metrics["dense_extra"], pruned))] for name in whole]
    return screen_table(f"{metrics['metric']}, over all questions", ("", "dense", "pruned"), rows)


def cut_before(layers: Sequence[int]) -> str:
    """Where a method cuts, in words."""
    if not layers:
        return "no cut in the decoder"
    return f"cut before layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def method_name(method: Method) -> str:
    """One line that says what was run."""
    parts = f"{method['scorer']} · {method['fusion']} · {method['schedule']}"
    parts += "".join(f" · {name}" for name in (method["selector"], method["reducer"]) if name not in ("topk", "drop"))
    budget = f"keep {method.get('keep_tokens') or method['keep_ratio']}"
    if "budget" in method:
        budget = method["budget"]
    name = f"{method['name']} = " if method["name"] else ""
    return f"{name}{parts}, {budget}, {cut_before(method['layers'])}"


def print_tables(metrics: Metrics) -> None:
    """The tables, on standard output."""
    for table in (accuracy_table(metrics), benchmark_table(metrics), cost_table(metrics)):
        if table is not None:
            show(table)
