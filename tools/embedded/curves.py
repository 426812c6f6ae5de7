"""Accuracy against the cut's layer and against how much stays, with intervals: tables and one picture of the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.results.numbers import with_interval


@dataclass(frozen=True)
class Point:
    """A mean accuracy and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return with_interval(self.mean, (self.low, self.high), scale=1, digits=3)


Curve = Mapping[float, Point]
"""Points by what stands on the horizontal axis."""


def table(first: str, curves: Mapping[str, Curve]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: one row a place on the axis, one column a curve."""
    places = sorted({place for curve in curves.values() for place in curve})
    rows = [[f"{place:g}", *(str(curve.get(place, "")) for curve in curves.values())] for place in places]
    return [first, *curves], rows


def draw(panels: Sequence[tuple[str, Mapping[str, Curve]]], dense: Point, path: Path) -> None:
    """A panel for each ``(axis label, curves)``; the dense model's interval runs through all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.8), sharey=True, layout="constrained")
    for axis, (label, curves) in zip(axes, panels, strict=True):
        axis.axhspan(dense.low, dense.high, color="black", alpha=0.08, linewidth=0)
        axis.axhline(dense.mean, color="black", linestyle="--", linewidth=1, label="dense")
        for (name, curve), marker in zip(curves.items(), "os^Dv", strict=False):
            places = sorted(curve)
            (line,) = axis.plot(places, [curve[x].mean for x in places], marker=marker, label=name)
            low, high = [curve[x].low for x in places], [curve[x].high for x in places]
            axis.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_xlabel(label)
        axis.legend(fontsize=8, loc="lower right")
    axes[0].set_ylabel("accuracy, mean over tasks")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
