"""The last stage: tower, projector and decoder together, on questions about the pool's images."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.scene import Scene
from tools.embedded.align import named_loss, see
from tools.embedded.decoder import Plan, Trainer
from tools.embedded.drawn import patch_words
from tools.embedded.pool import HELD, scene_labels
from tools.embedded.tower import Heads

FURTHER = 0.5  # weight of the same on further images
SEEING = 0.3  # weight of the tower's own task, and of naming what patches show


class JointTrainer(Trainer):
    """Questions about images; the tower keeps its own task beside them."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        folder: Path,
        plan: Plan,
        pool: tuple[list[Scene], np.ndarray],
        heads: Heads,
        name: str = "joint",
    ) -> None:
        self.heads, (self.pool, self.images) = heads, pool
        self.tower = model.model.vision_tower
        self.tower.set_attn_implementation("eager")  # see train_tower
        super().__init__(model, tokenizer, folder, plan, name)
        self.modules["heads"] = heads
        self.crowded = [index for index, scene in enumerate(self.pool[:-HELD]) if len(scene.signs) > 1]
        self.index: list[int] = []

    def trained(self) -> dict[nn.Module, float]:
        seeing = (self.model.model.multi_modal_projector, self.tower, self.heads)
        return {**super().trained(), **dict.fromkeys(seeing, self.plan.tower)}

    def scenes(self, rng: random.Random) -> list[Scene]:
        crowded = rng.random() < self.plan.crowded
        places = self.crowded if crowded else range(len(self.pool) - HELD)
        self.index = sorted(rng.sample(places, self.plan.batch))
        return [self.pool[index] for index in self.index]

    def patch_side(self, rng: random.Random) -> int:
        return (
            rng.choice(self.plan.coarse_sides) if self.plan.coarse and rng.random() < self.plan.coarse else self.patch
        )

    def visual(
        self, scenes: list[Scene], labels: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        visual, loss, right = self.seen(np.array(self.index), scenes, labels)
        if self.plan.further:
            rng = np.random.default_rng([17, self.step])
            index = np.sort(rng.choice(len(self.pool) - HELD, self.plan.further, replace=False))
            others = [self.pool[number] for number in index]
            _, more, right = self.seen(index, others, scene_labels(others, self.patch))
            loss = loss + FURTHER / SEEING * more
        return visual, loss, right

    def seen(
        self, index: np.ndarray, scenes: list[Scene], labels: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        """Visual tokens of images, the loss of what the tower tells of them, and how much of it is right."""
        visual, seeing, patch = see(self.model, self.heads, self.images[index], index, scenes, labels)
        words = self.model.model.language_model.embed_tokens.weight
        name_loss, right = named_loss(visual, words, self.tokens, patch_words(labels))
        return visual, SEEING * (seeing + name_loss), {"patch": patch, "named": right["thing"]}
