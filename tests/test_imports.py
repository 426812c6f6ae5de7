"""Imports go down only, those for type hints and inside functions included."""

from __future__ import annotations

from tools.structure import circles, imports, modules

LOWEST = {"prunekit.errors", "prunekit.tensors"}


def test_no_circles():
    assert circles(imports(modules())) == []


def test_the_engine_knows_no_pruner_and_no_configuration():
    above = ("prunekit.pruning", "prunekit.evaluation", "prunekit.train", "prunekit.run")
    edges = imports(modules())
    up = {(name, target) for name, targets in edges.items() if name.startswith("prunekit.engine")
          for target in targets if target.startswith(above)}  # fmt: skip
    assert not up


def test_the_maths_stands_at_the_bottom():
    edges = imports(modules())
    for name, targets in edges.items():
        if name.startswith("prunekit.tensors"):
            assert all(target.startswith(tuple(LOWEST)) for target in targets), (name, targets)


def test_records_and_results_are_plain_data():
    """Run folders and tables are read without a model: whoever wants to join tables needs nothing of what ran."""
    above = tuple(f"prunekit.{name}" for name in ("evaluation", "engine", "components", "pruning", "train", "report"))
    edges = imports(modules())
    up = {(name, target) for name, targets in edges.items() if name.startswith(("prunekit.records", "prunekit.results"))
          for target in targets if target.startswith(above)}  # fmt: skip
    results_below = {(name, target) for name, targets in edges.items() if name.startswith("prunekit.records")
                     for target in targets if target.startswith("prunekit.results")}  # fmt: skip
    assert not up and not results_below
