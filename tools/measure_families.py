"""Measure every family of the zoo and write the record that ``task=families`` and ``docs/families.md`` show.

``python -m tools.measure_families [names]``: for each family, or for those named (with all their kinds), the largest
difference between a pruned model and the masked dense one, over attention implementations, paddings and schedules.
Figures of another transformers release stay in the record; run it under each.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

import zoo  # noqa: E402
from prunekit.evaluation.families import RECORD, load_record  # noqa: E402
from prunekit.families import REFUSED, Family, make_family  # noqa: E402
from removal import NAMES, PADDINGS, SCHEDULES, attentions, difference  # noqa: E402
from tools.families_page import markdown  # noqa: E402


def remarks(family: Family) -> list[str]:
    """What a loaded model of the family does not do, beyond exact removal."""
    windows = any(getattr(module, "sliding_window", None) for module in family.attentions)
    found = {
        "scores from its attention layers only": not all(family.attends(i) for i in range(family.depth)),
        "exact within the budget of its sparse attention": family.sparse_budget is not None,
        "positions=keep only": not family.renumbers,
        "no merging": family.stacked,
        "no flash attention, no lookup decoding (sliding window)": windows,
        "a pruned cache goes on by one token at a time": family.single_steps,
        "sequence made dense between layers": family.touches_hidden_between_layers,
    }
    return [text for text, holds in found.items() if holds]


def measure(name: str) -> dict[str, Any]:
    """Worst figures of one zoo entry."""
    worst: dict[str, Any] = {"prompt": 0.0, "decode": 0.0, "cases": 0, "attention": attentions(name)}
    for attn, padding, schedule in itertools.product(attentions(name), PADDINGS, SCHEDULES):
        found = difference(name, attn, padding, schedule)
        if math.isnan(found["moved"]):  # the dense model itself is not finite
            continue
        assert found["moved"] > 1e-3, (name, attn, padding, schedule)
        worst["prompt"] = max(worst["prompt"], found["prompt"])
        worst["decode"] = max(worst["decode"], found.get("decode", 0.0))
        worst["cases"] += 1
    return worst | {"remarks": remarks(make_family(zoo.build(name, attentions(name)[0])))}


def joined(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A family's figures over several of its kinds."""
    if old is None:
        return new
    largest = {key: max(old[key], new[key]) for key in ("prompt", "decode")}
    listed = {key: list(dict.fromkeys([*old[key], *new[key]])) for key in ("attention", "remarks")}
    return {**largest, **listed, "cases": old["cases"] + new["cases"]}


def main() -> None:
    """Measure the named entries, or all, and write the record and the page."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {"schema": 1, "measured": {}}
    families: dict[str, Any] = {}
    broken = {zoo.FAMILY[name]: reason for name, reason in zoo.BROKEN.items()}
    for name in sys.argv[1:] or NAMES:
        if name in zoo.BROKEN:
            print(f"{name}: not measured: {zoo.BROKEN[name]}", flush=True)
            continue
        try:
            found = measure(name)
        except Exception as error:
            print(f"{name}: {type(error).__name__} {str(error).splitlines()[0][:150]}", flush=True)
            continue
        print(f"{name}: prompt {found['prompt']:.1e}, decode {found['decode']:.1e}", flush=True)
        families[zoo.FAMILY[name]] = joined(families.get(zoo.FAMILY[name]), found)
    today = datetime.date.today().isoformat()
    if len(sys.argv) > 1:  # the named families alone are new
        families = record["measured"].get(transformers.__version__, {"families": {}})["families"] | families
    measured = {"date": today, "torch": torch.__version__, "families": families, "broken": broken}
    record["measured"][transformers.__version__] = measured
    record["refused"] = REFUSED
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (ROOT / "docs" / "families.md").write_text(markdown(load_record()))


if __name__ == "__main__":
    main()
