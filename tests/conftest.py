"""Shared set-up: tiny tensors are faster on one thread; no test may reach the user's own cache or account."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def private_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PRUNEKIT_METHODS", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
