"""Writes docs/methods.md: each method's parts, where it cuts, whether it knows the question, what scoring costs, its
paper, and its accuracy on the embedded model.

    python -m tools.methods_page RUNS/methods RUNS/equal_cost

The two folders are those of ``experiment=methods`` and ``experiment=equal_cost``; the rest is worked out here. Whether
a method knows the question is seen on the embedded model: two questions about one image, and whether other tokens stay.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

import prunekit
from prunekit.components.base import Component
from prunekit.cost import estimate, shape_of
from prunekit.data.mini import load
from prunekit.errors import PrunekitError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.regions import regions_for
from prunekit.models import load_model
from prunekit.pruning.presets import methods
from prunekit.results.markdown import markdown_table
from prunekit.results.numbers import with_interval

ROOT = Path(__file__).resolve().parent.parent
PAGE, FIDELITY = ROOT / "docs" / "methods.md", ROOT / "docs" / "fidelity.md"
LABELS = {"prumerge+": "prumerge_plus", "sparsevlm, version 2": "sparsevlm_plus", "dart in lightcompress": "dart_code"}
"""Rows of docs/fidelity.md whose first word is not the method's name."""

RATIOS = ("keep_ratio 0.5", "keep_ratio 0.25", "keep_ratio 0.1")
BUDGETS = tuple(f"budget flops:{share}" for share in (0.3, 0.5, 0.7))
TOTALS = tuple(f"budget total:{share}" for share in (0.3, 0.5, 0.7))
VISUAL, TEXT = 576, 64
"""The prompt of LLaVA-1.5-7B for which the cost of scoring is counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", type=Path, help="the folder of experiment=methods")
    parser.add_argument("equal", type=Path, help="the folder of experiment=equal_cost")
    folders = parser.parse_args()
    results = [json.loads((folder / "results.json").read_text()) for folder in (folders.methods, folders.equal)]
    PAGE.write_text(page(sorted(methods()), *results))
    print(f"written to {PAGE}")


def page(names: list[str], by_ratio: dict[str, Any], by_cost: dict[str, Any]) -> str:
    """The whole page."""
    probe, checked = QuestionProbe(), checked_names(FIDELITY.read_text())
    parts = [[f"`{name}`", *description(name, probe, name in checked)] for name in names]
    heads = ["method", "parts", "site", "knows the question", "scoring", "paper", "beside its authors' code"]
    return PREFACE.format(
        parts=markdown_table(heads, parts),
        share=accuracies(by_ratio, names, RATIOS),
        cost=accuracies(by_cost, names, BUDGETS),
        total=accuracies(by_cost, names, TOTALS),
        examples=by_ratio["examples"],
        dense=with_interval(by_ratio["dense"]["accuracy"]["mean"], by_ratio["dense"]["accuracy_ci"]),
    )


def accuracies(results: dict[str, Any], names: list[str], sections: tuple[str, ...]) -> str:
    """The table of the methods and the sections that were run."""
    run = {(cell["row"], cell["section"].replace("\\", "")) for cell in results["cells"]}
    shown = [section for section in sections if any(section == other for _, other in run)]
    rows = [name for name in names if any((name, section) in run for section in shown)]
    return markdown_table(
        ["method", *shown], [[f"`{name}`", *(figure(results, name, section) for section in shown)] for name in rows]
    )


def description(name: str, probe: QuestionProbe, checked: bool) -> list[str]:
    """Its parts in words, its site, whether it knows the question, the cost of scoring, its paper, and the check."""
    pruner = prunekit.method(name)
    parts = {kind: part for kind, part in pruner.components.items() if part.registered_name not in ("drop", "topk")}
    words = ", ".join(f"{kind} `{part.registered_name}`" for kind, part in parts.items())
    return [
        words, ", ".join(pruner.schedule.sites), probe.answer(pruner), scoring(pruner), paper(pruner),
        "[yes](fidelity.md)" if checked else "",
    ]  # fmt: skip


def paper(pruner: prunekit.Pruner) -> str:
    """The first paper that one of its parts names."""
    for part in pruner.components.values():
        match = re.search(r"https://(arxiv\.org/abs|doi\.org)/([^\s),]+)", " ".join((part.__doc__ or "").split()))
        if match and type(part).__module__.startswith("prunekit_methods"):
            return f"[{match[2]}]({match[0].removesuffix('),')})"
    return ""


def scoring(pruner: prunekit.Pruner) -> str:
    """The scorer's share of the dense prefill's products, on LLaVA-1.5-7B's shape."""
    from prunekit.bench.shapes import config_of

    shape = shape_of(config_of("llava-1.5-7b"))
    try:
        pruned = estimate(shape, pruner, visual=VISUAL, text=TEXT)
    except PrunekitError:
        return "in the encoder" if "vision" in pruner.schedule.sites else "as it is fitted"
    return f"{pruned.scorer / estimate(shape, visual=VISUAL, text=TEXT).prefill:.2%}"


