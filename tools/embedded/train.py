"""Trains the embedded model from scratch.

    python -m tools.embedded.train --out DIR [--resume]
    python -m prunekit task=train train=embedded           # the same in a run folder; the model goes there too

Stages: tower, drawn, align, joint, finish, shift, settle, deepen, glance, close, front, enlarge, widen, export. Each
goes on from its checkpoint in DIR when --resume is given; without it DIR must be new. The rendered scenes (2.6 GB) lie
in DIR too. The stages tower and drawn do not need each other: on two cores, run each with --threads 1 at the same time,
then the rest. Two models ship: that of the stage front, and in a folder with "-576" behind its name that of widen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from prunekit.data.scene import Scene
from prunekit.errors import PrunekitError
from tools.embedded.align import train_align
from tools.embedded.asking import Forms
from tools.embedded.config import Size, arrange, build_model, resized, start_words
from tools.embedded.decoder import Plan, Trainer
from tools.embedded.export import MODEL_FOLDER, export
from tools.embedded.joint import JointTrainer
from tools.embedded.pool import pool_scenes, render_pool
from tools.embedded.processor import build_tokenizer
from tools.embedded.progress import load_checkpoint
from tools.embedded.tower import Heads, train_tower

SHALLOW = 6  # decoder layers of the drawn stage: look-ups are learned sooner in a shallow decoder
FRONT = 4  # layers that the grown decoder has before those
BEHIND = Size.layers - FRONT - SHALLOW
GROWN = (*[None] * FRONT, *range(SHALLOW), *[None] * BEHIND)  # the shallow decoder's layers, and new ones
SHIFTED = (0, *range(3, Size.layers), None, None)  # the finished one's without two: looking moves forward
DEEPENED = (0, None, *range(1, Size.layers - 1))  # a new layer behind the first, and the last one left out
CLOSED = (0, *range(2, Size.layers), None)  # without it again
FRONTED = (None, *range(Size.layers - 1))  # a new layer before all others: every look comes one layer later
TOWER_STEPS, ALIGN_STEPS = 1600, 600
DRAWN = Plan(steps=5000, patience=80)
JOINT = Plan(
    steps=2250,
    rate=1e-3,
    blind={0: 0.2, FRONT: 0.8},
    sighted=0.12,
    forms=Forms(long=0.1, dialogue=0.1),
    pairs=0.1,
    ripen_layer=FRONT,
    patience=0,
    fresh=tuple(index for index, place in enumerate(GROWN) if place is None),
)
FINISH = Plan(
    steps=280,
    rate=5e-4,
    sighted=1.0,
    ripen_layer=FRONT,
    patience=0,
    crowded=0.7,
    forms=Forms(long=0.1, dialogue=0.1),
)
SHIFT = Plan(
    steps=2600,
    rate=1.5e-3,
    blind={0: 0.3, FRONT - 2: 0.7},
    sighted=0.4,
    crowded=0.5,
    coarse=0.1,
    forms=Forms(long=0.15, dialogue=0.15),
    pairs=0.15,
    ripen_layer=3,
    patience=0,
    fresh=tuple(index for index, place in enumerate(SHIFTED) if place is None),
)
SETTLE = replace(SHIFT, steps=3000, crowded=0.6, pairs=0.12, later=4.0, tower=1.0, further=28, fresh=())
DEEPEN = replace(
    SETTLE, steps=1300, rate=8e-4, blind={0: 0.3, 3: 0.7}, sighted=0.5, tower=0.4, ripen_layer=4, fresh=(1,)
)
GLANCE = replace(
    DEEPEN,
    steps=700,
    sighted=1.0,
    glance=0.35,
    coarse=0.08,
    pairs=0.08,
    forms=Forms(long=0.15, dialogue=0.1),
    seed=5,
)
CLOSE = replace(GLANCE, steps=420, blind={0: 0.7, 4: 0.3}, sighted=0.4, ripen_layer=3, fresh=(Size.layers - 1,), seed=8)
FRONTING = replace(
    CLOSE, steps=380, glance=0.2, glance_below=4, blind={0: 0.3, 1: 0.5, 5: 0.2}, ripen_layer=4, fresh=(0,), seed=9
)
ENLARGE = replace(
    FRONTING,
    steps=220,
    rate=1.5e-4,
    blind={0: 1.0},
    sighted=0.0,
    glance=0.0,
    pairs=0.0,
    coarse=0.3,
    coarse_sides=(16, 16, 24),
    tower=8.0,
    further=16,
    fresh=(),
    seed=10,
)
WIDEN = replace(ENLARGE, steps=560, rate=5e-4, sighted=1.0, glance=0.15, pairs=0.08, tower=1.6, further=8, seed=11)
WIDE = 2 * Size.image  # pixels: 576 visual tokens


@dataclass(frozen=True)
class Later:
    """A stage that trains on what the stage before it has trained, its layers in another order if one is given.

    What goes on from it are ``share`` of the weights that it ended with and, for the rest, those that it began with.
    """

    before: str
    plan: Plan
    order: tuple[int | None, ...] | None = None
    share: float = 1.0
    image: int = Size.image


LATER = {
    "finish": Later("joint", FINISH),
    "shift": Later("finish", SHIFT, SHIFTED),
    "settle": Later("shift", SETTLE),
    "deepen": Later("settle", DEEPEN, DEEPENED),
    "glance": Later("deepen", GLANCE),
    "close": Later("glance", CLOSE, CLOSED, share=0.3),  # chosen on validation
    "front": Later("close", FRONTING, FRONTED),
    "enlarge": Later("front", ENLARGE, image=WIDE),
    "widen": Later("enlarge", WIDEN, image=WIDE),
}
STAGES = ("tower", "drawn", "align", "joint", *LATER, "export")
EXPORTED = {"front": "", "widen": "-576"}  # stages whose models ship, and what is put behind the folder's name


@dataclass(frozen=True)
class Options:
    """What a run may choose; the recipe itself stands in the plans above.

    Attributes:
        out: folder of checkpoints, log and scenes.
        model: folder that export writes.
        stages: names of STAGES; they run in that order.
        most: no stage has more steps than this, for a trial.
        notes: lines for the record of the training.
        threads: of torch.
    """

    out: Path
    model: Path = MODEL_FOLDER
    stages: Sequence[str] = STAGES
    most: int | None = None
    notes: Sequence[str] = ()
    threads: int = 2


def options_of(argv: list[str] | None = None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, log and scenes")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoints")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--most", type=int, help="no stage has more steps than this: a trial")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder that export writes")
    parser.add_argument("--notes", nargs="*", default=[], help="what the record of the training says besides")
    parser.add_argument("--threads", type=int, default=2)
    arguments = vars(parser.parse_args(argv))
    if not arguments.pop("resume") and arguments["out"].exists():
        parser.error(f"{arguments['out']} exists: give a new folder, or --resume to go on from its checkpoints")
    return Options(**arguments)


def need(folder: Path, stage: str) -> dict[str, Any]:
    """A stage's checkpoint.

    Raises:
        PrunekitError: if there is none.
    """
    state = load_checkpoint(folder / f"{stage}.pt")
    if state is None:
        raise PrunekitError(f"no checkpoint of the {stage} stage in {folder}")
    return state


class Run:
    """The stages, each from what the ones before it left in the folder."""

    def __init__(self, options: Options) -> None:
        self.folder, self.options, self.size = options.out, options, Size()
        self.tokenizer = build_tokenizer()

    @cached_property
    def pool(self) -> tuple[list[Scene], np.ndarray]:
        """Scenes and their images."""
        scenes = pool_scenes()
        return scenes, render_pool(self.folder, scenes)

    def tower(self) -> None:
        scenes, images = self.pool
        tower = build_model(self.size).model.vision_tower
        train_tower(tower, images, scenes, self.folder, self.steps(TOWER_STEPS))

    def drawn(self) -> None:
        small = build_model(replace(self.size, layers=SHALLOW))
        start_words(small)
        plan = replace(DRAWN, steps=self.steps(DRAWN.steps))
        trainer = Trainer(small, self.tokenizer, self.folder, plan, "drawn")
        trainer.restore()
        trainer.run()

    def grown(self) -> tuple[LlavaForConditionalGeneration, Heads]:
        """The model of full depth, with the tower and the decoder of the stages before, and the tower's read-outs."""
        tower = need(self.folder, "tower")
        small = build_model(replace(self.size, layers=SHALLOW))
        small.load_state_dict(need(self.folder, "drawn")["model"])
        small.model.vision_tower.load_state_dict(tower["tower"])
        heads = Heads(self.size.tower_width)
        heads.load_state_dict(tower["heads"])
        return arrange(small, GROWN, self.size), heads

    def align(self) -> tuple[LlavaForConditionalGeneration, Heads]:
        model, heads = self.grown()
        train_align(model, heads, self.tokenizer, self.pool, self.folder, self.steps(ALIGN_STEPS))
        return model, heads

    def joint(self) -> None:
        model, heads = self.align()
        plan = replace(JOINT, steps=self.steps(JOINT.steps))
        trainer = JointTrainer(model, self.tokenizer, self.folder, plan, self.pool, heads)
        trainer.restore()
        trainer.run()

    def later(self, stage: str) -> None:
        """One of the stages of LATER."""
        told, heads = LATER[stage], Heads(self.size.tower_width)
        last, model = need(self.folder, told.before), start_of(self.folder, stage)
        heads.load_state_dict(last["heads"])
        plan = replace(told.plan, steps=self.steps(told.plan.steps))
        trainer = JointTrainer(model, self.tokenizer, self.folder, plan, self.pool, heads, stage)
        trainer.ripeness.load_state_dict(last["ripeness"])
        trainer.recent, trainer.glanced = last["recent"], last["glanced"]
        trainer.restore()
        trainer.run()

    def steps(self, planned: int) -> int:
        """A stage's steps."""
        return planned if self.options.most is None else min(planned, self.options.most)

    def export(self) -> None:
        plans = {"drawn": DRAWN, "joint": JOINT, **{stage: told.plan for stage, told in LATER.items()}}
        for last, suffix in EXPORTED.items():
            stages = STAGES[: STAGES.index(last) + 1]
            steps = {stage: need(self.folder, stage)["step"] for stage in stages}
            told = {stage: asdict(plan) for stage, plan in plans.items() if stage in stages}
            size = replace(self.size, image=LATER[last].image)
            record = {"steps": steps, "plans": told, "size": asdict(size), "notes": list(self.options.notes)}
            folder = self.options.model.with_name(self.options.model.name + suffix)
            export(end_of(self.folder, last).eval(), size, folder, record)


