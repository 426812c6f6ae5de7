"""Stage 3: everything on questions about the pool's scenes; the tower keeps its own task beside it."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.questions import draw_question
from prunekit.data.scene import Scene
from prunekit.data.words import TASKS
from prunekit.embedded.align import label_tokens, named_loss, patch_words
from prunekit.embedded.forward import embed, run_decoder
from prunekit.embedded.packing import IGNORE, PREFIX, Packed, block_mask, encode, pack, positions
from prunekit.embedded.pool import HUES, ORDER, PARTS, THINGS, Part
from prunekit.embedded.progress import Log, load_checkpoint, optimiser, save_checkpoint, set_rate
from prunekit.embedded.tower import Heads, augment, pixels

LENGTH = 208  # text positions of a packed row, about eighteen questions
FOCUS = ("attribute", "existence", "position", "text", "choice", "relation", "count")  # order in which tasks come
LEARNED = 0.75  # accuracy at which the curriculum takes the next task or part of the pool
PATIENCE = 150  # steps after which it does so anyway


@dataclass
class Plan:
    """How the decoder is trained.

    Blindness: in layers below a bound drawn for each step, text does not see the image. It makes the circuits that
    look grow in the middle of the decoder, not in its first layer; ``sighted`` is the share of the steps, at the end,
    in which the bound is zero, as it always is in use. Where the text looks is never supervised.
    """

    steps: int = 360
    rate: float = 1e-3
    batch: int = 6
    blind: dict[int, float] = field(default_factory=lambda: {4: 1.0})
    sighted: float = 0.3
    ripen_layer: int = 6  # patches are classified from the input of this layer ...
    ripen_weight: float = 0.3  # ... with this weight, fading to zero at two thirds of the steps
    early_weight: float = 0.5  # of answering at the question's last word already: one step fewer to learn at first
    tower_rate: float = 0.6  # of the rate
    tower_weight: float = 0.5  # of the tower's own task
    seed: int = 0


@dataclass
class Pool:
    """Scenes with their images (uint8 [N, H, W, 3]) and labels, as `scene_labels` gives them."""

    scenes: list[Scene]
    images: np.ndarray
    labels: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    parts: tuple[Part, ...] = PARTS

    def slice(self, stage: int) -> tuple[int, int]:
        """First and last index of a part of the curriculum; the last 256 scenes of the pool are held back."""
        start = sum(part.scenes for part in self.parts[:stage])
        stop = start + self.parts[stage].scenes
        return start, min(stop, len(self.scenes) - 256)


class Ripeness(nn.Module):
    """Reads things and hues from visual hidden states; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.thing = nn.Linear(width, len(THINGS))
        self.hue = nn.Linear(width, len(HUES))

    def forward(self, hidden: torch.Tensor, thing: torch.Tensor, hue: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Loss and accuracy (things) over the patches that show something."""
        hidden = self.norm(hidden)
        logits = self.thing(hidden[thing > 0])
        loss = F.cross_entropy(logits, thing[thing > 0] - 1)
        loss = loss + F.cross_entropy(self.hue(hidden[hue > 0]), hue[hue > 0] - 1)
        return loss, (logits.argmax(-1) == thing[thing > 0] - 1).float().mean().item()


def draw_rows(
    scenes: list[Scene],
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    kinds: tuple[str, ...],
    weights: list[float],
) -> Packed:
    """Fresh questions about each scene, packed."""
    rows, asked = [], []
    for scene in scenes:
        drawn = [draw_question(scene, task, rng, kinds) for task in rng.choices(TASKS, weights, k=32)]
        unique = {question.text: question for question in drawn if question is not None}
        rows.append(len(unique))
        asked += [(question.task, question.text, question.answers[0]) for question in unique.values()]
    tokens = iter(encode(tokenizer, asked))
    pad = tokenizer.pad_token_id
    return pack([[next(tokens) for _ in range(count)] for count in rows], LENGTH, pad)


def answer_right(logits: torch.Tensor, packed: Packed) -> list[tuple[str, bool]]:
    """Whether the most likely token is right at every place of an answer: (task, right) of each question.

    As the places follow one another, this is the same as greedy generation giving exactly the answer.
    """
    wrong = (logits.argmax(-1) != packed.labels) & (packed.labels != IGNORE)
    found = []
    for row, tasks in enumerate(packed.tasks):
        missed = set(packed.segment[row][wrong[row]].tolist())
        found += [(task, index not in missed) for index, task in enumerate(tasks)]
    return found


def early_labels(packed: Packed) -> torch.Tensor:
    """The answer's first token at the question's last word, one place before the assistant's mark: [B, T]."""
    first = packed.prompt & (packed.labels != IGNORE)
    labels = torch.full_like(packed.labels, IGNORE)
    labels[:, :-1] = torch.where(first, packed.labels, IGNORE)[:, 1:]
    return labels


def accuracy_by_task(found: list[tuple[str, bool]]) -> dict[str, float]:
    """Share right in each task."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    for task, right in found:
        by_task[task].append(right)
    return {task: sum(by_task[task]) / len(by_task[task]) for task in TASKS if task in by_task}


def mask_chooser(packed: Packed, prefix: int, visual: int, blind: int) -> list[torch.Tensor]:
    """Masks of the layers below ``blind`` (text does not see the image) and of the others."""
    allowed = block_mask(packed.segment, prefix, visual)
    hidden = allowed.clone()
    hidden[:, prefix + visual :, prefix : prefix + visual] = False
    return [hidden, allowed] if blind else [allowed, allowed]


class Trainer:
    """One run of the stage; its state is the model's weights, the optimiser's, the step and the curriculum's place."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        pool: Pool,
        folder: Path,
        plan: Plan,
        name: str = "decoder",
    ) -> None:
        self.model, self.tokenizer, self.pool, self.plan = model, tokenizer, pool, plan
        self.log, self.path = Log(folder, name), folder / f"{name}.pt"
        torch.manual_seed(plan.seed + 2)
        self.ripeness = Ripeness(model.config.text_config.hidden_size)
        vision = model.config.vision_config
        self.grid, self.tokens = vision.image_size // vision.patch_size, label_tokens(tokenizer)
        self.heads = Heads(model.config.vision_config.hidden_size)
        self.tower = model.model.vision_tower
        self.tower.set_attn_implementation("eager")  # see train_tower
        rest = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model, model.lm_head])
        shares = {
            rest: 1.0,
            self.ripeness: 1.0,
            self.tower: plan.tower_rate,
            self.heads: plan.tower_rate,
        }
        self.modules = {"model": model, "ripeness": self.ripeness, "heads": self.heads}
        self.optimizer = optimiser(shares, plan.rate)
        self.prefix = torch.tensor(tokenizer(PREFIX, add_special_tokens=False).input_ids)
        self.step = self.stage = self.focus = self.entered = 0
        self.recent: dict[str, float] = {task: 0.0 for task in TASKS}

    def restore(self, heads: dict[str, torch.Tensor]) -> None:
        """Takes up the folder's checkpoint, if there is one; else the tower's ``heads`` as its stage left them."""
        state = load_checkpoint(self.path)
        self.heads.load_state_dict(heads)
        if state is not None:
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.stage, self.entered = state["step"], state["stage"], state["entered"]
            self.focus, self.recent = state["focus"], state["recent"]

    def save(self) -> None:
        """Writes the checkpoint."""
        states = {name: module.state_dict() for name, module in self.modules.items()}
        places = {"step": self.step, "stage": self.stage, "focus": self.focus, "entered": self.entered}
        save_checkpoint(self.path, **states, **places, recent=self.recent, optimizer=self.optimizer.state_dict())

    def task_weights(self) -> list[float]:
        """One task after the other at first, those learned kept alive; later, tasks that lag are asked more often."""
        if self.focus == len(FOCUS):
            return [1.3 - self.recent[task] for task in TASKS]
        learned = FOCUS[: self.focus]
        return [1.0 if task == FOCUS[self.focus] else 0.15 * (task in learned) for task in TASKS]

    def blind_below(self, rng: random.Random) -> int:
        """The layer below which text is blind in this step."""
        if self.step >= self.plan.steps * (1 - self.plan.sighted):
            return 0
        return rng.choices(list(self.plan.blind), list(self.plan.blind.values()))[0]

    def draw(self) -> tuple[list[int], Packed, int]:
        """Scenes, questions and blindness of this step; earlier parts of the curriculum come back now and then."""
        rng = random.Random(f"decoder/{self.plan.seed}/{self.step}")
        stage = rng.randrange(self.stage) if self.stage and rng.random() < 0.1 else self.stage
        start, stop = self.pool.slice(stage)
        index = sorted(rng.sample(range(start, stop), self.plan.batch))
        kinds = ORDER[: self.pool.parts[stage].kinds]
        scenes = [self.pool.scenes[i] for i in index]
        packed = draw_rows(scenes, self.tokenizer, rng, kinds, self.task_weights())
        return index, packed, self.blind_below(rng)

    def train_step(self) -> dict[str, float]:
        """One update."""
        index, packed, blind = self.draw()
        plan, (things, hues, present, orders) = self.plan, (label[index] for label in self.pool.labels)
        ripe: list[torch.Tensor] = []
        with torch.autocast("cpu", torch.bfloat16):
            shown = augment(pixels(self.pool.images[index]), np.array(index))
            out = self.tower(pixel_values=shown, output_hidden_states=True)
            seen_loss, patch, found = self.heads.read(
                out.last_hidden_state[:, 1:], out.pooler_output, things, hues, present
            )
            features = out.hidden_states[self.model.config.vision_feature_layer][:, 1:]
            start, head = len(self.prefix), len(self.prefix) + features.shape[1]
            masks = mask_chooser(packed, start, head - start, blind)
            x = embed(self.model, self.prefix, features, packed.ids)
            hidden = run_decoder(
                self.model.model.language_model,
                x,
                positions(packed, start, head - start),
                lambda layer: masks[layer >= blind],
                head,
                entering=lambda layer, h: ripe.append(h) if layer == plan.ripen_layer else None,
            )[:, head:]
            asked = packed.labels != IGNORE
            logits = self.model.lm_head(hidden[asked]).float()
            early = early_labels(packed)
            early_logits = self.model.lm_head(hidden[early != IGNORE]).float()
        loss = F.cross_entropy(logits, packed.labels[asked])
        early_loss = F.cross_entropy(early_logits, early[early != IGNORE])
        fade = max(0.0, 1 - self.step / (plan.steps * 2 / 3)) * plan.ripen_weight
        ripe_loss, ripeness = self.ripeness(ripe[0][:, start:head].float(), things, hues)
        words = self.model.model.language_model.embed_tokens.weight
        named = patch_words(things, hues, orders, self.grid)
        name_loss, names = named_loss(x[:, start:head].float(), words, self.tokens, named)
        aside = fade * (ripe_loss + name_loss) + plan.tower_weight * seen_loss
        norm = self.update(loss + plan.early_weight * early_loss + aside)
        self.remember(logits.detach(), packed)
        return {
            "loss": loss.item(),
            "early": early_loss.item(),
            "norm": norm,
            "ripe": ripeness,
            "names": names,
            "patch": patch,
            "cls": found,
        }

    def update(self, loss: torch.Tensor) -> float:
        """Steps the optimiser; returns the gradient's norm before clipping."""
        set_rate(self.optimizer, self.plan.rate, self.step, self.plan.steps, warmup=min(100, self.plan.steps // 10))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return norm.item()

    def remember(self, logits: torch.Tensor, packed: Packed) -> None:
        """Keeps a running accuracy of each task; ``logits`` are those of the answers' places."""
        full = torch.zeros(*packed.labels.shape, logits.shape[-1])
        full[packed.labels != IGNORE] = logits
        for task, right in accuracy_by_task(answer_right(full, packed)).items():
            self.recent[task] += 0.05 * (right - self.recent[task])

    def advance(self) -> None:
        """Takes the next task, and after the tasks the next part of the pool, when this one is learned well enough."""
        spent = self.step - self.entered
        if self.focus < len(FOCUS):
            if spent >= 40 and (self.recent[FOCUS[self.focus]] > LEARNED or spent >= PATIENCE):
                self.focus, self.entered = self.focus + 1, self.step
                self.stage = len(self.pool.parts) - 1
        elif self.stage < len(self.pool.parts) - 1 and (
            spent >= PATIENCE or (spent >= 40 and self.recent["attribute"] > LEARNED)
        ):
            self.stage, self.entered = self.stage + 1, self.step

    def run(self, until: int | None = None, every: int = 25, save_every: int = 50) -> None:
        """Trains to the plan's last step, or to step ``until`` if that comes sooner."""
        last = min(self.plan.steps, until or self.plan.steps)
        while self.step < last:
            values = self.train_step()
            self.step += 1
            self.advance()
            if self.step % every == 0:
                recent = {task: round(value, 3) for task, value in self.recent.items()}
                self.log(self.step, part=self.stage, focus=self.focus, **values, recent=recent)
            if self.step % save_every == 0 or self.step == last:
                self.save()
