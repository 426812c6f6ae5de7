"""Shared set-up: tiny tensors are faster on one thread; no test may reach the user's own cache or account."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import settings

import folders
from prunekit.evaluation import timing
from prunekit.models import load_model
from tools.embedded.config import Size, build_model
from tools.embedded.export import export

torch.set_num_threads(1)
timing.ROUNDS = 1  # no test judges a measured time
settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def private_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PRUNEKIT_METHODS", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """An untrained model of the embedded model's kind, saved with its processor."""
    folder = tmp_path_factory.mktemp("model")
    size = Size(tower_layers=2, tower_width=32, tower_mlp=48, layers=6, width=32, mlp=48, heads=2)
    export(build_model(size, seed=0), size, folder, {})
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """``saved(family)``: a folder with its tiny model and processor, written once."""
    return cache(lambda family: folders.save(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model(str(model_folder), device="cpu")
