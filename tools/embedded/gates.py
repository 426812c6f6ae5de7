"""The embedded models' gates: ``python -m tools.embedded.gates`` writes docs/internal/embedded-model.md.

    python -m tools.embedded.gates --model prunekit/assets/mini-576     # those of the model with 576 visual tokens

Everything is reported on the test split; the one choice (the cut's layer for `instruction`) is made on validation.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from prunekit.data import Example, load
from prunekit.data.words import TASKS
from prunekit.files import put_between
from prunekit.results.markdown import markdown_table
from prunekit.results.statistics import intervals
from tools.embedded import probe
from tools.embedded.asking import accuracy_by_task
from tools.embedded.curves import Curve, Point, draw, table
from tools.embedded.export import MODEL_FOLDER
from tools.embedded.probe import Bench, Found, ask, mean_accuracy, prepare

DOC = Path(__file__).resolve().parents[2] / "docs" / "internal" / "embedded-model.md"
PICTURE = "curves-{name}.png"  # beside it
START, END = "<!-- gates of {name}: written by python -m tools.embedded.gates -->", "<!-- end of gates of {name} -->"
RATIO = 0.25
DEPTHS = (0.25, 0.375, 0.5)
RATIOS = (0.05, 0.1, 0.25, 0.5, 0.75)
CHANCE = {
    "attribute": 1 / 8,
    "existence": 1 / 2,
    "relation": 1 / 48,
    "position": 1 / 48,
    "choice": 1 / 4,
    "count": 1 / 3,
}


@dataclass
class Results:
    """What was measured; ``lines`` are the rows of the gates' table: gate, figure, verdict."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    panels: list[tuple[str, dict[str, Curve]]] = field(default_factory=list)

    def gate(self, name: str, figure: str, passed: bool | None) -> None:
        verdict = "reported" if passed is None else "pass" if passed else "**short**"
        self.lines.append((name, figure, verdict))
        print(f"{name}: {figure} [{verdict}]", flush=True)

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        self.tables.append(markdown_table(header, rows, align="l"))
        print(self.tables[-1], flush=True)

    def curves(self, first: str, label: str, curves: dict[str, Curve]) -> None:
        """A table, and a panel of the picture."""
        self.table(*table(first, curves))
        self.panels.append((label, curves))


def point(bench: Bench, found: Found) -> Point:
    """The mean over tasks, with its bootstrap interval over images."""
    right = [float(correct) for _, correct in found]
    low, high = intervals(bench.examples, right)["mean"] or (math.nan, math.nan)
    return Point(mean_accuracy(found), low, high)


def shown(bench: Bench, found: Found) -> str:
    return str(point(bench, found))


