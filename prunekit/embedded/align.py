"""Stage 2: projector and word embeddings alone, so that patches and words share a space before the decoder learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.scene import CELLS
from prunekit.data.words import CORNERS, KINDS, NUMBERS
from prunekit.embedded.pool import HUES, THINGS
from prunekit.embedded.processor import CELL_NAMES, piece
from prunekit.embedded.progress import Log, load_checkpoint, optimiser, save_checkpoint, set_rate

RATE = 2e-3
TEMPERATURE = 0.06


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


def named_loss(
    visual: torch.Tensor, words: torch.Tensor, tokens: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of visual tokens [B, P, D] against the words of what they show, by cosine, and accuracies."""
    flat, loss, right = F.normalize(visual.flatten(0, 1), dim=-1), torch.zeros(()), {}
    for name, token in tokens.items():
        label = labels[name].flatten()
        shown = label > 0
        if bool(shown.any()):
            cosine = flat[shown] @ F.normalize(words[token], dim=-1).T
            loss = loss + F.cross_entropy(cosine / TEMPERATURE, label[shown] - 1)
            right[name] = (cosine.argmax(-1) == label[shown] - 1).float().mean().item()
    return loss, right


def train_align(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: torch.Tensor,
    labels: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    folder: Path,
    steps: int = 300,
    batch: int = 96,
) -> None:
    """Trains projector and embeddings in place; the output head starts as a small copy of the embeddings.

    ``features`` [N, P, C] of the tower; ``labels``: things, hues, places in codes [N, P]; the last 256 are held back.
    """
    log, path = Log(folder, "align"), folder / "align.pt"
    projector, words = model.model.multi_modal_projector, model.model.language_model.embed_tokens
    state = load_checkpoint(path)
    if state is not None:
        projector.load_state_dict(state["projector"])
        words.load_state_dict(state["words"])
    else:
        torch.nn.init.normal_(words.weight, std=0.5)
        tokens, held = label_tokens(tokenizer), len(features) - 256
        grid = int(features.shape[1] ** 0.5)
        optimizer = optimiser({projector: 1.0, words: 1.0}, RATE, decay=0.01)
        for step in range(steps):
            rng = np.random.default_rng([12, step])
            set_rate(optimizer, RATE, step, steps, warmup=20)
            index = torch.from_numpy(np.sort(rng.choice(held, batch, replace=False)))
            named = patch_words(labels[0][index], labels[1][index], labels[2][index], grid)
            loss, _ = named_loss(projector(features[index].float()), words.weight, tokens, named)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 49:
                index = torch.arange(held, held + 256)
                named = patch_words(labels[0][index], labels[1][index], labels[2][index], grid)
                with torch.no_grad():
                    loss, right = named_loss(projector(features[index].float()), words.weight, tokens, named)
                log(step + 1, loss=loss.item(), right=right)
        save_checkpoint(path, projector=projector.state_dict(), words=words.state_dict())
    with torch.no_grad():
        model.lm_head.weight.copy_(0.3 * F.normalize(words.weight, dim=-1))
