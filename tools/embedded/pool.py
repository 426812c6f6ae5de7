"""The training scenes: drawn from seeds, rendered once, with labels of what each patch shows."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunekit.data.render import render
from prunekit.data.scene import LETTER, SIZE, Box, Scene, draw_scene
from prunekit.data.words import COLORS, KINDS, LETTERS, NUMBERS

THINGS: tuple[str, ...] = (*KINDS, *LETTERS)  # label 0 is ground, label i + 1 is THINGS[i]
HUES: tuple[str, ...] = tuple(COLORS)  # likewise
LABELS = ("thing", "hue", "order", "twin", "fellow")


SCENES = 24000  # the last HELD of them are held back from training
HELD = 256


def pool_scenes(count: int = SCENES, seed: int = 0) -> list[Scene]:
    """All scenes of the pool; their seeds are those of no split."""
    return [draw_scene(f"pool/{seed}/{index}") for index in range(count)]


def render_pool(folder: Path, scenes: list[Scene], processes: int = 2) -> np.ndarray:
    """Images uint8 [N, SIZE, SIZE, 3], rendered into a file of the folder unless it is there already."""
    path = folder / "images.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial_path = folder / "images.partial.npy"
        shape = (len(scenes), SIZE, SIZE, 3)
        images = np.lib.format.open_memmap(partial_path, mode="w+", dtype=np.uint8, shape=shape)
        with multiprocessing.Pool(processes) as workers:
            for index, pixels in enumerate(workers.imap(_pixels, scenes, chunksize=64)):
                images[index] = pixels
                if index % 4000 == 0:
                    print(f"rendered {index}/{len(scenes)}", flush=True)
        images.flush()
        partial_path.rename(path)
    return np.load(path, mmap_mode="r")


def _pixels(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene))


def _overlap(start: int, stop: int, patch: int, grid: int) -> np.ndarray:
    """Pixels of [start, stop) in each patch along one axis: float [grid]."""
    edges = np.arange(grid) * patch
    return (np.minimum(stop, edges + patch) - np.maximum(start, edges)).clip(0)


@dataclass(frozen=True)
class Shown:
    """One thing in a scene: an object, or a letter on a sign."""

    box: Box
    thing: int  # index in THINGS
    hue: int  # index in HUES
    order: int = 0  # a letter's place in its code, from one
    twin: int = 0  # of objects of its kind, in reading order, from one
    fellow: int = 0  # of objects on its colour


def shown(scene: Scene) -> list[Shown]:
    """All that a scene shows, later things over earlier ones."""
    found, kinds, hues = [], Counter[str](), Counter[str]()
    ranks = {}
    for item in sorted(scene.items, key=lambda item: item.cell):
        kinds[item.kind] += 1
        hues[item.color] += 1
        ranks[item.cell] = min(kinds[item.kind], len(NUMBERS)), min(hues[item.color], len(NUMBERS))
    for item in scene.items:
        twin, fellow = ranks[item.cell]
        found.append(Shown(item.box, THINGS.index(item.kind), HUES.index(item.color), twin=twin, fellow=fellow))
    for sign in scene.signs:
        left, top, _, bottom = sign.box
        for place, letter in enumerate(sign.code):
            box = (left + LETTER * place, top, left + LETTER * (place + 1), bottom)
            thing = len(KINDS) + LETTERS.index(letter)
            found.append(Shown(box, thing, HUES.index(sign.color), order=place + 1))
    return found


def patch_labels(scene: Scene, patch: int) -> dict[str, np.ndarray]:
    """What each patch shows most of, int64 [grid * grid] each, counted from one, 0 for none.

    `thing`, `hue`, `order`, `twin`, `fellow` as in `Shown`. A patch less than a fifth covered is ground.
    """
    grid = SIZE // patch
    best = np.full((grid, grid), 0.2 * patch * patch)
    winner = np.zeros((grid, grid), dtype=np.int64)
    things = shown(scene)
    for number, one in enumerate(things):
        left, top, right, bottom = one.box
        area = _overlap(top, bottom, patch, grid)[:, None] * _overlap(left, right, patch, grid)[None, :]
        wins = area > best
        best[wins], winner[wins] = area[wins], number + 1
    rows = [(0, 0, 0, 0, 0), *((s.thing + 1, s.hue + 1, s.order, s.twin, s.fellow) for s in things)]
    table = np.array(rows, dtype=np.int64)[winner.reshape(-1)]
    return dict(zip(LABELS, table.T, strict=True))


def scene_labels(scenes: list[Scene], patch: int) -> dict[str, torch.Tensor]:
    """The labels of scenes' patches: [B, P] each."""
    found = [patch_labels(scene, patch) for scene in scenes]
    return {name: torch.from_numpy(np.stack([labels[name] for labels in found])) for name in LABELS}


def presence(scene: Scene) -> np.ndarray:
    """Which things stand in the scene: float32 [len(THINGS)] of zeros and ones."""
    target = np.zeros(len(THINGS), dtype=np.float32)
    for item in scene.items:
        target[THINGS.index(item.kind)] = 1
    for sign in scene.signs:
        for letter in sign.code:
            target[len(KINDS) + LETTERS.index(letter)] = 1
    return target
