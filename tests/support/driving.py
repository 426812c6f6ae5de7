"""A headless browser's steps on a page, from a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT


def drive(address: str, steps: list[list[str]], home: Path) -> dict:
    """Findings of ``browser.py`` for these steps on a file or an http address; skips where no browser starts."""
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(home), "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "browser.py"), address], input=json.dumps(steps),
        capture_output=True, text=True, timeout=600, env=environment,
    )  # fmt: skip
    if done.returncode == 3:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
