"""Visual tokens drawn from what a scene holds, without an image: what the tower's features are to become.

A patch is the sum of the embeddings of the words that name it: what it shows, its colour, where it is. The decoder
learns to answer on these while the tower learns to see; then the projector learns to give the same tokens. Drawn
tokens are as unsure as a tower's are: a patch looks partly like something else.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from prunekit.data.scene import CELLS
from prunekit.data.words import CORNERS, KINDS, NUMBERS
from tools.embedded.pool import HUES, THINGS
from tools.embedded.processor import CELL_NAMES, piece

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


def patch_words(labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Which word of each list of `label_tokens` names a patch, counted from one, 0 for none: [B, P] each."""
    things = labels["thing"]
    place, grid = torch.arange(things.shape[1]), round(things.shape[1] ** 0.5)
    row, column = place // grid * CELLS // grid, place % grid * CELLS // grid
    corner = torch.zeros_like(place)
    for number, (down, right) in enumerate(CORNERS.values()):
        corner[(row == down) & (column == right)] = number + 1
    every = {"cell": row * CELLS + column + 1, "corner": corner}
    named = {name: label.expand_as(things) for name, label in every.items()}
    sort = (things > 0).long() + (things > len(KINDS)).long()
    return {"thing": things, "hue": labels["hue"], "order": labels["order"], "sort": sort, **named}


def named(labels: dict[str, torch.Tensor], words: torch.Tensor, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the words' embeddings [V, D] that name each patch: [B, P, D]; label 0 adds nothing."""
    total = torch.zeros(())
    for name, token in tokens.items():
        embedded = words[token[(labels[name] - 1).clamp(min=0)]]
        total = total + WEIGHTS[name] * embedded * (labels[name] > 0)[..., None]
    return total


def drawn_tokens(
    labels: dict[str, torch.Tensor],
    words: torch.Tensor,
    tokens: dict[str, torch.Tensor],
    doubt: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Visual tokens [B, P, D] of patches with these labels.

    A patch that shows something keeps a share of its name drawn from [1 - doubt, 1]; the rest is another thing's
    (half the doubt for letters). All numbers get Gaussian noise of ``doubt`` times the embeddings' spread.
    """
    things = labels["thing"]
    total = named(patch_words(labels), words, tokens)
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
