"""The training scenes: drawn from seeds, rendered once, with labels of what each patch shows."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path

import numpy as np

from prunekit.data.render import render
from prunekit.data.scene import LETTER, SIZE, Scene, draw_scene
from prunekit.data.words import COLORS, KINDS, LETTERS

THINGS: tuple[str, ...] = (*KINDS, *LETTERS)  # label 0 is ground, label i + 1 is THINGS[i]
HUES: tuple[str, ...] = tuple(COLORS)  # likewise


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


def patch_labels(scene: Scene, patch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each patch shows most of: thing, hue, a letter's place in its code; int64 [grid * grid] each, 0 for none.

    A patch less than a fifth covered is ground.
    """
    grid = SIZE // patch
    best = np.full((grid, grid), 0.2 * patch * patch)
    thing = np.zeros((grid, grid), dtype=np.int64)
    hue = np.zeros((grid, grid), dtype=np.int64)
    order = np.zeros((grid, grid), dtype=np.int64)
    cover = partial(_overlap, patch=patch, grid=grid)
    areas = [(item.box, THINGS.index(item.kind), HUES.index(item.color), 0) for item in scene.items]
    for sign in scene.signs:
        left, top, right, bottom = sign.box
        for number, letter in enumerate(sign.code):
            box = (left + LETTER * number, top, left + LETTER * (number + 1), bottom)
            areas.append((box, len(KINDS) + LETTERS.index(letter), HUES.index(sign.color), number + 1))
    for (left, top, right, bottom), what, color, number in areas:
        area = cover(top, bottom)[:, None] * cover(left, right)[None, :]
        wins = area > best
        best[wins], thing[wins], hue[wins], order[wins] = area[wins], what + 1, color + 1, number
    return thing.reshape(-1), hue.reshape(-1), order.reshape(-1)


def presence(scene: Scene) -> np.ndarray:
    """Which things stand in the scene: float32 [len(THINGS)] of zeros and ones."""
    target = np.zeros(len(THINGS), dtype=np.float32)
    for item in scene.items:
        target[THINGS.index(item.kind)] = 1
    for sign in scene.signs:
        for letter in sign.code:
            target[len(KINDS) + LETTERS.index(letter)] = 1
    return target
