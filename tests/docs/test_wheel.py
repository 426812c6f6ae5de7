"""The wheel alone: built, installed where no checkout is, and used from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prunekit
from paths import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "prunekit", "hydra_plugins", "conf", "methods")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The ``bin`` folder of an environment with the wheel, and of its dependencies those that are installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:  # a build leaves nothing behind in the checkout
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"prunekit-{prunekit.__version__}-")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    return python.parent


def test_used_from_an_empty_folder(installed, tmp_path):
    where = run(installed / "python", "-c", "import prunekit; print(prunekit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert run(installed / "prunekit", "--version", cwd=tmp_path).split()[-1] == prunekit.__version__
    out = run(installed / "prunekit", "data.limit=7", "logger.mode=disabled", "hydra.run.dir=run", cwd=tmp_path)
    assert "kept.png" in out and (tmp_path / "run" / "metrics.json").exists()
