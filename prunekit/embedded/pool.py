"""The training scenes: drawn from seeds, rendered once, with labels of what each patch shows."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from prunekit.data.render import render
from prunekit.data.scene import SIZE, Scene, draw_scene
from prunekit.data.words import COLORS, KINDS, LETTERS

THINGS: tuple[str, ...] = (*KINDS, *LETTERS)  # label 0 is ground, label i + 1 is THINGS[i]
HUES: tuple[str, ...] = tuple(COLORS)  # likewise


@dataclass(frozen=True)
class Part:
    """Scenes of the pool that use the first ``kinds`` kinds of the curriculum."""

    kinds: int
    scenes: int


# Every eighth kind first, so that each stage of the curriculum spans all groups
ORDER: tuple[str, ...] = tuple(kind for start in (0, 4, 2, 6, 1, 5, 3, 7) for kind in KINDS[start::8])
PARTS = (Part(8, 2500), Part(16, 2500), Part(28, 3000), Part(48, 14000))


def pool_scene(part: Part, index: int, seed: int = 0) -> Scene:
    """Scene number ``index`` of a part; its seed can be that of no split."""
    return draw_scene(f"pool/{seed}/{part.kinds}/{index}", kinds=ORDER[: part.kinds])


def pool_scenes(parts: tuple[Part, ...] = PARTS, seed: int = 0) -> list[Scene]:
    """All scenes of the pool, part after part."""
    return [pool_scene(part, index, seed) for part in parts for index in range(part.scenes)]


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
        start = left + (right - left - 15 * len(sign.code)) // 2
        for number, letter in enumerate(sign.code):
            box = (start + 15 * number, top, start + 15 * (number + 1), bottom)
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