class Gates:
    """Model, questions and what was found about them."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
        self.limit, self.results = limit, Results()
        self.test = prepare(self.model, self.tokenizer, load("test", limit))
        self.layers = self.model.config.text_config.num_hidden_layers
        self.scores, self.dense = probe.attention_scores(self.model, self.test)
        self.mean = mean_accuracy(self.dense)

    def cut(self, kept: torch.Tensor, layer: int) -> Found:
        return ask(self.model, self.test, kept, layer)

    def accuracy(self) -> None:
        """Dense, held-out and blind accuracy by task."""
        held = prepare(self.model, self.tokenizer, load("heldout", self.limit))
        found = {"dense": self.dense, "held out": ask(self.model, held)}
        for name, picture in (("noise image", probe.blind_image), ("another image", other_image)):
            found[name] = ask(self.model, prepare(self.model, self.tokenizer, self.test.examples, picture))
        tasks = {name: accuracy_by_task(rows) for name, rows in found.items()}
        rows = [
            [name, f"{mean_accuracy(found[name]):.3f}", *(f"{by_task[task]:.3f}" for task in TASKS)]
            for name, by_task in tasks.items()
        ]
        chance = ["chance", "", *(f"{CHANCE.get(task, 0.0):.3f}" for task in TASKS)]
        self.results.table(["split or image", "mean", *TASKS], [*rows, chance])
        worst = min(tasks["dense"], key=lambda task: tasks["dense"][task])
        self.results.gate("dense mean ≥ 0.92", shown(self.test, self.dense), self.mean >= 0.92)
        low = tasks["dense"][worst]
        self.results.gate("dense ≥ 0.85 in every task", f"lowest: {worst} {low:.3f}", low >= 0.85)
        gap = self.mean - mean_accuracy(found["held out"])
        self.results.gate("held out within 0.05 of dense", f"{gap:+.3f} below", gap <= 0.05)
        for name in ("noise image", "another image"):
            excess = max(tasks[name][task] - CHANCE.get(task, 0.0) for task in TASKS)
            self.results.gate(
                f"{name}: at chance (within 0.12) in every task", f"at most {excess:+.3f}", excess <= 0.12
            )

    def cuts(self) -> None:
        """Random, uniform, oracle and foreign tokens; the curves over the cut's layer and over the ratio."""
        quarter, half = self.layers // 4, self.layers // 2
        sets = {"random": probe.random_kept, "uniform": probe.uniform_kept, "oracle": probe.oracle_kept}
        by_layer = {
            name: {float(layer): self.cut(choose(self.test, RATIO), layer) for layer in range(1, self.layers)}
            for name, choose in sets.items()
        }
        curves = self._points(by_layer)
        self.results.curves("keep 0.25, cut before layer", f"cut before layer, keep {RATIO}", curves)
        for name, layer, least in (("a quarter", quarter, 0.15), ("half", half, 0.05)):
            loss = self.mean - curves["random"][layer].mean
            figure = f"{loss:.3f} ({curves['random'][layer]})"
            self.results.gate(f"random, keep 0.25, cut at {name} of the depth: loses ≥ {least}", figure, loss >= least)
        first, third = (self.mean - curves["random"][layer].mean for layer in (1, 3))
        gradual = "no step at layers 1 and 2: random loses before layer 3 ≥ half of what it loses before layer 1"
        self.results.gate(gradual, f"{third:.3f} of {first:.3f}", third >= first / 2)
        by_ratio = {
            f"{name}, before layer {layer}": {r: self.cut(choose(self.test, r), layer) for r in RATIOS}
            for layer in (quarter, half)
            for name, choose in sets.items()
            if name != "uniform"
        }
        whole = point(self.test, self.dense)
        curves = {name: {**curve, 1.0: whole} for name, curve in self._points(by_ratio).items()}
        self.results.curves("keep", "share of the visual tokens that stays", curves)
        uniform = by_layer["uniform"][quarter]
        self.results.gate("uniform, keep 0.25, cut at a quarter", shown(self.test, uniform), None)
        oracle = self.cut(probe.oracle_kept(self.test, 0.1), quarter)
        loss = self.mean - mean_accuracy(oracle)
        self.results.gate("oracle, keep 0.1, cut at a quarter: within 0.02", f"{loss:+.3f} below", loss <= 0.02)
        foreign = self.cut(foreign_kept(self.test, probe.oracle_kept(self.test, 0.1)), quarter)
        loss = mean_accuracy(oracle) - mean_accuracy(foreign)
        figure = f"{shown(self.test, foreign)}, {loss:.3f} below one's own"
        self.results.gate("another question's oracle tokens: clearly worse (≥ 0.15)", figure, loss >= 0.15)

    def _points(self, found: Mapping[str, Mapping[float, Found]]) -> dict[str, Curve]:
        return {name: {x: point(self.test, f) for x, f in curve.items()} for name, curve in found.items()}

    def attention(self) -> None:
        """Where the question's rows look, and what keeping what they look at brings."""
        share = probe.attention_share(self.test, self.scores)
        half = self.layers // 2
        header = ["layer", *(str(layer) for layer in range(self.layers))]
        self.results.table(header, [["attention on the answer over its share of tokens", *(f"{s:.1f}" for s in share)]])
        best = max(share[: half + 1])
        self.results.gate(
            "attention on the answer ≥ 3 times its share, at or before half", f"{best:.2f} times", best >= 3
        )
        validation = prepare(self.model, self.tokenizer, load("validation", self.limit))
        scores, _ = probe.attention_scores(self.model, validation)
        layers = [round(depth * self.layers) for depth in DEPTHS]
        gain = {layer: self._gain(validation, scores, layer) for layer in layers}
        layer = max(layers, key=lambda k: gain[k])
        found = self.cut(probe.top(self.scores[:layer].mean(dim=0), RATIO), layer)
        margin = self._gain(self.test, self.scores, layer)
        figure = f"{margin:+.3f} before layer {layer} ({shown(self.test, found)})"
        self.results.gate("instruction, multi, one-shot, keep 0.25: ≥ 0.10 above random", figure, margin >= 0.10)

    def _gain(self, bench: Bench, scores: torch.Tensor, layer: int) -> float:
        chosen = ask(self.model, bench, probe.top(scores[:layer].mean(dim=0), RATIO), layer)
        return mean_accuracy(chosen) - mean_accuracy(ask(self.model, bench, probe.random_kept(bench, RATIO), layer))


def other_image(example: Example) -> np.ndarray:
    """The picture of another scene of the same split."""
    split, number = example.image_id.split("-")
    others = sorted({e.image_id for e in load(split)} - {example.image_id})
    other = random.Random(number).choice(others)
    return np.asarray(next(e for e in load(split) if e.image_id == other).image())


def foreign_kept(bench: Bench, kept: torch.Tensor) -> torch.Tensor:
    """For each question the tokens kept for another question about the same image."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(bench.examples):
        rows[example.image_id].append(row)
    order = {row: mates[(place + 1) % len(mates)] for mates in rows.values() for place, row in enumerate(mates)}
    return kept[[order[row] for row in range(len(bench.examples))]]


def write(results: Results, doc: Path, questions: int, name: str) -> None:
    """Puts the tables between the model's markers in the document."""
    gates = markdown_table(("gate", "measured", ""), results.lines, align="l")
    body = "\n\n".join([f"{questions} questions of each split.", gates, *results.tables])
    put_between(doc, body, name, (START.format(name=name), END.format(name=name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--limit", type=int, default=None, help="questions of each split")
    parser.add_argument("--doc", type=Path, default=DOC)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gates = Gates(arguments.model, arguments.limit)
    gates.accuracy()
    gates.cuts()
    gates.attention()
    name = arguments.model.resolve().name
    write(gates.results, arguments.doc, len(gates.test.examples), name)
    draw(gates.results.panels, point(gates.test, gates.dense), arguments.doc.with_name(PICTURE.format(name=name)))


if __name__ == "__main__":
    main()
