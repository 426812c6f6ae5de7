"""A tiny model of the embedded model's kind, with examples and settings to train it."""

from __future__ import annotations

import torch

import prunekit
from prunekit.data.mini import load
from prunekit.models import LoadedModel
from prunekit.train.settings import Settings
from tools.embedded.config import Size, build_model
from tools.embedded.processor import build_processor

SIZE = Size(image=96, tower_layers=2, tower_width=32, tower_mlp=48, layers=4, width=32, mlp=48, heads=2)


def tiny() -> LoadedModel:
    model = build_model(SIZE, seed=0).eval()
    with torch.no_grad():  # as in tiny.py: hiding tokens must move the loss
        for name, p in model.named_parameters():
            if p.ndim > 1 and "language_model" in name:
                p.mul_(2.0)
    return LoadedModel(model, build_processor(SIZE.image, SIZE.patch), "tiny", "tiny-0")


def pruner(**options):
    return prunekit.Pruner(**{"keep_ratio": 0.25, **options})


def settings(kind="fusion", **options):
    return Settings(**{"kind": kind, "max_steps": 4, "batch_size": 4, "log_steps": 1, "save_steps": 2, **options})


def examples(count=32):
    return load("train", count)
