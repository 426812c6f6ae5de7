"""The projector learns to name what the tower sees, in the words on which the decoder has learned to answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.embedded.drawn import label_tokens, named, patch_words
from prunekit.embedded.pool import HELD
from prunekit.embedded.progress import Log, load_checkpoint, optimiser, save_checkpoint, set_rate

RATE = 2e-3
TEMPERATURE = 0.06


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
    steps: int = 400,
    batch: int = 48,
) -> None:
    """Trains the projector in place to give the tokens that the decoder has learned on; words and tower stay.

    ``features`` [N, P, C] of the tower; ``labels``: things, hues, places in codes [N, P]; the last HELD are held back.
    """
    log, path = Log(folder, "align"), folder / "align.pt"
    projector, words = model.model.multi_modal_projector, model.model.language_model.embed_tokens.weight.detach()
    state = load_checkpoint(path)
    if state is not None:
        projector.load_state_dict(state["projector"])
        return
    tokens, grid = label_tokens(tokenizer), int(features.shape[1] ** 0.5)
    spread = words.var()

    def loss_of(index: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        names = patch_words(labels[0][index], labels[1][index], labels[2][index], grid)
        given, wanted = projector(features[index].float()), named(names, words, tokens)
        loss, right = named_loss(given, words, tokens, names)
        weight = 1.0 + 4.0 * (labels[0][index] > 0)[..., None]  # most patches are ground
        return ((given - wanted).square() * weight).mean() / spread + 0.2 * loss, right

    optimizer = optimiser({projector: 1.0}, RATE, decay=0.01)
    for step in range(steps):
        rng = np.random.default_rng([12, step])
        set_rate(optimizer, step, steps, warmup=20)
        loss, _ = loss_of(torch.from_numpy(np.sort(rng.choice(len(features) - HELD, batch, replace=False))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            with torch.no_grad():
                loss, right = loss_of(torch.arange(len(features) - HELD, len(features)))
            log(step + 1, loss=loss.item(), right=right)
    save_checkpoint(path, projector=projector.state_dict())
