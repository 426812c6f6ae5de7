"""Names that options had in version 0.1. Command lines, experiment files and run folders that use them are still read;
prunekit itself writes the new ones alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

NEW_NAMES = {
    "evidence": "eval.evidence",
    "shape": "bench.shape",
    "runs": "report.runs",
    "rows": "sweep.rows",
    "table.rows": "sweep.only",
    "table": "sweep.table",
    "objective": "sweep.objective",
    "study.skip": "sweep.skip",
    "study.spread": "sweep.table.spread",
    "study.file": "sweep.table.file",
    "study.marks": "sweep.table.name",
    "study.picture": "sweep.table.picture",
}
"""The new name of each old one, and of every option below it; "table.rows" stands before "table"."""

_KEY = re.compile(rf"(\+\+|\+|~)?({'|'.join(map(re.escape, NEW_NAMES))})(?=[.=]|$)")


def modern_word(word: str) -> str:
    """A word of the command line, "rows.late=...", or a key, under its new name."""
    return _KEY.sub(lambda match: f"{match[1] or ''}{NEW_NAMES[match[2]]}", word, count=1) if _KEY.match(word) else word


def modern(settings: Mapping[str, object]) -> dict[str, object]:
    """A configuration with every option at its new place; one that has no old name comes back equal."""
    renamed = dict(settings)
    for old, new in NEW_NAMES.items():
        group, _, name = old.rpartition(".")
        holder = renamed.get(group) if group else renamed
        if isinstance(holder, Mapping) and name in holder:
            value, rest = holder[name], {key: entry for key, entry in holder.items() if key != name}
            renamed = {**renamed, group: rest} if group else rest
            for part in reversed(new.split(".")):
                value = {part: value}
            renamed = _merged(renamed, value)
    return renamed


def _merged(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Two trees as one; where both have a value that of ``above`` counts."""
    merged = dict(below)
    for key, value in above.items():
        there = merged.get(key)
        both = isinstance(there, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(there, value) if both else value  # type: ignore[arg-type]
    return merged
