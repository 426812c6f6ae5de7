"""Imports go down only, those for type hints and inside functions included."""

from __future__ import annotations

import ast

from tools.structure import circles, imports, modules, plain_configs

FLOORS = [
    {"errors", "digests", "network", "ranks", "files", "registry", "options"},
    {"tensors"},
    {"families"},
    {"views"},
    {"components"},
    {"engine"},
    {"cost"},
    {"pruning"},
    {"data", "metrics", "adapters", "quantization", "loaded", "prompts", "models", "model_errors"},
    {"records"},
    {"results"},
    {"evaluation"},
    {"bench", "report"},
    {"app"},
]
"""From the ground up: a package imports from its own floor and those below it, and a user's ops stand on tensors."""


def test_no_circles():
    assert circles(imports(modules())) == []


def test_imports_go_down_only():
    level = {name: number for number, names in enumerate(FLOORS) for name in names}
    edges = {(source.split(".")[1], target.split(".")[1]) for source, targets in imports(modules()).items()
             for target in targets if source.count(".") and target.count(".")}  # fmt: skip
    up = {(source, target) for source, target in edges if source in level
          and source != target and level.get(target, len(FLOORS)) > level[source]}  # fmt: skip
    assert not up - {("pruning", "ops")}


def test_hydra_stands_in_one_package():
    """Words become a typed configuration in ``prunekit.run``: no other package imports Hydra or a plain one."""
    outside = ("hydra", "omegaconf", "wandb")
    users = set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            words = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            words += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            users |= {name for word in words if word.split(".")[0] in outside}
    assert users and all(name.startswith("prunekit.run.") for name in users)
    assert not plain_configs(modules())


def test_records_and_results_are_plain_data():
    """Run folders and tables are read without a model: whoever wants to join tables needs nothing of what ran."""
    above = tuple(f"prunekit.{name}" for name in ("evaluation", "engine", "components", "pruning", "train", "report"))
    edges = imports(modules())
    up = {(name, target) for name, targets in edges.items() if name.startswith(("prunekit.records", "prunekit.results"))
          for target in targets if target.startswith(above)}  # fmt: skip
    results_below = {(name, target) for name, targets in edges.items() if name.startswith("prunekit.records")
                     for target in targets if target.startswith("prunekit.results")}  # fmt: skip
    assert not up and not results_below
