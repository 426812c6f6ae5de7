"""Where the model reads the image: accuracy with visual tokens hidden from a layer on, and attention by layer.

Pruning is emulated by masks here (the keys of cut tokens are hidden from layers >= k), so that this file and the
pruning engine check each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.example import Example
from prunekit.data.scene import SIZE
from tools.embedded.asking import accuracy_by_task, answer_right
from tools.embedded.forward import Masks, embed, make_masks, run_decoder
from tools.embedded.packing import IGNORE, PREFIX, Packed, encode, pack, positions
from tools.embedded.tower import pixels

CHUNK = 64  # questions in a forward pass
Found = list[tuple[str, bool]]  # task and whether the answer is right, for each question


@dataclass
class Bench:
    """Questions ready to be asked, one a row, with their images' features [N, P, C] and answer regions [N, P]."""

    examples: Sequence[Example]
    features: torch.Tensor
    regions: torch.Tensor  # float: share of each patch that the answer's boxes cover
    packed: Packed
    prefix: torch.Tensor


def region_cover(example: Example, grid: int, patch: int) -> np.ndarray:
    """Share of each patch (of ``patch`` pixels of the scene) covered by the answer's boxes: float [grid * grid]."""
    cover = np.zeros((grid * patch, grid * patch), dtype=np.float32)
    for left, top, right, bottom in example.regions:
        cover[top:bottom, left:right] = 1
    return cover.reshape(grid, patch, grid, patch).mean(axis=(1, 3)).reshape(-1)


