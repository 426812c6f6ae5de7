"""The documents' own code runs, and their lengths keep what they promise."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from paths import ROOT
from prunekit.pruning.presets import methods
from tools import structure

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "methods" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md"))]  # fmt: skip


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "2"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_guides_python_runs(tmp_path):
    code = "\n".join(blocks(ROOT / "docs" / "evaluate.md", "python") + blocks(ROOT / "docs" / "concepts.md", "python"))
    done = run(sys.executable, "-W", "ignore", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(3, " in done.stdout and "decoder 3 " in done.stdout  # the first cut's layer and count


def test_the_new_method_of_the_docs_runs_from_an_empty_folder(tmp_path):
    page = ROOT / "docs" / "new-method.md"
    (tmp_path / "methods").mkdir()
    parts = blocks(page, "python")
    assert len(parts[0].splitlines()) <= 15
    (tmp_path / "methods" / "mine.py").write_text("\n".join(parts))
    options = ["data.limit=14", "logger.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}"]
    done = run(sys.executable, "-m", "prunekit", "method=mine", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine = mine · single · one_shot, keep 0.25, cut before layer 2" in " ".join(done.stdout.split())


@pytest.mark.parametrize("path", [*DOCS, ROOT / "Makefile"], ids=lambda p: p.name)
def test_commands_of_the_tools_exist(path):
    for module in re.findall(r"python -m (tools[\w.]*)", path.read_text()):
        assert importlib.util.find_spec(module), module


def test_the_wheel_leaves_the_tools_out():
    """Everything in the wheel is named in pyproject.toml: two packages, and two folders that become part of one."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["prunekit", "hydra_plugins"]
    assert set(wheel["force-include"]) == {"conf", "methods"}
    for name, tree in structure.modules().items():
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not [module for module in imported if module.split(".")[0] in ("tools", "tests")], name


def test_methods_are_listed():
    listed = (ROOT / "methods" / "README.md").read_text()
    for name, path in methods().items():
        assert f"`{path.name}`" in listed and f"`{name}`" in listed, name
