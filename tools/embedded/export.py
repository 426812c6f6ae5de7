"""Stage 4: the model folder, as transformers loads it, with a card and checksums."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlavaForConditionalGeneration

from prunekit.data.mini import SPLITS, load
from prunekit.data.scene import VERSION
from prunekit.models import EMBEDDED
from tools.embedded.config import Size
from tools.embedded.processor import build_processor

MODEL_FOLDER = EMBEDDED["mini"]
CHECKSUMS = "checksums.json"

CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# The embedded model of prunekit

A small LLaVA (`LlavaForConditionalGeneration`) for research on visual-token pruning where no hub is at hand:
{parameters:.1f} million parameters, {visual} visual tokens, {layers} decoder layers of width {width}; CLIP-style
tower of {tower_layers} layers on patches of {patch} pixels, whose last but one layer feeds the projector.

- **Data**: generated scenes of emoji and signs with one-word questions (`prunekit.data`). Art: Noto Emoji,
  © Google Inc., Apache-2.0. Letters: DejaVu Sans Bold.
- **Licence** of the weights: Apache-2.0.
- **Trained** from scratch by `python -m tools.embedded.train` (see `training.json` for seed, steps and
  versions). Where the text looks was never supervised, and nothing was pruned in training.
- **Gates and figures**: `docs/internal/embedded-model.md` of the repository.
- **Limits**: it knows 48 drawn objects, 8 colours, 20 letters and the phrasings of its generator. It is no benchmark of
  natural images and stands in for no public one.
"""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_hash() -> str:
    """A hash of every split's questions, answers and regions, and of some rendered images."""
    digest = hashlib.sha256(VERSION.encode())
    for split in SPLITS:
        examples = load(split)
        digest.update(repr(examples).encode())
        digest.update(examples[0].image().tobytes() + examples[-1].image().tobytes())
    return digest.hexdigest()


def export(model: LlavaForConditionalGeneration, size: Size, folder: Path, training: dict[str, Any]) -> None:
    """Writes weights in fp16, configuration, processor, card, ``training.json`` and checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    halved = type(model)(model.config).to(torch.float16)
    halved.load_state_dict(model.state_dict())
    halved.generation_config = model.generation_config
    halved.config.dtype = torch.float16
    halved.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    build_processor(size.image, size.patch).save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    card = CARD.format(
        parameters=parameters,
        visual=size.visual,
        layers=size.layers,
        width=size.width,
        tower_layers=size.tower_layers,
        patch=size.patch,
    )
    (folder / "README.md").write_text(card)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    record = {**training, "data_version": VERSION, "data_sha256": data_hash(), "versions": versions}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text(json.dumps({name: sha256(folder / name) for name in names}, indent=2) + "\n")
