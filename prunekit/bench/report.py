"""What a bench prints and draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prunekit.bench.record import Contender, Point, Ratio, Spread
from prunekit.results.numbers import NONE, ratio, with_interval
from prunekit.results.screen import screen_table, show

HEADINGS = (
    "run", "prefill ms", "first token ms", "ms a token", "tokens/s", "activations MiB", "KV MiB", "FLOPs", "time",
    "efficiency", "over ceiling",
)  # fmt: skip


def print_point(point: Point, title: str) -> None:
    """One workload: a row a contender."""
    show(screen_table(title, HEADINGS, [[name, *cells(row)] for name, row in point["contenders"].items()]), width=170)
    console = Console(width=None if Console().is_terminal else 170)
    vision = point["vision_s"]
    seen = "unknown" if vision is None else f"{_time(vision)} ms"
    tokens = " ".join(map(str, point["tokens_per_layer"]))
    console.print(f"vision encoder and projector: {seen}; tokens per layer: {tokens}")
    for note in point["notes"]:
        console.print(note)


def cells(row: Contender) -> list[str]:
    """The table's cells of a contender: medians with quartiles, ratios to dense, efficiency; over the ceiling the
    median's 95 % interval."""
    over = row.get("over_ceiling")
    return [
        _time(row["prefill_s"]),
        _time(row["first_token_s"], spread=False),
        NONE if row["token_s"] is None else _time(row["token_s"]),
        NONE if row["tokens_per_s"] is None else f"{row['tokens_per_s']['median']:.1f}",
        f"{row['activation_bytes'] / 2**20:.1f}",
        f"{row['kv_bytes'] / 2**20:.1f}",
        ratio(row["flops_ratio"]),
        _ratio(row["prefill_ratio"]),
        ratio(row["efficiency"]),
        NONE if over is None else over_ceiling(over),
    ]


def over_ceiling(ratio: Ratio) -> str:
    """What a contender takes longer than the ceiling, per cent: the median and its interval."""
    return with_interval(ratio["median"] - 1, (ratio["from"] - 1, ratio["to"] - 1), signed=True, unit=" %")


def _time(value: Spread, spread: bool = True) -> str:
    text = f"{1000 * value['median']:.1f}"
    return f"{text} ({1000 * value['low']:.1f}–{1000 * value['high']:.1f})" if spread else text


def _ratio(value: Ratio) -> str:
    return f"{value['median']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def draw(points: Sequence[Point], title: str, path: Path) -> str | None:
    """Prefill time against visual tokens for each contender, and what the FLOPs imply; why not, if it cannot."""
    try:
        import matplotlib
    except ImportError:
        return "no plot: matplotlib is not installed (pip install 'prunekit[report]')"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = list(dict.fromkeys(name for point in points for name in point["contenders"]))
    for name in names:
        series = [(p["visual_tokens"], p["contenders"][name]) for p in points if name in p["contenders"]]
        tokens = [n for n, _ in series]
        times = [row["prefill_s"] for _, row in series]
        middle = [1000 * t["median"] for t in times]
        bars = [[1000 * (t["median"] - t["low"]) for t in times], [1000 * (t["high"] - t["median"]) for t in times]]
        axes[0].errorbar(tokens, middle, yerr=bars, marker="o", capsize=3, label=name)
        if name != "dense":
            axes[1].plot(tokens, [row["prefill_ratio"]["median"] for _, row in series], marker="o", label=name)
    implied = [(p["visual_tokens"], p["contenders"]["pruned"]["flops_ratio"]) for p in points]
    axes[1].plot(*zip(*implied, strict=True), color="black", linestyle="--", label="FLOPs")
    for axis, label in zip(axes, ("prefill, ms", "prefill, share of dense"), strict=True):
        axis.set(xlabel="visual tokens", ylabel=label)
        axis.legend()
    axes[0].set(xscale="log", yscale="log") if len(points) > 1 else None
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return None
