"""The table of model families: which are exact, by how much, and which are refused; from a record of measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NotRequired, TypedDict

from prunekit.families import EXACT
from prunekit.results.screen import screen_table, show

RECORD = Path(__file__).parents[1] / "assets" / "families.json"
"""Written by ``tools/measure_families.py``."""

HEADINGS = ("family", "sites", "prompt", "decode", "attention", "remarks")


class Measured(TypedDict):
    """One family under one transformers release: cases, and the worst difference from the masked dense model."""

    attention: list[str]
    cases: int
    prompt: float
    decode: float
    remarks: list[str]


class Release(TypedDict):
    """What was measured under one transformers release; ``broken`` says which families it cannot run, and why."""

    date: str
    torch: str
    families: dict[str, Measured]
    broken: NotRequired[dict[str, str]]


class FamilyRecord(TypedDict):
    """``assets/families.json``; ``refused`` has the reason of each refused family."""

    measured: dict[str, Release]
    refused: dict[str, str]


def load_record() -> FamilyRecord:
    """The measurements that ship with prunekit."""
    return json.loads(RECORD.read_text())


def releases(record: FamilyRecord) -> list[str]:
    """The transformers releases that were measured, the newest first."""
    numbers = {
        version: [int(part) for part in version.split(".")[:3] if part.isdigit()] for version in record["measured"]
    }
    return sorted(numbers, key=numbers.__getitem__, reverse=True)


def rows(record: FamilyRecord) -> list[tuple[str, ...]]:
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


def summary(record: FamilyRecord) -> list[str]:
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
    record = load_record()
    show(screen_table("families whose pruned model equals the masked dense one", HEADINGS, rows(record), align="llrrl"))
    show(screen_table("refused", ("family", "reason"), sorted(record["refused"].items()), align="l"))
    for line in summary(record):
        print(line)