def start_of(folder: Path, stage: str) -> LlavaForConditionalGeneration:
    """The model that a stage of LATER begins with."""
    told = LATER[stage]
    model, size = end_of(folder, told.before), Size(image=told.image)
    if told.order is not None:
        return arrange(model, told.order, size, seed=1)
    return model if told.image == model.config.vision_config.image_size else resized(model, size)


def end_of(folder: Path, stage: str) -> LlavaForConditionalGeneration:
    """The model that a stage hands on: its last, averaged with its first if its share says so."""
    told, end = LATER.get(stage), need(folder, stage)["model"]
    if told is None or told.share == 1.0:
        model = build_model(Size(image=told.image if told else Size.image))
        model.load_state_dict(end)
        return model
    model = start_of(folder, stage)
    model.load_state_dict({name: torch.lerp(old, end[name], told.share) for name, old in model.state_dict().items()})
    return model


def train(options: Options) -> None:
    """Run the stages, each from its checkpoint if there is one.

    Raises:
        PrunekitError: if the stage before the first of them has left no checkpoint.
    """
    torch.set_num_threads(options.threads)
    run = Run(options)
    for stage in STAGES:
        if stage in options.stages:
            if stage in LATER:
                run.later(stage)
            else:
                getattr(run, stage)()


if __name__ == "__main__":
    try:
        train(options_of())
    except PrunekitError as error:
        raise SystemExit(str(error)) from None
