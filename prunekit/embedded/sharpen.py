"""Between the first questions and all questions: tower and projector alone, on patches against words.

Questions show few images a second; here the tower sees ten times as many. The words stay as they are, so that the
decoder finds what it knows, only clearer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.words import KINDS
from prunekit.embedded.align import TEMPERATURE, label_tokens, named_loss, patch_words
from prunekit.embedded.progress import Log, optimiser, set_rate
from prunekit.embedded.tower import LETTER_WEIGHT, Heads, augment, pixels

RATE = 8e-4


def sharpen(
    model: LlavaForConditionalGeneration,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    images: np.ndarray,
    labels: tuple[torch.Tensor, ...],
    folder: Path,
    steps: int,
    first: int,
    batch: int = 40,
) -> None:
    """Trains tower, projector and the tower's heads in place, on the scenes from ``first`` on but the last 256."""
    log, tower, projector = Log(folder, "sharpen"), model.model.vision_tower, model.model.multi_modal_projector
    tower.set_attn_implementation("eager")  # see train_tower
    words = model.model.language_model.embed_tokens.weight.detach()
    tokens, layer = label_tokens(tokenizer), model.config.vision_feature_layer
    grid = model.config.vision_config.image_size // model.config.vision_config.patch_size
    optimizer = optimiser({tower: 1.0, projector: 1.0, heads: 1.0}, RATE)
    for step in range(steps):
        rng = np.random.default_rng([13, step])
        set_rate(optimizer, RATE, step, steps, warmup=20)
        index = first + np.sort(rng.choice(len(images) - 256 - first, batch, replace=False))
        things, hues, present, orders = (label[index] for label in labels)
        with torch.autocast("cpu", torch.bfloat16):
            out = tower(pixel_values=augment(pixels(images[index]), index), output_hidden_states=True)
            loss, patch, found = heads.read(out.last_hidden_state[:, 1:], out.pooler_output, things, hues, present)
            visual = projector(out.hidden_states[layer][:, 1:]).float()
        named, right = named_loss(visual, words, tokens, patch_words(things, hues, orders, grid))
        optimizer.zero_grad()
        (0.5 * loss + named + letter_loss(visual, words, tokens["thing"], things)).backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *projector.parameters()], 1.0)
        optimizer.step()
        if step % 25 == 24:
            log(step + 1, loss=loss.item(), named=named.item(), patch=patch, cls=found, right=right)


def letter_loss(visual: torch.Tensor, words: torch.Tensor, tokens: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
    """The letters' patches once more, against letters and kinds, as they are few."""
    shown = things > len(KINDS)
    cosine = F.normalize(visual[shown], dim=-1) @ F.normalize(words[tokens], dim=-1).T
    return LETTER_WEIGHT / 5 * F.cross_entropy(cosine / TEMPERATURE, things[shown] - 1)
