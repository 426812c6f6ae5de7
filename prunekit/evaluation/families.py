"""The table of model families: which are exact, by how much, and which are refused; from a record of measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prunekit.families import EXACT
from prunekit.results.markdown import markdown_table

RECORD = Path(__file__).parents[1] / "assets" / "families.json"
"""Written by ``tests/measure_families.py``."""

HEADINGS = ("family", "sites", "prompt", "decode", "attention", "remarks")


def load_record() -> dict[str, Any]:
    """The measurements that ship with prunekit."""
    return json.loads(RECORD.read_text())


def releases(record: dict[str, Any]) -> list[str]:
    """The transformers releases that were measured, the newest first."""
    numbers = {
        version: [int(part) for part in version.split(".")[:3] if part.isdigit()] for version in record["measured"]
    }
    return sorted(numbers, key=numbers.__getitem__, reverse=True)


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row an exact family, as ``HEADINGS`` says; figures are the worst of the newest release that runs it."""
    newest, measured = releases(record)[0], record["measured"]
    lines: list[tuple[str, ...]] = []
    for name in EXACT:
        version = next((v for v in releases(record) if name in measured[v]["families"]), None)
        if version is None:
            continue
        found = measured[version]["families"][name]
        older = [] if version == newest else [f"figures of transformers {version}"]
        figures = f"{found['prompt']:.0e}", f"{found['decode']:.0e}", ", ".join(sorted(found["attention"]))
        lines.append((name, "decoder", *figures, "; ".join(found["remarks"] + older)))
    return lines


def summary(record: dict[str, Any]) -> list[str]:
    """One line a transformers release: families, cases, worst figures, date, and what the release cannot run."""
    lines = []
    for version in releases(record):
        measured = record["measured"][version]
        found = measured["families"].values()
        cases, prompt = sum(f["cases"] for f in found), max(f["prompt"] for f in found)
        decode = max(f["decode"] for f in found)
        broken = "".join(f"; not {name}: {why}" for name, why in sorted(measured.get("broken", {}).items()))
        lines.append(
            f"transformers {version} (torch {measured['torch']}, {measured['date']}): {len(found)} families, {cases} "
            f"cases, worst difference {prompt:.1e} in the prompt and {decode:.1e} in decoding{broken}"
        )
    return lines


def print_families() -> None:
    """Print which model families are exact and which are refused."""
    record, console = load_record(), Console()
    table = Table(title="families whose pruned model equals the masked dense one", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("prompt", "decode") else "left")
    for row in rows(record):
        table.add_row(*row)
    console.print(table)
    refused = Table(title="refused", title_justify="left")
    refused.add_column("family")
    refused.add_column("reason")
    for name, reason in sorted(record["refused"].items()):
        refused.add_row(name, reason)
    console.print(refused)
    for line in summary(record):
        console.print(line, highlight=False)


PAGE = """# Model families

Written by `python tests/measure_families.py`; `python -m prunekit task=families` prints the same.

A family is **exact** when a pruned model's logits equal those of the dense model whose layers from the cut on cannot
see the tokens that went: tiny random models in fp32, over attention implementations, three paddings, one cut and two.
`prompt` and `decode` are the largest differences of logits, at text positions of the prompt and in cached greedy
decoding. The tests ask for less than 1e-4.

{summary}

{table}

Any other model type of `AutoModelForImageTextToText` goes the same generic way, with a warning that nobody has
verified it.

## Remarks

- *scores from its attention layers only*: recurrent and convolution layers have no attention to read.
- *exact within the budget of its sparse attention*: with more tokens than its index may choose, the index chooses anew
  among what stays (one warning).
- *positions=keep only*: positions are triples, or not those of one plain rotary embedding.
- *no merging*: several hidden states stand for a token, so `reducer=merge` is refused.
- *no flash attention, no lookup decoding*: flash attention would count a sliding window over what is left, and a pruned
  window cannot be wound back.
- *figures of transformers …*: the newest release measured cannot run the family's dense model, as said above.
- *sequence made dense between layers*: the model's own code touches hidden states there, which costs two copies.

## Refused

{refused}
| blip-2, instructblip with a T5 | its visual tokens stand in an encoder's sequence, not in a decoder's |

Also refused, in one line at `apply` or at the first forward: flex attention; static, quantized and offloaded caches;
gradient checkpointing where a layer depends on true positions inside (Llama 4, Inkling, and Inkling 2
before transformers 5.24).
"""


def markdown(record: dict[str, Any]) -> str:
    """``docs/families.md``."""
    return PAGE.format(
        summary="\n".join(f"- {line}." for line in summary(record)),
        table=markdown_table(HEADINGS, rows(record), align="l"),
        refused=markdown_table(("family", "reason"), sorted(record["refused"].items()), align="l"),
    )
