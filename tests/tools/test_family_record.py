"""The table of families keeps what an older release showed where the newest cannot run a family, and says so."""

from __future__ import annotations

from prunekit.evaluation.families import load_record, releases, rows, summary
from prunekit.families import EXACT
from tools.families_page import markdown


def figures(prompt: float) -> dict:
    return {"prompt": prompt, "decode": 2e-6, "cases": 6, "attention": ["sdpa", "eager"], "remarks": ["no merging"]}


RECORD = {
    "measured": {
        "5.9.0": {"date": "d", "torch": "t", "families": {"llama4": figures(3e-6), "llava": figures(1e-5)}},
        "5.24.0": {"date": "d", "torch": "t", "families": {"llava": figures(4e-6)}, "broken": {"llama4": "it raises"}},
    },
    "refused": {"git": "its picture is a prefix"},
}


def test_releases_are_ordered_by_number():
    assert releases(RECORD) == ["5.24.0", "5.9.0"]


def test_each_family_shows_the_newest_release_that_runs_it():
    assert rows(RECORD) == [
        ("llama4", "decoder", "3e-06", "2e-06", "eager, sdpa", "no merging; figures of transformers 5.9.0"),
        ("llava", "decoder", "4e-06", "2e-06", "eager, sdpa", "no merging"),
    ]


def test_what_a_release_cannot_run_is_named_with_the_reason():
    newest, oldest = summary(RECORD)
    assert newest.startswith("transformers 5.24.0") and newest.endswith("; not llama4: it raises")
    assert "not llama4" not in oldest
    assert newest in markdown(RECORD)


def test_the_shipped_record_shows_every_exact_family_once():
    record = load_record()
    assert [row[0] for row in rows(record)] == list(EXACT)
