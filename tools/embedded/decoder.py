"""Trains the decoder on questions about scenes: on drawn visual tokens first, then on what the tower sees."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.scene import SIZE, Scene, draw_scene
from prunekit.data.words import NUMBERS
from tools.embedded.asking import ASKED, Asker, Forms, accuracy_by_task, answer_right, early_labels
from tools.embedded.drawn import drawn_tokens, label_tokens
from tools.embedded.forward import Masks, decoder_layer, embed, make_masks, run_decoder
from tools.embedded.lessons import LESSONS
from tools.embedded.packing import IGNORE, PREFIX, Packed, positions
from tools.embedded.pool import HUES, THINGS, scene_labels
from tools.embedded.progress import Log, load_checkpoint, optimisers, save_checkpoint
from tools.embedded.stage import Stage


@dataclass
class Plan:
    """How the decoder is trained.

    Blindness: in layers below a bound drawn for each step, text does not see the image. It makes the circuits that
    look grow in the middle of the decoder, not in its first layer; ``sighted`` is the share of the steps, at the end,
    in which the bound is zero, as it always is in use. Glances are the opposite: text sees the image only below layer
    ``glance_below``, so that what can be told early is looked up early too. Where the text looks is never supervised.
    """

    steps: int = 3000
    rate: float = 4e-3  # Muon's; a tenth of it for embeddings and vectors
    batch: int = 4
    blind: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    sighted: float = 0.0
    glance: float = 0.0  # share of the steps, up to GLANCING of them, that are glances
    glance_below: int = 3
    doubt: float = 0.35  # of drawn tokens; it grows to this over the first third
    ripen_layer: int = 2  # patches are classified from the input of this layer ...
    ripen_weight: float = 0.3  # ... with this weight
    early_weight: float = 0.5  # of answering at the question's last word already: one step fewer to learn at first
    patience: int = 80  # steps after which the next task joins, if the last one is not learned sooner; 0: all at once
    fresh: tuple[int, ...] = ()  # layers that a grown decoder has added
    turns: float = 0.8  # share of the steps that ask mostly one task, one that lags
    crowded: float = 0.0  # share of the steps whose scenes all hold two signs: only there a sign's colour matters
    forms: Forms = field(default_factory=Forms)  # of the questions of the sighted steps
    pairs: float = 0.0  # share of the sighted steps whose rows show two images
    coarse: float = 0.0  # share of the steps whose images are shrunk to fewer patches ...
    coarse_sides: tuple[int, ...] = (24, 32)  # ... of so many pixels of the scene
    later: float = 1.0  # weight of an answer's tokens after its first
    tower: float = 0.15  # the tower's rate as a share of the decoder's, on images
    further: int = 0  # images a step on which the tower alone learns
    seed: int = 0


ORDER = (
    *("attribute", "position"),  # from the start; the others join one by one
    *("where", "on", "beside", "letter", "text", "existence", "option", "relation", "choice", "count", "comparison"),
)


FIRST, LEARNED = 2, 0.5
RANKS = ("twin", "fellow", "order")  # of a patch among like objects, and among its sign's letters
GLANCING = 0.93  # of a stage's steps; after it none is a glance
RANK_WEIGHT = 4.0  # of telling them, which takes longest
FRESH_RATE = 0.5  # of the rate
SHAPES = 32  # for which a layer is compiled: sizes and numbers of images, with sight and without


class Ripeness(nn.Module):
    """Reads from visual hidden states what their patches show; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {"thing": len(THINGS), "hue": len(HUES), **dict.fromkeys(RANKS, len(NUMBERS))}
        self.norm = nn.RMSNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, hidden: torch.Tensor, labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss and accuracies over the patches that show something; ``hidden`` is [B, P, D]."""
        hidden, loss, right = self.norm(hidden), torch.zeros(()), {}
        for name, head in self.heads.items():
            told = labels[name] > 0
            logits, wanted = head(hidden[told]), labels[name][told] - 1
            loss = loss + (RANK_WEIGHT if name in RANKS else 1.0) * F.cross_entropy(logits, wanted)
            right[name] = (logits.argmax(-1) == wanted).float().mean().item()
        return loss, right


class Trainer:
    """One run of the stage; its state is the weights, the optimisers' state and the step."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        folder: Path,
        plan: Plan,
        name: str,
    ) -> None:
        self.model, self.tokenizer, self.plan = model, tokenizer, plan
        self.log, self.path = Log(folder, name), folder / f"{name}.pt"
        torch.manual_seed(plan.seed + 2)
        self.ripeness = Ripeness(model.config.text_config.hidden_size)
        self.askers, self.tokens = (Asker(tokenizer), Asker(tokenizer, plan.forms)), label_tokens(tokenizer)
        vision = model.config.vision_config
        self.patch = SIZE * vision.patch_size // vision.image_size  # pixels of the scene on its side
        self.prefix = torch.tensor(tokenizer(PREFIX, add_special_tokens=False).input_ids)
        torch._dynamo.config.recompile_limit = SHAPES
        self.layer = torch.compile(decoder_layer, dynamic=False)
        self.modules: dict[str, nn.Module] = {"model": model, "ripeness": self.ripeness}
        self.optimizers = optimisers(self.trained(), plan.rate, rest_share=0.1)
        self.step, self.joined, self.entered = 0, FIRST, 0
        self.depth = len(model.model.language_model.layers)
        self.recent: dict[str, float] = dict.fromkeys(ASKED, 0.0)
        self.glanced = dict(self.recent)  # the same in glances
        self.values: dict[str, Any] = {}

    def trained(self) -> dict[nn.Module, float]:
        """The modules that learn, and their shares of the rate; layers that a grown decoder has added learn slowly."""
        decoder, fresh = self.model.model.language_model, self.plan.fresh
        learned = [layer for index, layer in enumerate(decoder.layers) if index not in fresh]
        rest = [decoder.embed_tokens, decoder.norm, self.model.lm_head, self.ripeness]
        return {nn.ModuleList([*learned, *rest]): 1.0, nn.ModuleList([decoder.layers[i] for i in fresh]): FRESH_RATE}

    def restore(self) -> None:
        """Takes up the folder's checkpoint, if there is one."""
        state = load_checkpoint(self.path)
        if state is not None:
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.step, self.recent, self.glanced = state["step"], state["recent"], state["glanced"]
            self.joined, self.entered = state["joined"], state["entered"]

    def save(self) -> None:
        """Writes the checkpoint."""
        states = {name: module.state_dict() for name, module in self.modules.items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        places = {"step": self.step, "joined": self.joined, "entered": self.entered}
        answered = {"recent": self.recent, "glanced": self.glanced}
        save_checkpoint(self.path, **states, **places, **answered, optimizers=optimizers)

    def task_weights(self, rng: random.Random, recent: dict[str, float]) -> dict[str, float]:
        """The tasks that have joined; those that lag, by their recent accuracy, are asked more often."""
        joined = ORDER[: self.joined] if self.plan.patience else ORDER
        weights = {task: 1.3 - recent[task] for task in joined}
        if rng.random() < self.plan.turns:
            lag = [(1 - recent[task]) ** 2 * (task not in LESSONS) for task in joined]
            weights[rng.choices(joined, lag)[0]] = 2.0 * len(joined)
        return weights

    def join(self) -> None:
        """Takes the next task in when the last one is half learned, or patience ends (later for the first look-ups)."""
        spent, first = self.step - self.entered, self.joined == FIRST
        learned = min(self.recent[task] for task in ORDER[:FIRST]) if first else self.recent[ORDER[self.joined - 1]]
        if self.joined < len(ORDER) and (learned > LEARNED or spent >= self.plan.patience * (6 if first else 1)):
            self.joined, self.entered = self.joined + 1, self.step

    @property
    def sighted(self) -> bool:
        """Whether this is one of the last steps, in which text sees the image in every layer."""
        return self.step >= self.plan.steps * (1 - self.plan.sighted)

    @property
    def glances(self) -> bool:
        """Whether this step is a glance."""
        drawn = random.Random(f"glance/{self.plan.seed}/{self.step}").random()
        return self.step < GLANCING * self.plan.steps and drawn < self.plan.glance

    def sight(self, rng: random.Random) -> range:
        """The layers in which text sees the image in this step."""
        first = 0 if self.sighted else rng.choices(list(self.plan.blind), list(self.plan.blind.values()))[0]
        return range(self.plan.glance_below) if self.glances else range(first, self.depth)

    def scenes(self, rng: random.Random) -> list[Scene]:
        """The scenes of this step."""
        return [draw_scene(f"drawn/{self.plan.seed}/{self.step}/{index}") for index in range(self.plan.batch)]

    def visual(
        self, scenes: list[Scene], labels: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        """Visual tokens [B, N, D], a loss of their own, and what to log."""
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_000 + self.step)
        doubt = self.plan.doubt * min(1.0, 0.3 + self.step / (self.plan.steps / 3))
        words = self.model.model.language_model.embed_tokens.weight
        return drawn_tokens(labels, words, self.tokens, doubt, generator), torch.zeros(()), {}

    def patch_side(self, rng: random.Random) -> int:
        """Pixels of the scene on a patch's side in this step."""
        return self.patch

    def masks(self, packed: Packed, head: int) -> list[Masks]:
        """Masks of layers in which text does not see the images, and of the others."""
        masks = [make_masks(packed, head, shown) for shown in (len(self.prefix), head)]
        for mask in masks:
            mask.image, mask.own = mask.image.bfloat16(), mask.own.bfloat16()
        return masks

    def loss(self, step: int) -> torch.Tensor:
        """The loss of this step (the trainer's own count of them), and what to log of it."""
        rng = random.Random(f"decoder/{self.plan.seed}/{self.step}")
        scenes, images = self.scenes(rng), 1 + (self.sighted and rng.random() < self.plan.pairs)
        shown = [scenes[start : start + images] for start in range(0, len(scenes), images)]
        recent = self.glanced if self.glances else self.recent
        packed, sight = self.askers[self.sighted].rows(shown, rng, self.task_weights(rng, recent)), self.sight(rng)
        labels = scene_labels(scenes, self.patch_side(rng))
        start, head = len(self.prefix), len(self.prefix) + images * labels["thing"].shape[1]
        masks, ripe = self.masks(packed, head), []
        with torch.autocast("cpu", torch.bfloat16):
            visual, seeing, logged = self.visual(scenes, labels)
            hidden = run_decoder(
                self.model.model.language_model,
                embed(self.model, self.prefix, visual.reshape(len(shown), head - start, -1), packed.ids),
                positions(packed, head),
                lambda layer: masks[layer in sight],
                entering=lambda layer, h: ripe.append(h) if layer == self.plan.ripen_layer else None,
                layer_function=self.layer,
            )[:, head:].unflatten(1, packed.ids.shape[1:])
            asked, early = packed.labels != IGNORE, early_labels(packed)
            logits = self.model.lm_head(hidden[asked]).float()
            early_logits = self.model.lm_head(hidden[early != IGNORE]).float()
        weight = torch.where(packed.prompt[asked], 1.0, self.plan.later)  # the first is given at the prompt's end
        loss = (weight * F.cross_entropy(logits, packed.labels[asked], reduction="none")).mean()
        early_loss = F.cross_entropy(early_logits, early[early != IGNORE])
        seen = ripe[0][:, start:head].float().reshape(*labels["thing"].shape, -1)
        ripe_loss, ripeness = self.ripeness(seen, labels)
        total = loss + self.plan.early_weight * early_loss + self.plan.ripen_weight * ripe_loss + seeing
        for task, right in accuracy_by_task(answer_right(logits.detach(), packed)).items():
            recent[task] += 0.05 * (right - recent[task])
        self.values = {"loss": loss.item(), "early": early_loss.item(), "ripe": ripeness, **logged}
        return total

    def parameters(self) -> Iterable[nn.Parameter]:
        """All that the optimisers train."""
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

    def run(self, until: int | None = None, every: int = 25, save_every: int = 100) -> None:
        """Trains to the plan's last step, or to step ``until`` if that comes sooner."""
        last = min(self.plan.steps, until or self.plan.steps)
        stage = Stage(
            self.path.stem,
            self.modules,
            self.optimizers,
            self.loss,
            lambda done: self.ended(done, stage.norm, done % every == 0, done % save_every == 0 or done == last),
            self.plan.steps,
            self.step,
            warmup=min(100, self.plan.steps // 10),
            clipped=self.parameters(),
        )
        stage.run(self.path.parent, until)

    def ended(self, done: int, norm: float, logs: bool, saves: bool) -> None:
        """After an update: the next task may join; log and checkpoint where they are due."""
        self.step = done
        self.join()
        if logs:
            recent = {task: round(value, 3) for task, value in self.recent.items()}
            self.log(done, **self.values, norm=norm, recent=recent)
        if saves:
            self.save()
