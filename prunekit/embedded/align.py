"""Stage 2: projector and word embeddings alone, so that patches and words share a space before the decoder learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.words import KINDS
from prunekit.embedded.pool import HUES, THINGS
from prunekit.embedded.processor import SPACE
from prunekit.embedded.progress import Log, load_checkpoint, optimiser, save_checkpoint, set_rate

RATE = 2e-3
TEMPERATURE = 0.06
NEAR = 0.25


def label_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of THINGS and of HUES."""
    things = [SPACE + thing if thing in KINDS else thing for thing in THINGS]
    hues = [SPACE + hue for hue in HUES]
    return (
        torch.tensor(tokenizer.convert_tokens_to_ids(things)),
        torch.tensor(tokenizer.convert_tokens_to_ids(hues)),
    )


def train_align(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: torch.Tensor,
    labels: tuple[torch.Tensor, torch.Tensor],
    folder: Path,
    steps: int = 300,
    batch: int = 96,
) -> None:
    """Trains projector and embeddings in place; the output head starts as a small copy of the embeddings.

    ``features`` [N, P, C] of the tower; ``labels``: things and hues [N, P]. The last 256 scenes are held back.
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
        optimizer = optimiser({projector: 1.0, words: 1.0}, RATE, decay=0.01)
        for step in range(steps):
            rng = np.random.default_rng([12, step])
            set_rate(optimizer, RATE, step, steps, warmup=20)
            index = torch.from_numpy(np.sort(rng.choice(held, batch, replace=False)))
            loss, _ = _loss(projector(features[index].float()), words.weight, tokens, labels, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 49:
                index = torch.arange(held, held + 256)
                with torch.no_grad():
                    loss, right = _loss(projector(features[index].float()), words.weight, tokens, labels, index)
                log(step + 1, loss=loss.item(), thing=right[0], hue=right[1])
        save_checkpoint(path, projector=projector.state_dict(), words=words.state_dict())
    with torch.no_grad():
        model.lm_head.weight.copy_(0.3 * F.normalize(words.weight, dim=-1))


def _loss(
    projected: torch.Tensor,
    words: torch.Tensor,
    tokens: tuple[torch.Tensor, torch.Tensor],
    labels: tuple[torch.Tensor, torch.Tensor],
    index: torch.Tensor,
) -> tuple[torch.Tensor, list[float]]:
    """Cross-entropy of the patches against the words of their thing and hue by cosine, and accuracy where there is one.

    Ground is a class of its own, at cosine NEAR: a shown patch must come nearer to its word, a ground patch to none.
    """
    loss, right = torch.zeros(()), []
    flat = F.normalize(projected.flatten(0, 1), dim=-1)
    weight = torch.ones(max(len(token) for token in tokens) + 1)
    weight[0] = 0.1
    for token, label in zip(tokens, labels, strict=True):
        label = label[index].flatten()
        cosine = flat @ F.normalize(words[token], dim=-1).T
        logits = torch.cat([torch.full((len(flat), 1), NEAR), cosine], dim=1) / TEMPERATURE
        loss = loss + F.cross_entropy(logits, label, weight=weight[: logits.shape[1]])
        right.append((cosine.argmax(-1) == label - 1)[label > 0].float().mean().item())
    return loss, right
