"""The report's figures: accuracy against cost, tokens in each layer, overlap of what methods keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.report.style import COLOURS, GREY, pyplot, shorten, styles
from prunekit.report.svg import mark
from prunekit.results.compare import Comparison, Row
from prunekit.results.entries import Entry
from prunekit.results.seeds import COSTS
from prunekit.results.statistics import iou

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
MARKER: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6}
COST_NAMES = dict(
    zip(
        COSTS,
        (
            "FLOPs of the LLM's prefill, pruned / dense",
            "FLOPs with the vision encoder, pruned / dense",
            "KV cache, pruned / dense",
            "measured prefill time, pruned / dense",
        ),
        strict=True,
    )
)
SHOWN = 24
"""Entries in a plot whose size grows with them."""


def draw_pareto(comparison: Comparison, cost: str = COSTS[0]) -> Figure:
    """A figure of accuracy with its interval against a cost; a line joins the budgets of one method."""
    look = styles([row.entry for row in comparison.rows])
    figure, axis = _figure(len(look))
    numbers = {row.entry.label: number for number, row in enumerate(comparison.rows)}
    shifts = _side_by_side([row for row in comparison.rows if row.entry.runs], cost)
    for name, (colour, marker) in look.items():
        rows = [row for row in comparison.rows if row.entry.method == name and row.entry.costs[cost] is not None]
        rows.sort(key=lambda row: row.entry.costs[cost] or 0.0)
        axis.plot([], [], label=shorten(name), color=colour, marker=marker, linewidth=1.2, **MARKER)
        if not rows:
            continue
        places = [(row.entry.costs[cost] or 0.0) + shifts[row.entry.label] for row in rows]
        (line,) = axis.plot(places, [100 * row.accuracy["mean"] for row in rows], color=colour, linewidth=1.2)
        mark(line, [numbers[row.entry.label] for row in rows])
        for place, row in zip(places, rows, strict=True):
            _draw_point(axis, place, row, numbers[row.entry.label], color=colour, marker=marker)
    dense = next(row for row in comparison.rows if not row.entry.runs)
    if (ends := dense.intervals["mean"]) is not None:
        axis.axhspan(*(100 * end for end in ends), color=GREY, alpha=0.12, linewidth=0)
    axis.axhline(
        100 * dense.accuracy["mean"],
        color=GREY,
        linestyle="--",
        linewidth=1,
        label=f"dense{', 95 % interval' * bool(ends)}",
    )
    _draw_point(axis, 1.0, dense, numbers[dense.entry.label], color=GREY, marker="o")
    moved = " (points of equal cost stand side by side, the first in its place)" if any(shifts.values()) else ""
    axis.set(xlabel=COST_NAMES[cost] + moved, ylabel="accuracy, % (mean over tasks)")
    axis.set_title(f"{shorten(comparison.model, 40)} on {shorten(comparison.data, 40)}", fontsize=11)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure to files; a name's ending says in which format."""
    for path in paths:
        figure.savefig(path, dpi=DPI, format=path.suffix[1:])


