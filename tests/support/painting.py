"""Paints one cell of one frame of a batch's pictures, for models whose patches do not see each other."""

from __future__ import annotations

import re

import torch

import zoo
from prunekit.families import family_of

OUTPUTS = re.compile(r"(attn|attention)\.(out_proj|proj|o_proj|dense|projection_layer)$")


def silent(name: str):
    """A tiny model whose encoder's patches do not see each other."""
    model = zoo.build(name)
    tower = family_of(model).vision_tower or family_of(model).core
    towers = [m for n, m in family_of(model).core.named_children() if "language" not in n and "text" not in n] + [tower]
    for part in towers:
        for path, module in part.named_modules():
            if OUTPUTS.search(path):
                torch.nn.init.zeros_(module.weight)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
    return model


def cell(size: int, count: int, number: int) -> slice:
    """The pixels of the ``number``-th of ``count`` cells on a side of ``size``."""
    return slice(number * size // count, (number + 1) * size // count)


# Each paints a cell of the ``m``-th medium of a batch: its pixels, and the size of the whole in cells.


def plain(rows, columns, key="pixel_values", sizes=None):
    def paint(inputs, m, draw):
        pixels = inputs[key]
        high, wide = (pixels.shape[-2:]) if sizes is None else inputs["image_sizes"][m].tolist()
        count = (rows, columns) if sizes is None else (high // sizes, wide // sizes)
        row, column = (draw.randrange(n) for n in count)
        pixels[m, :, cell(high, count[0], row), cell(wide, count[1], column)] += 3.0
        return (1, *count), (0, row, column)

    return paint


def boxed(inputs, m, draw):
    flat = inputs["pixel_values"].flatten(0, 1)
    real = [i for i in range(len(flat)) if bool((flat[i] != 0).any())]
    row, column = draw.randrange(3), draw.randrange(3)
    flat[real[m], :, cell(24, 3, row), cell(24, 3, column)] += 3.0
    return (1, 3, 3), (0, row, column)


def tiled(inputs, m, draw):
    """Tile 0 is the whole picture; the others, of 2 × 2 patches of 4 pixels, stand in rows. Of several pictures in a
    sample LLaVA-OneVision tiles none."""
    counts = inputs.get("batch_num_images")
    untiled = counts is not None and [n > 1 for n in counts.tolist() for _ in range(n)][m]
    high, wide = (2, 2) if untiled else (inputs["image_sizes"][m] // 4).tolist()
    row, column = draw.randrange(high), draw.randrange(wide)
    tile = 0 if untiled else 1 + row // 2 * (wide // 2) + column // 2
    inputs["pixel_values"][m, tile, :, cell(8, 2, row % 2), cell(8, 2, column % 2)] += 3.0
    return (1, high, wide), (0, row, column)


def filmed(frames, rows, columns):
    def paint(inputs, m, draw):
        frame, row, column = (draw.randrange(n) for n in (frames, rows, columns))
        pixels = inputs["pixel_values_videos"]
        high, wide = pixels.shape[-2:]
        pixels[m, frame, :, cell(high, rows, row), cell(wide, columns, column)] += 3.0
        return (frames, rows, columns), (frame, row, column)

    return paint


def packed(pixels, grids):
    """Squares of 2 × 2 patches stand together, raster by raster of them, frame by frame."""

    def paint(inputs, m, draw):
        sizes = inputs[grids].tolist()
        start = sum(t * h * w for t, h, w in sizes[:m])
        frames, rows, columns = sizes[m][0], sizes[m][1] // 2, sizes[m][2] // 2
        frame, row, column = (draw.randrange(n) for n in (frames, rows, columns))
        first = start + 4 * ((frame * rows + row) * columns + column)
        inputs[pixels][first : first + 4] += 3.0
        return (frames, rows, columns), (frame, row, column)

    return paint


def strip(pixels, sizes):
    """All patches of all pictures side by side, 4 × 4 of them to a token."""

    def paint(inputs, m, draw):
        grids = inputs[sizes].tolist()
        start, (high, wide) = sum(h * w for h, w in grids[:m]), grids[m]
        row, column = draw.randrange(high // 4), draw.randrange(wide // 4)
        for patch in ((4 * row + i) * wide + 4 * column + j for i in range(4) for j in range(4)):
            inputs[pixels][..., 4 * (start + patch) : 4 * (start + patch + 1)] += 3.0
        return (1, high // 4, wide // 4), (0, row, column)

    return paint


IMAGES, VIDEOS = packed("pixel_values", "image_grid_thw"), packed("pixel_values_videos", "video_grid_thw")
PAINTERS = {
    ("llava", "image"): plain(4, 4),
    ("paligemma", "image"): plain(4, 4),
    ("gemma3", "image"): plain(4, 4),
    ("internvl", "image"): plain(3, 3),
    ("llava_pixtral", "image"): plain(0, 0, sizes=4),
    ("mistral3", "image"): plain(0, 0, sizes=8),
    ("idefics3", "image"): boxed,
    ("smolvlm", "image"): boxed,
    ("llava_next", "image"): tiled,
    ("llava_next_video", "image"): tiled,
    ("llava_next_video", "video"): filmed(8, 1, 1),
    ("llava_onevision", "image"): tiled,
    ("llava_onevision", "video"): filmed(8, 1, 1),
    ("minicpmv4_6", "image"): strip("pixel_values", "target_sizes"),
    ("minicpmv4_6", "video"): strip("pixel_values_videos", "target_sizes_videos"),
    ("video_llava", "image"): plain(3, 3),
    ("video_llava", "video"): filmed(2, 3, 3),
    **{
        (name, "image"): IMAGES
        for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "video_llama_3")
    },
    **{(name, "video"): VIDEOS for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "video_llama_3")},
}
ONE_A_SAMPLE = ("idefics3", "smolvlm")
"""The words between several pictures are not those of their processors here; see ``TestTilesInText``."""


def variants(name, kind):
    if kind == "video":
        return ["video"]
    return ["plain", "text_only_row"] if name in ONE_A_SAMPLE else ["two_images", "text_only_row"]