class QuestionProbe:
    """The embedded model and two questions about one image of the validation split."""

    def __init__(self) -> None:
        self.batcher = Batcher(load_model("mini", device="cpu"))
        first, *others = load("validation", 12)
        self.examples = [first, next(e for e in others if e.image_id == first.image_id)]

    def answer(self, pruner: prunekit.Pruner) -> str:
        """Whether another question leaves other tokens: "yes", "no", "random", or what it needs instead of an image."""
        if pruner.scorer.draws and not pruner.selector.ignores_scores:
            return "random"
        kept = []
        for example in self.examples:
            try:
                with torch.inference_mode(), pruner(self.batcher.loaded.model, regions_for(pruner, [example])) as trace:
                    self.batcher.loaded.model(**self.batcher.inputs([example], pruner))
            except PrunekitError:
                return "yes" if needs_text(pruner) else "no"  # it needs a video
            kept.append(trace.cuts[-1].kept)
        return "no" if torch.equal(*kept) else "yes"


def needs_text(pruner: prunekit.Pruner) -> bool:
    """Whether a method of videos, which cannot be tried here, reads attention inside the decoder."""
    scorer: Component = pruner.scorer
    return "decoder" in pruner.schedule.sites and bool(getattr(scorer, "uses_attention", False))


def checked_names(fidelity: str) -> set[str]:
    """Methods with a row in a table of what was run beside their authors' code."""
    names = set()
    for line in fidelity.splitlines():
        if match := re.match(r"\| ([A-Z][^|(`]*?)(,? (Apache|MIT)[^|]*| \([^|]*)? \|", line):
            label = match[1].strip().rstrip(",").lower()
            names |= {LABELS.get(label, label.split(",")[0].replace(" ", "_"))}
    return names


def figure(results: dict[str, Any], name: str, section: str) -> str:
    """Accuracy with its interval, or why there is none."""
    for cell in results["cells"]:
        if cell["row"] == name and cell["section"].replace("\\", "") == section:
            if cell["error"] is not None:
                match = re.search(r"out of reach: ([\d.e-]+) to ([\d.e-]+)", cell["error"])
                return f"reaches {match[1]} to {match[2]}" if match else "refused"
            return with_interval(cell["accuracy"]["mean"], cell["accuracy_ci"])
    return "–"


PREFACE = """# Methods

All methods that are built in, with their parts, sources and figures. `python -m tools.methods_page` writes this page.
[Fidelity](fidelity.md) says how each one relates to its paper and its authors' code, and
[A new method in one file](new-method.md) shows how to write one.

## Parts

*Scoring* is the scorer's share of the dense prefill's multiply-accumulates, by formula, for LLaVA-1.5-7B with 576
visual and 64 other tokens. *Knows the question* was tried on the embedded model: does another question about the same
image keep other tokens? Parts that are `topk` or `drop` are left out.

{parts}

## Accuracy at equal keep ratios

On the embedded model `mini`, the first {examples} questions of the test split, mean over tasks with 95 % intervals
(bootstrap over images); dense {dense}. These numbers compare methods on this model; they are not benchmark results.
Methods that cut inside the decoder pay for the layers before their cut: compare them at equal cost, below.

{share}

## Accuracy at equal cost

Here every method has the same share of the dense prefill's FLOPs (`budget=flops:`): layers and counts are solved for
it. A method that cannot reach a budget says which shares it reaches.

{cost}

With the vision encoder's FLOPs on both sides (`budget=total:`), methods that cut inside the encoder get what they save
there:

{total}

```bash
python -m prunekit experiment=methods
python -m prunekit experiment=equal_cost
```
"""


if __name__ == "__main__":
    main()
