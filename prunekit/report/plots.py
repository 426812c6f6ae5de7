"""``pareto.png|pdf``, ``layers.png`` and ``overlap.png``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunekit.report.style import COLOURS, GREY, pyplot, shorten, styles
from prunekit.results.compare import Comparison, Row
from prunekit.results.entries import Entry
from prunekit.results.statistics import iou

DPI = 150
SHOWN = 24
"""Entries in a plot whose size grows with them."""


def draw_pareto(found: Comparison, *paths: Path) -> None:
    """Accuracy with its interval against the prefill's FLOPs; a line joins the budgets of one method."""
    plt = pyplot()
    look = styles([row.entry for row in found.rows])
    figure, axis = plt.subplots(figsize=(9.5, max(4.5, 1.2 + 0.24 * len(look))), layout="constrained")
    shifts = _side_by_side([row for row in found.rows if row.entry.runs])
    for name, (colour, marker) in look.items():
        rows = [row for row in found.rows if row.entry.method == name and row.entry.costs["flops_ratio"] is not None]
        rows.sort(key=lambda row: row.entry.costs["flops_ratio"] or 0.0)
        axis.errorbar(
            *_points(rows, shifts), yerr=_bars(rows), label=shorten(name), color=colour, marker=marker, markersize=6,
            markeredgecolor="white", markeredgewidth=0.6, linewidth=1.2, elinewidth=0.7, capsize=2,
        )  # fmt: skip
    dense = next(row for row in found.rows if not row.entry.runs)
    low, high = (100 * x for x in dense.intervals["mean"])
    axis.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)
    axis.axhline(100 * dense.accuracy["mean"], color=GREY, linestyle="--", linewidth=1, label="dense, 95 % interval")
    moved = " (points of equal cost stand side by side, the first in its place)" if any(shifts.values()) else ""
    axis.set(xlabel=f"FLOPs of the LLM's prefill, pruned / dense{moved}", ylabel="accuracy, % (mean over tasks)")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_title(f"{shorten(found.model, 40)} on {shorten(found.data, 40)}", fontsize=11)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    for path in paths:
        figure.savefig(path, dpi=DPI, format=path.name.split(".")[1])
    plt.close(figure)


def _points(rows: list[Row], shifts: dict[str, float]) -> tuple[list[float], list[float]]:
    costs = [(row.entry.costs["flops_ratio"] or 0.0) + shifts[row.entry.label] for row in rows]
    return costs, [100 * row.accuracy["mean"] for row in rows]


def _side_by_side(rows: list[Row]) -> dict[str, float]:
    """For each label how far its point moves to the right, so that points of (nearly) equal cost do not hide each
    other: together at most 4 % of the axis."""
    costs = sorted((cost, r.entry.label) for r in rows if (cost := r.entry.costs["flops_ratio"]) is not None)
    width = (costs[-1][0] - costs[0][0]) or 1.0 if costs else 1.0
    groups: list[list[tuple[float, str]]] = []
    for cost, label in costs:
        if groups and cost - groups[-1][0][0] < 0.004 * width:
            groups[-1].append((cost, label))
        else:
            groups.append([(cost, label)])
    return {
        label: width * min(0.008, 0.04 / len(group)) * place
        for group in groups
        for place, (_, label) in enumerate(group)
    }


def _bars(rows: list[Row]) -> np.ndarray:
    bars = [(r.accuracy["mean"] - r.intervals["mean"][0], r.intervals["mean"][1] - r.accuracy["mean"]) for r in rows]
    return 100 * np.clip(np.array(bars).reshape(-1, 2).T, 0, None)


def draw_layers(found: Comparison, path: Path) -> None:
    """Mean tokens that each decoder layer processes in the prefill, a curve an entry."""
    plt = pyplot()
    entries = [row.entry for row in found.rows]
    shown = [e for e in entries if e.runs][:SHOWN]
    figure, axis = plt.subplots(figsize=(9.5, max(4.5, 1.2 + 0.24 * len(shown))), layout="constrained")
    dense = next(e for e in entries if not e.runs)
    axis.step(*_stairs(dense.tokens), where="post", color=GREY, linestyle="--", linewidth=1.2, label="dense")
    apart = 0.006 * max(dense.tokens)
    for number, (labels, entry) in enumerate(_alike(shown)):
        curve = [n + apart * (number % 5 - 2) for n in entry.tokens]  # curves that meet stay visible side by side
        dash = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        axis.step(
            *_stairs(curve), where="post", color=COLOURS[number % len(COLOURS)], linewidth=1.5, linestyle=dash,
            label="\n".join(labels),
        )  # fmt: skip
    axis.set(xlabel="decoder layer", ylabel="tokens processed (mean, text included)", ylim=(0, None))
    named = np.arange(0, len(dense.tokens), -(-len(dense.tokens) // 24))
    axis.set_xticks(named + 0.5, [str(n) for n in named], fontsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title=_left_out(found, len(shown)))
    figure.savefig(path, dpi=DPI, format="png")
    plt.close(figure)


def _alike(entries: list[Entry]) -> list[tuple[list[str], Entry]]:
    """Entries with the same curve together: their labels, and one of them."""
    groups: dict[tuple[int, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(round(n) for n in entry.tokens), []).append(entry)
    return [([shorten(e.label) for e in group], group[0]) for group in groups.values()]


def _stairs(tokens: list[float]) -> tuple[np.ndarray, list[float]]:
    return np.arange(len(tokens) + 1), [*tokens, tokens[-1]]


def _left_out(found: Comparison, shown: int) -> str | None:
    total = sum(bool(row.entry.runs) for row in found.rows)
    return f"the first {shown} of {total}" if total > shown else None


def overlaps(entries: list[Entry], ids: list[str]) -> np.ndarray:
    """Mean over examples of intersection over union of the visual tokens that two entries keep, [entries, entries].

    Of a method with several seeds the first stands for it, and two seeds of it for its overlap with itself.
    """
    found = np.ones((len(entries), len(entries)))
    sets = [[[set(run.rows[i]["kept"]) for i in ids] for run in entry.runs[:2]] for entry in entries]
    for a in range(len(entries)):
        for b in range(a + 1):
            other = sets[b][-1] if a == b else sets[b][0]
            found[a, b] = found[b, a] = np.mean([iou(x, y) for x, y in zip(sets[a][0], other, strict=True)])
    return found


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