@torch.no_grad()
def prepare(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    images: Callable[[Example], np.ndarray] | None = None,
) -> Bench:
    """Computes what all probes of the examples share; ``images`` replaces their pictures (uint8 [H, W, 3])."""
    vision = model.config.vision_config
    draw = images or (lambda example: np.asarray(example.image()))
    cache: dict[str, torch.Tensor] = {}
    for example in examples:
        if example.image_id not in cache:
            picture = pixels(draw(example)[None], vision.image_size)
            hidden = model.model.vision_tower(pixel_values=picture, output_hidden_states=True).hidden_states
            cache[example.image_id] = hidden[model.config.vision_feature_layer][0, 1:]
    asked = encode(tokenizer, [(e.task, e.question, e.answers[0]) for e in examples])
    length = max(len(a.prompt) + len(a.answer) for a in asked)
    packed = pack([[a] for a in asked], 1, length, tokenizer.pad_token_id)
    grid = vision.image_size // vision.patch_size
    cover = [region_cover(e, grid, SIZE // grid) for e in examples]
    prefix = torch.tensor(tokenizer(PREFIX, add_special_tokens=False).input_ids)
    features = torch.stack([cache[e.image_id] for e in examples])
    return Bench(examples, features, torch.from_numpy(np.stack(cover)), packed, prefix)


def _masks(masks: list[Masks], layer: int, index: int) -> Masks:
    return masks[index >= layer]


@torch.no_grad()
def ask(
    model: LlavaForConditionalGeneration,
    bench: Bench,
    kept: torch.Tensor | None = None,
    layer: int = 0,
    seen: Callable[[slice, int, torch.Tensor], None] | None = None,
) -> Found:
    """Whether each answer is right, with visual tokens that are not ``kept`` [N, P] hidden from ``layer`` on."""
    found: Found = []
    prefix, visual = len(bench.prefix), bench.features.shape[1]
    for start in range(0, len(bench.examples), CHUNK):
        rows = slice(start, start + CHUNK)
        packed = bench.packed.rows(rows)
        masks = [make_masks(packed, prefix + visual)] * 2
        if kept is not None:
            stays = torch.cat([torch.ones(len(kept[rows]), prefix, dtype=torch.bool), kept[rows]], dim=1)
            masks[1] = make_masks(packed, prefix + visual, kept=stays)
        projected = model.model.multi_modal_projector(bench.features[rows])
        hidden = run_decoder(
            model.model.language_model,
            embed(model, bench.prefix, projected, packed.ids),
            positions(packed, prefix + visual),
            partial(_masks, masks, layer),
            seen=None if seen is None else partial(seen, rows),
        )
        text = hidden[:, prefix + visual :].unflatten(1, packed.ids.shape[1:])
        found += answer_right(model.lm_head(text[packed.labels != IGNORE]), packed)
    return found


def mean_accuracy(found: Found) -> float:
    """Mean over tasks."""
    tasks = accuracy_by_task(found)
    return sum(tasks.values()) / len(tasks)


def keep_count(visual: int, ratio: float) -> int:
    return max(1, round(ratio * visual))


def top(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """The share with the highest scores [N, P], ties to the earlier token: bool [N, P]."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : keep_count(scores.shape[1], ratio)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def random_kept(bench: Bench, ratio: float, seed: int = 0) -> torch.Tensor:
    """A random share, drawn for each question."""
    visual = bench.features.shape[1]
    kept = torch.zeros(len(bench.examples), visual, dtype=torch.bool)
    for row, example in enumerate(bench.examples):
        kept[row, random.Random(f"{seed}/{example.id}").sample(range(visual), keep_count(visual, ratio))] = True
    return kept


def uniform_kept(bench: Bench, ratio: float) -> torch.Tensor:
    """An even stride over the tokens."""
    visual = bench.features.shape[1]
    kept = torch.zeros(len(bench.examples), visual, dtype=torch.bool)
    kept[:, (torch.arange(keep_count(visual, ratio)) / ratio).long().clamp(max=visual - 1)] = True
    return kept


def oracle_kept(bench: Bench, ratio: float) -> torch.Tensor:
    """What the answer's regions cover most of."""
    return top(bench.regions, ratio)


def attention_scores(model: LlavaForConditionalGeneration, bench: Bench) -> tuple[torch.Tensor, Found]:
    """Attention of the prompt's rows after the image on each visual token, mean over rows and heads: [L, N, P]."""
    head, visual = len(bench.prefix), bench.features.shape[1]
    scores = torch.zeros(len(model.model.language_model.layers), len(bench.examples), visual)

    def look(rows: slice, layer: int, weights: torch.Tensor) -> None:
        text = bench.packed.prompt[rows, 0][:, None, :, None]
        onto = weights[:, :, 0, :, head : head + visual] * text
        scores[layer, rows] = (onto.sum(dim=2) / text.sum(dim=2)).mean(dim=1)

    found = ask(model, bench, seen=look)
    return scores, found


def attention_share(bench: Bench, scores: torch.Tensor) -> list[float]:
    """By layer: share of the visual attention on the answer's patches over those patches' share of the tokens."""
    region = (bench.regions > 0.25).float()
    asked = region.sum(dim=1) > 0
    on_region = (scores * region).sum(dim=2) / scores.sum(dim=2)
    return (on_region / region.mean(dim=1))[:, asked].mean(dim=1).tolist()


def blind_image(example: Example) -> np.ndarray:
    """Noise in place of an example's picture: uint8 [H, W, 3]."""
    seed = random.Random(example.image_id).randrange(2**31)
    return np.random.RandomState(seed).randint(0, 256, np.asarray(example.image()).shape).astype(np.uint8)


def report(model: LlavaForConditionalGeneration, bench: Bench, ratio: float = 0.25) -> dict[str, object]:
    """The figures logged for a checkpoint: dense by task, random cuts by layer, attention on the answer by layer."""
    scores, dense = attention_scores(model, bench)
    layers = scores.shape[0]
    kept = random_kept(bench, ratio)
    curve = {
        layer: round(mean_accuracy(ask(model, bench, kept, layer)), 3)
        for layer in sorted({1, layers // 4, layers // 3, layers // 2, layers * 2 // 3})
    }
    pointed = {}
    for layer in (layers // 4, round(layers * 0.375), layers // 2):
        chosen = top(scores[:layer].mean(dim=0), ratio)
        pointed[layer] = round(mean_accuracy(ask(model, bench, chosen, layer)), 3)
    return {
        "dense": round(mean_accuracy(dense), 3),
        "tasks": {task: round(value, 3) for task, value in accuracy_by_task(dense).items()},
        "random": curve,
        "instruction": pointed,
        "oracle": round(mean_accuracy(ask(model, bench, oracle_kept(bench, 0.1), layers // 4)), 3),
        "share": [round(value, 2) for value in attention_share(bench, scores)],
    }


def main() -> None:
    import argparse
    import json
    from pathlib import Path

    from prunekit.data import load
    from tools.embedded.processor import build_tokenizer
    from tools.embedded.train import STAGES, end_of

    parser = argparse.ArgumentParser(description="Probes a training run's newest checkpoint on validation questions.")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--stage", choices=STAGES[3:-1], default=STAGES[-2])
    parser.add_argument("--limit", type=int, default=140)
    arguments = parser.parse_args()
    model = end_of(arguments.out, arguments.stage).eval()
    bench = prepare(model, build_tokenizer(), load("validation", arguments.limit))
    row = {"stage": arguments.stage, **report(model, bench)}
    with (arguments.out / "probe.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    for key, value in row.items():
        print(key, value)


if __name__ == "__main__":
    main()