def _figure(entries: int) -> tuple[Figure, Axes]:
    """A figure that has room for a legend of so many entries, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, max(4.5, 1.2 + 0.24 * entries)), layout="constrained")
    axis = figure.subplots()
    axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axis


def _draw_point(axis: Axes, x: float, row: Row, number: int, color: str, marker: str) -> None:
    """A row's accuracy at x with its interval; the page knows both by the row's ``number`` in the table."""
    middle = row.accuracy["mean"]
    low, high = row.intervals["mean"] or (middle, middle)
    sides = [[100 * max(middle - low, 0.0)], [100 * max(high - middle, 0.0)]]
    point, caps, bars = axis.errorbar(
        [x], [100 * middle], yerr=sides, elinewidth=0.7, capsize=2, color=color, marker=marker, **MARKER
    )
    mark(point, [number], point=True)
    for artist in (*caps, *bars):
        mark(artist, [number])


def _side_by_side(rows: list[Row], cost: str) -> dict[str, float]:
    """For each label how far its point moves to the right, so that points of (nearly) equal cost do not hide each
    other: together at most 4 % of the axis."""
    costs = sorted((x, row.entry.label) for row in rows if (x := row.entry.costs[cost]) is not None)
    width = (costs[-1][0] - costs[0][0]) or 1.0 if costs else 1.0
    groups: list[list[tuple[float, str]]] = []
    for x, label in costs:
        if groups and x - groups[-1][0][0] < 0.004 * width:
            groups[-1].append((x, label))
        else:
            groups.append([(x, label)])
    return {
        label: width * min(0.008, 0.04 / len(group)) * place
        for group in groups
        for place, (_, label) in enumerate(group)
    }


def draw_layers(comparison: Comparison) -> Figure:
    """A figure of the mean tokens that each decoder layer processes in the prefill, a curve an entry."""
    entries = [row.entry for row in comparison.rows]
    numbers = {entry.label: number for number, entry in enumerate(entries)}
    shown = [e for e in entries if e.runs][:SHOWN]
    figure, axis = _figure(len(shown))
    dense = next(e for e in entries if not e.runs)
    (line,) = axis.step(*_stairs(dense.tokens), where="post", color=GREY, linestyle="--", linewidth=1.2, label="dense")
    mark(line, [numbers[dense.label]])
    apart = 0.006 * max(dense.tokens)
    for number, alike in enumerate(_alike(shown)):
        curve = [n + apart * (number % 5 - 2) for n in alike[0].tokens]  # curves that meet stay visible side by side
        dash = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        (line,) = axis.step(
            *_stairs(curve), where="post", color=COLOURS[number % len(COLOURS)], linewidth=1.5, linestyle=dash,
            label="\n".join(shorten(entry.label) for entry in alike),
        )  # fmt: skip
        mark(line, [numbers[entry.label] for entry in alike])
    axis.set(xlabel="decoder layer", ylabel="tokens processed (mean, text included)", ylim=(0, None))
    named = np.arange(0, len(dense.tokens), -(-len(dense.tokens) // 24))
    axis.set_xticks(named + 0.5, [str(n) for n in named], fontsize=8)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title=_left_out(comparison, len(shown)))
    return figure


def _alike(entries: list[Entry]) -> list[list[Entry]]:
    """Entries with the same curve together."""
    groups: dict[tuple[int, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(round(n) for n in entry.tokens), []).append(entry)
    return list(groups.values())


def _stairs(tokens: list[float]) -> tuple[np.ndarray, list[float]]:
    return np.arange(len(tokens) + 1), [*tokens, tokens[-1]]


def _left_out(comparison: Comparison, shown: int) -> str | None:
    total = sum(bool(row.entry.runs) for row in comparison.rows)
    return f"the first {shown} of {total}" if total > shown else None


def overlaps(entries: list[Entry], ids: list[str]) -> np.ndarray:
    """Mean over examples of intersection over union of the visual tokens that two entries keep, [entries, entries].

    Of a method with several seeds the first stands for it, and two seeds of it for its overlap with itself.
    """
    comparison = np.ones((len(entries), len(entries)))
    sets = [[[set(run.rows[i]["kept"]) for i in ids] for run in entry.runs[:2]] for entry in entries]
    for a in range(len(entries)):
        for b in range(a + 1):
            other = sets[b][-1] if a == b else sets[b][0]
            comparison[a, b] = comparison[b, a] = np.mean([iou(x, y) for x, y in zip(sets[a][0], other, strict=True)])
    return comparison


def draw_overlap(labels: list[str], values: np.ndarray, path: Path, note: str | None = None) -> None:
    """The matrix of overlaps, each cell with its number."""
    plt = pyplot()
    size = max(4.5, 2.4 + 0.42 * len(labels))
    figure, axis = plt.subplots(figsize=(size + 1.0, size), layout="constrained")
    picture: Any = axis.imshow(values, cmap="cividis", vmin=0, vmax=1)
    names = [shorten(label, 28) for label in labels]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for a in range(len(names)):
        for b in range(len(names)):
            ink = "black" if values[a, b] > 0.55 else "white"
            axis.text(b, a, f"{values[a, b]:.2f}", ha="center", va="center", color=ink, fontsize=7)
    figure.colorbar(picture, ax=axis, shrink=0.8, label="intersection over union of kept tokens")
    axis.set_title("What is kept alike" + (f" ({note})" if note else ""), fontsize=11)
    figure.savefig(path, dpi=DPI, format="png")
    plt.close(figure)
