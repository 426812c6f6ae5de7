"""Run folders with known contents, as an evaluation writes them, without a model."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from prunekit.evaluation.kept import KeptCut, KeptExample, grid_boxes, write_kept

TOKENS, LAYERS, SIDE = 16, 4, 4
TASKS = ("colour", "count")


def questions(images=12, text="What is it?"):
    """Four questions an image, two tasks."""
    return [
        {
            "id": f"q{i}-{n}", "image_id": f"image{i}", "task": TASKS[n % 2], "question": f"{text} ({n})",
            "answers": ["yes"],
        }
        for i in range(images)
        for n in range(4)
    ]  # fmt: skip


def make_run(
    folder: Path,
    name: str | None,
    right: float,
    *,
    keep=0.5,
    seed: int | None = None,
    asked=None,
    data="mini/test",
    model="mini",
    scorer="instruction",
    layer=1,
    flops=None,
    correct=None,
    pictures=4,
    **more,
) -> list[dict]:
    """A run that gets a share ``right`` of the questions right (or just those of ``correct``); its rows."""
    rng = random.Random(f"{name}/{keep}/{seed}/{layer}/{scorer}/{more}")
    asked = questions() if asked is None else asked
    folder.mkdir(parents=True)
    rows, count = [], max(1, round(keep * TOKENS))
    for number, question in enumerate(asked):
        good = rng.random() < right if correct is None else bool(correct[number])
        dense = random.Random(question["id"]).random() < 0.9
        rows.append(
            {
                **question,
                "prediction": "yes" if good else "no",
                "dense_prediction": "yes" if dense else "no",
                "correct": good,
                "dense_correct": dense,
                "kept": sorted(rng.sample(range(TOKENS), count)),
                "prompt_tokens": TOKENS + 5,
                "tokens_per_layer": [TOKENS + 5] * layer + [count + 5] * (LAYERS - layer),
            }
        )
    options = {} if seed is None else {"seed": seed}
    parts = {"scorer": scorer, "fusion": "multi", "schedule": "one_shot", "selector": "topk", "reducer": "drop"}
    shared = {"name": name, "positions": "keep", "keep_ratio": keep}
    signature = {
        **shared, **{kind: {"name": part} for kind, part in parts.items()}, "scorer": {"name": scorer, **options},
        "schedule": {"name": "one_shot", "layer": layer, **more},
    }  # fmt: skip
    metrics = {
        "schema": 1, "method": {**parts, **shared, "layers": [layer]}, "model": model, "data": data, "seed": 0,
        "examples": len(rows), "tokens_per_layer": np.mean([r["tokens_per_layer"] for r in rows], axis=0).tolist(),
        "flops_ratio": flops or (layer + (LAYERS - layer) * keep) / LAYERS, "flops_ratio_with_vision": None,
        "kv_ratio": 0.6, "prefill_ratio": 0.7,
    }  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps(signature))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if pictures:
        write_kept(folder / "kept.npz", [_kept(row, layer, rng) for row in rows[:pictures]])
    return rows


def _kept(row, layer, rng) -> KeptExample:
    kept = np.isin(np.arange(TOKENS), row["kept"])
    early = kept | np.array([rng.random() < 0.5 for _ in range(TOKENS)])
    scores = np.array([rng.random() for _ in range(TOKENS)], dtype=np.float32)
    cuts = (
        KeptCut("decoder", layer, early, scores),
        KeptCut("decoder", layer + 1, kept, np.where(early, scores, np.nan)),
    )
    return KeptExample(
        row["id"], row["image_id"], picture(row["image_id"]), grid_boxes(SIDE, SIDE), np.zeros(TOKENS, dtype=int), cuts
    )


def picture(name: str) -> bytes:
    """A JPEG of 16 coloured squares."""
    colours = np.random.default_rng(list(name.encode())).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize((96, 96), Image.Resampling.NEAREST).save(out, "JPEG")
    return out.getvalue()


def change(path: Path, **values) -> None:
    """Replace values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def spoilt(file, **values):
    """A run of which the first line of a file says something odd."""

    def make(runs):
        make_run(runs / "0", "fastv", 0.7)
        path = runs / "0" / file
        first, *rest = [path.read_text()] if file == "metrics.json" else path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({**json.loads(first), **values}), *rest]))

    return make


EVIL = "</script><script>window.harm=1</script><img src=x onerror=harm=1> | & 50% _x_ $y$ `z`"


def png(color: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()
