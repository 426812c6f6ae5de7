"""``report.html``: everything in one file that asks nothing of any server. Texts of runs reach it as data only."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.evaluation.kept import KeptCut
from prunekit.report.gallery import Shown, heat, usable
from prunekit.report.plots import COST_NAMES
from prunekit.report.style import COLOURS, GREY, styles
from prunekit.report.svg import markup
from prunekit.results.columns import Cell, table, task_columns
from prunekit.results.compare import Comparison, Row
from prunekit.results.tables import caption, lines, main_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
EXAMPLES, PANELS = 12, 24
"""Examples and methods whose cuts the page holds."""


def page(
    comparison: Comparison,
    figures: Mapping[str, Figure],
    labels: list[str],
    overlap: np.ndarray,
    shown: Sequence[Shown],
) -> str:
    """The page's source. No text in it is markup: the data are JSON without "<", and the script sets text only.

    Args:
        figures: ``layers`` and, under the names of costs, accuracy against that cost; each a matplotlib figure.
    """
    style, script = (HERE / "page.css").read_text(encoding="utf-8"), (HERE / "page.js").read_text(encoding="utf-8")
    title = f"Pruning {comparison.model} on {comparison.data}"
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        policy=_policy(style, script),
        title=html.escape(title),
        caption=html.escape(caption(comparison)),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes),
        style=style,
        script=script,
        figures="\n".join(
            f'<template id="figure-{name}">{markup(figure, name)}</template>' for name, figure in figures.items()
        ),
        data=_embed(_payload(comparison, labels, overlap, shown)),
    )


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and no script or style but the page's own is run, whatever a text should contain."""
    own = {name: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for name, text in
           (("style", style), ("script", script))}  # fmt: skip
    rules = ("default-src 'none'", "img-src data:", f"style-src {own['style']}", f"script-src {own['script']}")
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _embed(data: Mapping[str, object]) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _payload(comparison: Comparison, labels: list[str], overlap: np.ndarray, shown: Sequence[Shown]) -> dict[str, Any]:
    tasks = task_columns(comparison.tasks if len(comparison.tasks) > 1 else ())
    headings, cells = table(lines(comparison), main_columns(comparison) | tasks)
    look = styles([row.entry for row in comparison.rows])
    images = list(dict.fromkeys(example.image for example in shown[:EXAMPLES]))
    return {
        "headings": headings,
        "costs": COST_NAMES,
        "rows": [_row(row, line, look) for row, line in zip(comparison.rows, cells, strict=True)],
        "overlap": {"labels": labels, "values": np.round(overlap, 4).tolist()},
        "images": [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images],
        "examples": [_example(example, images.index(example.image), comparison) for example in shown[:EXAMPLES]],
    }


def _row(row: Row, cells: list[Cell], look: dict[str, tuple[str, str]]) -> dict[str, Any]:
    entry = row.entry
    return {
        "label": entry.label,
        "method": entry.method,
        "keep": entry.keep,
        "kept": entry.kept,
        "colour": look[entry.method][0] if entry.runs else GREY,
        "hollow": list(look).index(entry.method) // len(COLOURS) % 2 == 1 if entry.runs else False,
        "accuracy": row.accuracy["mean"],
        "interval": row.intervals["mean"],
        "costs": entry.costs,
        "tokens": entry.tokens,
        "cells": [cell._asdict() for cell in cells],
    }


def _example(example: Shown, image: int, comparison: Comparison) -> dict[str, Any]:
    entries = [row.entry for row in comparison.rows if row.entry.label in example.kept][:PANELS]
    kept = [example.kept[e.label] for e in entries]
    rows = [e.runs[0].rows[example.question.id] for e in entries]
    panels = [
        {"label": e.label, "answer": r["prediction"], "right": r["correct"] >= 0.5, "cuts": [*map(cut_data, usable(k))]}
        for e, r, k in zip(entries, rows, kept, strict=True)
    ]
    return {
        "id": example.question.id,
        "image": image,
        "question": example.question.text,
        "answers": list(example.question.answers),
        "dense": rows[0]["dense_prediction"],
        "boxes": rounded(kept[0].boxes),
        "frames": [] if kept[0].panels is None else kept[0].panels.tolist(),
        "panels": panels,
    }


def rounded(boxes: np.ndarray | None) -> list[list[float] | None]:
    """Boxes to a thousandth of the sheet; null for a token without one."""
    rows = [] if boxes is None else np.round(boxes.astype(float), 4).tolist()
    return [None if any(map(math.isnan, row)) else row for row in rows]


def cut_data(cut: KeptCut) -> dict[str, Any]:
    """``kept`` as a letter a token, ``heat`` as two: hexadecimal 00..fe, "--" where the token was gone."""
    levels = heat(cut.scores)
    return {
        "where": cut.where,
        "kept": "".join("1" if kept else "0" for kept in cut.kept),
        "heat": "".join("--" if np.isnan(level) else f"{round(254 * float(level)):02x}" for level in levels),
    }
