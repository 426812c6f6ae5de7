"""Trains the embedded model from scratch.

    python -m prunekit.embedded.train --out DIR [--resume]

Stages: tower, align, shallow, decoder, export. Each goes on from its checkpoint in DIR when --resume is
given; without it DIR must be new. The rendered scenes (2.4 GB) lie in DIR too.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from prunekit.data.scene import Scene
from prunekit.embedded.align import train_align
from prunekit.embedded.config import Size, build_model, grow
from prunekit.embedded.decoder import Plan, Pool, Trainer
from prunekit.embedded.export import MODEL_FOLDER, export
from prunekit.embedded.pool import pool_scenes, render_pool
from prunekit.embedded.processor import build_tokenizer
from prunekit.embedded.progress import load_checkpoint
from prunekit.embedded.sharpen import sharpen
from prunekit.embedded.tower import scene_labels, tower_features, train_tower

ALIGNED = 6000  # scenes
SHARPEN_AT, SHARPEN_STEPS = 1550, 330  # see prunekit.embedded.sharpen
SHALLOW = 7  # decoder layers of the first questions, which learns look-ups in half the time
FRONT = 4  # layers that the grown decoder has before those
STAGES = ("tower", "align", "shallow", "decoder", "export")


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, log and scenes")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoints")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--tower-steps", type=int, default=1200)
    parser.add_argument("--align-steps", type=int, default=400)
    parser.add_argument("--shallow-steps", type=int, default=3000, help="sets the learning rate's decline")
    parser.add_argument("--shallow-until", type=int, default=2200, help="step at which the decoder grows")
    parser.add_argument("--decoder-steps", type=int, default=Plan.steps)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder that export writes")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    if arguments.out.exists() and not arguments.resume:
        parser.error(f"{arguments.out} exists: give a new folder, or --resume to go on from its checkpoints")
    return arguments


def align(
    model: LlavaForConditionalGeneration, scenes: list[Scene], images: np.ndarray, folder: Path, steps: int
) -> None:
    """The align stage, on the last ALIGNED scenes of the pool."""
    done = (folder / "align.pt").exists()
    features = torch.empty(0) if done else tower_features(model.model.vision_tower, images[-ALIGNED:])
    things, hues, _, orders = scene_labels(scenes[-ALIGNED:], model.config.vision_config.patch_size)
    train_align(model, build_tokenizer(), features, (things, hues, orders), folder, steps)


def stage_heads(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """The tower's read-outs as a stage left them."""
    state = load_checkpoint(folder / f"{stage}.pt")
    if state is None:
        raise ValueError(f"no checkpoint of the {stage} stage in {folder}")
    return state["heads"]


def load_trained(folder: Path, size: Size) -> tuple[LlavaForConditionalGeneration, dict[str, int]]:
    """The newest checkpoint's model and the steps of its stages; a shallow one is grown to ``size`` first."""
    shallow, decoder = load_checkpoint(folder / "shallow.pt"), load_checkpoint(folder / "decoder.pt")
    if shallow is None:
        raise ValueError(f"no checkpoint of the shallow stage in {folder}")
    if decoder is not None:
        model = build_model(size)
        model.load_state_dict(decoder["model"])
    else:
        small = build_model(replace(size, layers=SHALLOW))
        small.load_state_dict(shallow["model"])
        model = grow(small, size, FRONT)
    return model.eval(), {"shallow": shallow["step"], "decoder": decoder["step"] if decoder else 0}


def main(argv: list[str] | None = None) -> None:
    arguments = arguments_of(argv)
    torch.set_num_threads(arguments.threads)
    size, plan, folder = Size(), Plan(steps=arguments.decoder_steps, rate=8e-4), arguments.out
    model, tokenizer = build_model(size, plan.seed), build_tokenizer()
    if set(arguments.stages) & {"tower", "align", "shallow", "decoder"}:
        scenes = pool_scenes()
        images = render_pool(folder, scenes)
        train_tower(model.model.vision_tower, images, scenes, folder, arguments.tower_steps)
    small = build_model(replace(size, layers=SHALLOW), plan.seed)
    small.model.vision_tower.load_state_dict(model.model.vision_tower.state_dict())
    if "align" in arguments.stages and not (folder / "shallow.pt").exists():
        align(small, scenes, images, folder, arguments.align_steps)
    if set(arguments.stages) & {"shallow", "decoder"}:
        pool = Pool(scenes, images, scene_labels(scenes, size.patch))
        heads = stage_heads(folder, "tower")
        first = Plan(steps=arguments.shallow_steps, blind={0: 1.0}, ripen_layer=SHALLOW // 2)
        trainer = Trainer(small, tokenizer, pool, folder, first, "shallow")
        trainer.restore(heads)
        if trainer.step < SHARPEN_AT:
            trainer.run(until=SHARPEN_AT)
            sharpen(small, trainer.heads, tokenizer, images, pool.labels, folder, SHARPEN_STEPS, pool.slice(3)[0])
            trainer.save()
        trainer.run(until=arguments.shallow_until)
    if "decoder" in arguments.stages:
        model = grow(small, size, FRONT, plan.seed)
        stage, focus = trainer.stage, trainer.focus
        trainer = Trainer(model, tokenizer, pool, folder, plan)
        trainer.stage, trainer.focus = stage, focus
        trainer.restore(stage_heads(folder, "shallow"))
        trainer.run()
    if "export" in arguments.stages:
        model, steps = load_trained(folder, size)
        steps = {"tower": arguments.tower_steps, "align": arguments.align_steps, **steps}
        export(model, size, arguments.model, {"steps": steps, "plan": asdict(plan), "size": asdict(size)})


if __name__ == "__main__":
    main()
