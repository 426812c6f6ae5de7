"""The documents' own code runs, and their lengths keep what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.pruning.presets import methods

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "methods" / "README.md"]


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
    code = "\n".join(blocks(ROOT / "docs" / "guide.md", "python"))
    done = run(sys.executable, "-W", "ignore", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(3, " in done.stdout  # the first cut's layer and count


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


def test_methods_are_listed():
    listed = (ROOT / "methods" / "README.md").read_text()
    for name, path in methods().items():
        assert f"`{path.name}`" in listed and f"`{name}`" in listed, name
