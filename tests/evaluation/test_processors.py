"""Published image settings, offline: prompts, counts of visual tokens and pruned runs on pictures of odd shapes."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import cache

import numpy as np
import pytest
import torch

import prunekit
import published
from commands import run_main
from prunekit.data.source import open_source
from prunekit.errors import RowError
from prunekit.evaluation.batches import Batcher
from prunekit.families import make_family
from prunekit.models import load_model
from published import CHECKPOINTS, pictures

PROMPT = "{images}{question}"  # for PaliGemma, which has no template
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(not all(map(importlib.util.find_spec, c.needs)), reason=str(c.needs)))
    for name, c in CHECKPOINTS.items()
]
VIDEOS = [param for param in NAMES if CHECKPOINTS[param.values[0]].video]
PRUNER = prunekit.Pruner(schedule="one_shot", fusion="single", keep_ratio=0.25)


@pytest.fixture(scope="module")
def batcher(tmp_path_factory):
    @cache
    def make(name: str) -> Batcher:
        folder = published.save(name, tmp_path_factory.mktemp("model"))
        return Batcher(load_model(str(folder), device="cpu", prompt=PROMPT if name == "PaliGemma" else None))

    return make


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    def read(**shown: list[str]) -> list:
        path = published.write_rows(tmp_path_factory.mktemp("rows"), shown)
        films = any("film" in names for names in shown.values())
        return list(open_source({"name": "jsonl", "path": str(path), **({"frames": 4} if films else {})}))

    return read


def count(batcher: Batcher, inputs: dict) -> list[int]:
    return make_family(batcher.loaded.model).find_visual(inputs["input_ids"], inputs).sum(1).tolist()


def qwen(width: int, height: int, factor: int, least: int, most: int) -> int | None:
    """Sides rounded to whole tokens, within the budget of pixels."""
    if max(width, height) / min(width, height) > 200:
        return None
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    area, pixels = width * height, sides[0] * sides[1]
    if pixels > most:
        sides = [max(factor, math.floor(side / math.sqrt(area / most) / factor) * factor) for side in (height, width)]
    elif pixels < least:
        sides = [math.ceil(side * math.sqrt(least / area) / factor) * factor for side in (height, width)]
    return sides[0] * sides[1] // factor**2


def anyres(width: int, height: int, side: int, tile: int, pins: list[list[int]], most: float = math.inf) -> int:
    """The whole picture, and tiles of the fitting grid without their padding, each row with a newline."""
    best: tuple[float, float, list[int]] = (-1, 0, [])
    for rows, columns in pins:
        scale = min(columns / width, rows / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        best = max(best, (used, used - rows * columns, [rows, columns]), key=lambda entry: entry[:2])
    rows, columns = (tile * edge // side for edge in best[2])
    if width / height > columns / rows:
        rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
    shrunk = math.sqrt(rows * columns / (most * tile**2))
    if shrunk > 1.1:
        rows, columns = int(rows // shrunk), int(columns // shrunk)
    return tile**2 + rows * (columns + 1)


def internvl(width: int, height: int) -> int:
    """The grid of up to 12 tiles nearest in shape, and a thumbnail."""
    grids = sorted({(c, r) for c in range(1, 13) for r in range(1, 13) if c * r <= 12}, key=lambda g: g[0] * g[1])
    best, least = (1, 1), math.inf
    for columns, rows in grids:
        apart = abs(width / height - columns / rows)
        if apart < least or (apart == least and width * height > 0.5 * 448**2 * columns * rows):
            best, least = (columns, rows), apart
    tiles = best[0] * best[1]
    return 256 * (tiles + (tiles > 1))


def idefics(width: int, height: int, longest: int, tile: int, length: int) -> int:
    """The longer edge scaled to ``longest``, both up to whole tiles, and the picture as a whole."""
    ratio = width / height
    wide, high = (longest, int(longest / ratio)) if width >= height else (int(longest * ratio), longest)
    wide, high = (max(edge + edge % 2, 1) for edge in (wide, high))
    rows, columns = math.ceil(high / tile), math.ceil(wide / tile)
    if ratio >= 1:  # the shorter edge is that of the picture with its longer edge in whole tiles
        rows = math.ceil(int(columns * tile / (wide / high)) / tile) or 1
    else:
        columns = math.ceil(int(rows * tile * (wide / high)) / tile) or 1
    return length * (rows * columns + 1 if max(rows, columns) > 1 else 1)


def pixtral(width: int, height: int) -> int | None:
    """Down to 1024 pixels at most, then up to whole patches."""
    scale = max(width / 1024, height / 1024, 1)
    sides = [math.floor(side / scale) if scale > 1 else side for side in (width, height)]
    return math.ceil(sides[0] / 16) * math.ceil(sides[1] / 16) or None


EXPECTED = {
    "LLaVA-1.5": lambda w, h: 576,
    "LLaVA-NeXT": lambda w, h: anyres(w, h, 336, 24, published.NEXT_PINS),
    "LLaVA-OneVision": lambda w, h: anyres(w, h, 384, 27, published.ONEVISION_PINS, 9),
    "Qwen2-VL": lambda w, h: qwen(w, h, 28, 56 * 56, 16384 * 28 * 28),
    "Qwen2.5-VL": lambda w, h: qwen(w, h, 28, 56 * 56, 16384 * 28 * 28),
    "Qwen3-VL": lambda w, h: qwen(w, h, 32, 65536, 16777216),
    "InternVL3": internvl,
    "Idefics3": lambda w, h: idefics(w, h, 1456, 364, 169),
    "SmolVLM": lambda w, h: idefics(w, h, 1536, 384, 81),
    "SmolVLM2": lambda w, h: idefics(w, h, 2048, 512, 64),
    "Gemma 3": lambda w, h: 256,
    "Pixtral": pixtral,
    "PaliGemma": lambda w, h: 256,
}
"""Visual tokens of a picture by its width and height, None for one that the processor rejects."""


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_every_shape_and_kind_have_the_published_count(name, batcher, examples):
    for example in examples(**{picture: [picture] for picture in pictures()}):
        expected = EXPECTED[name](*pictures()[example.id][1])
        if expected is None:
            with pytest.raises(RowError, match=rf"example '{example.id}' \(\d+ x \d+ pixels\): .* rejects it: "):
                batcher(name).inputs([example])
        else:
            assert count(batcher(name), batcher(name).encoded([example])) == [expected], example.id


@pytest.mark.parametrize("name", NAMES)
def test_random_sizes(name, batcher):
    generator = np.random.default_rng()
    processor, image = batcher(name).loaded.processor, CHECKPOINTS[name].image
    for width, height in np.exp(generator.uniform(np.log(20), np.log(1200), (3, 2))).astype(int).tolist():
        inputs = processor(images=[published.scene(width, height)], text=[f"{image} what?"], return_tensors="pt")
        assert count(batcher(name), inputs) == [EXPECTED[name](width, height)], (width, height)


def logits(batcher: Batcher, batch: list) -> tuple[list[int], torch.Tensor, torch.Tensor, list[int]]:
    """Visual tokens, logits of the last position dense and pruned, tokens kept."""
    inputs, model = batcher.inputs(batch), batcher.loaded.model
    with torch.no_grad():
        dense = model(**inputs).logits[:, -1]
        with PRUNER(model) as trace:
            pruned = model(**inputs).logits[:, -1]
    return count(batcher, inputs), dense, pruned, trace.cuts[-1].kept.sum(1).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_model_runs_dense_and_pruned_alone_and_in_a_batch(name, batcher, examples):
    """The model's own forward pass raises if placeholders and features differ in number."""
    takes_lines = EXPECTED[name](*pictures()["line"][1]) is not None
    batch = examples(one=["portrait"], two=["line", "column"] if takes_lines else ["RGBA", "tiny"])
    counts, dense, pruned, kept = logits(batcher(name), batch)
    assert kept == [max(1, round(0.25 * number)) for number in counts]
    for row, example in enumerate(batch):
        alone = logits(batcher(name), [example])
        assert (alone[0], alone[3]) == ([counts[row]], [kept[row]])
        assert torch.allclose(alone[1][0], dense[row], atol=1e-4) and torch.allclose(
            alone[2][0], pruned[row], atol=1e-4
        )


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_with_and_without_a_picture(name, batcher, examples):
    film, both = examples(film=["film"], both=["tiny", "film"])
    (alone,), *_, kept = logits(batcher(name), [film])
    assert alone > 3 and kept == [round(0.25 * alone)]
    if name == "SmolVLM2":
        with pytest.raises(RowError, match=r"'both': .* images or a video, not both: .* as pixel_values"):
            batcher(name).inputs([both])
    else:
        (together,), *_ = logits(batcher(name), [both])
        several = 730 if name == "LLaVA-OneVision" else EXPECTED[name](28, 28)
        assert together in (alone + EXPECTED[name](28, 28), alone + several)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_the_familys(name, batcher, examples):
    (example,) = examples(it=["tiny"])
    checkpoint, tokens = CHECKPOINTS[name], batcher(name).loaded.processor.tokenizer
    (ids,) = batcher(name).encoded([example])["input_ids"].tolist()
    before, after = checkpoint.chat.format("\0", question="What is in it?").split("\0")
    text = tokens.decode(ids, clean_up_tokenization_spaces=False)
    if name == "PaliGemma":  # its processor writes the first token behind the picture
        after = f"<bos>{after}\n"
    first = checkpoint.bos if not before.startswith(checkpoint.bos) else ""
    assert text.startswith(first + before) and text.endswith(after)
    assert ids.count(tokens.bos_token_id) == bool(checkpoint.bos or name == "PaliGemma")


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "Pixtral"])
def test_a_picture_that_the_processor_rejects_is_named_and_the_run_goes_on(name, monkeypatch, tmp_path):
    path = published.write_rows(tmp_path, {picture: [picture] for picture in ("tiny", "line", "grey", "RGBA")})
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={published.save(name, tmp_path / 'model')}", "data=jsonl",
        f"data.path={path}", "data.max_new_tokens=2", "logger.mode=disabled", "device=cpu", "keep_ratio=0.25",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "run" / "predictions.jsonl").open())}
    assert rows["line"]["error"].startswith("example 'line' (2000 x 1 pixels): the model's processor rejects it: ")
    for picture in ("tiny", "grey", "RGBA"):
        assert len(rows[picture]["kept"]) == max(1, round(0.25 * EXPECTED[name](*pictures()[picture][1])))
