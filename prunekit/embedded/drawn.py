"""Visual tokens drawn from what a scene holds, without an image: what the tower's features are to become.

A patch is the sum of the embeddings of the words that name it: what it shows, its colour, where it is. The decoder
learns to answer on these while the tower learns to see; then the projector learns to give the same tokens. Drawn
tokens are as unsure as a tower's are: a patch looks partly like something else.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from prunekit.data.scene import CELLS, Scene
from prunekit.data.words import CORNERS, KINDS, NUMBERS
from prunekit.embedded.pool import HUES, THINGS, patch_labels
from prunekit.embedded.processor import CELL_NAMES, piece

WEIGHTS = {"thing": 1.0, "hue": 1.0, "cell": 1.0, "corner": 0.7, "sort": 0.5, "order": 1.0}


def label_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Token ids of things, hues, cells, corners, sorts (tile, sign) and places in a code."""
    names = {
        "thing": [piece(thing) if thing in KINDS else thing for thing in THINGS],
        "hue": [piece(hue) for hue in HUES],
        "cell": [piece(cell) for cell in CELL_NAMES],
        "corner": [piece(corner) for corner in CORNERS],
        "sort": [piece("tile"), piece("sign")],
        "order": [piece(number) for number in NUMBERS],
    }
    return {name: torch.tensor(tokenizer.convert_tokens_to_ids(tokens)) for name, tokens in names.items()}


def patch_words(things: torch.Tensor, hues: torch.Tensor, orders: torch.Tensor, grid: int) -> dict[str, torch.Tensor]:
    """Which word of each list a patch should be near, counted from one, 0 for none: [B, P] each."""
    place = torch.arange(grid**2)
    row, column = place // grid * CELLS // grid, place % grid * CELLS // grid
    corner = torch.zeros_like(place)
    for number, (down, right) in enumerate(CORNERS.values()):
        corner[(row == down) & (column == right)] = number + 1
    sort = (things > 0).long() + (things > len(KINDS)).long()
    every = {"cell": row * CELLS + column + 1, "corner": corner}
    labels = {name: label.expand_as(things) for name, label in every.items()}
    return {"thing": things, "hue": hues, "order": orders, "sort": sort, **labels}


def named(labels: dict[str, torch.Tensor], words: torch.Tensor, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the words' embeddings [V, D] that name each patch: [B, P, D]; label 0 adds nothing."""
    total = torch.zeros(())
    for name, token in tokens.items():
        embedded = words[token[(labels[name] - 1).clamp(min=0)]]
        total = total + WEIGHTS[name] * embedded * (labels[name] > 0)[..., None]
    return total


def labels_of(scenes: list[Scene], patch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Things, hues, places in codes [B, P] of scenes."""
    found = [patch_labels(scene, patch) for scene in scenes]
    things, hues, orders = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))
    return things, hues, orders


def drawn_tokens(
    scenes: list[Scene],
    words: torch.Tensor,
    tokens: dict[str, torch.Tensor],
    patch: int,
    doubt: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Visual tokens [B, P, D] of scenes.

    A patch that shows something keeps a share of its name drawn from [1 - doubt, 1]; the rest is another thing's
    (half the doubt for letters). All numbers get Gaussian noise of ``doubt`` times the embeddings' spread.
    """
    things, hues, orders = labels_of(scenes, patch)
    labels = patch_words(things, hues, orders, round(things.shape[1] ** 0.5))
    total = named(labels, words, tokens)
    letter = things > len(KINDS)
    share = doubt * torch.rand(things.shape, generator=generator) * torch.where(letter, 0.5, 1.0) * (things > 0)
    other = torch.where(
        letter,
        torch.randint(len(KINDS), len(THINGS), things.shape, generator=generator),
        torch.randint(0, len(KINDS), things.shape, generator=generator),
    )
    true = words[tokens["thing"][(things - 1).clamp(min=0)]]
    total = total + share[..., None] * (words[tokens["thing"][other]] - true)
    spread = words.detach().std() * doubt
    return total + spread * torch.randn(total.shape, generator=generator)
