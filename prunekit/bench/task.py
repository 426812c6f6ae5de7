"""``task=bench``: from options to a model, its workloads, and the files of the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.bench.options import BenchOptions
from prunekit.bench.record import BenchRecord, Point
from prunekit.bench.report import draw, print_point
from prunekit.bench.run import SCHEMA, bench_point, machine, profile_prefill
from prunekit.bench.shapes import VISUAL, build, config_of, video_tokens
from prunekit.bench.workload import Workload, from_example, noise_video, synthetic
from prunekit.errors import PrunekitError
from prunekit.models import LoadedModel, resolve_device, resolve_dtype
from prunekit.pruning.budget import NOMINAL, for_prompt
from prunekit.pruning.planner import allotment_of
from prunekit.pruning.pruner import Pruner
from prunekit.results.run_table import cut_before

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunekit.data.example import Example


def bench(
    pruner: Pruner,
    settings: BenchOptions,
    folder: Path,
    *,
    load: Callable[[], LoadedModel],
    first_example: Callable[[], Example],
    device: str,
    dtype: str,
    attn: str,
) -> BenchRecord:
    """Measure, print, and write ``bench.json``, ``bench.png`` and, if asked for, ``profile.txt``.

    Args:
        load: the model, where ``settings`` name no shape.

    Raises:
        PrunekitError: for an unknown shape, a device that is not there, a pruner that the model cannot take.
    """
    if settings.frames is not None and settings.visual_tokens is not None:
        raise PrunekitError("bench.frames and bench.visual_tokens both say how many visual tokens there are: give one")
    place, shape = resolve_device(device), settings.shape
    loaded, video = None, None
    if shape is None:
        loaded = load()
        model, name = loaded.model, loaded.name
    else:
        config_of(shape)  # an unknown name is said before anything is built, and so is a shape without videos
        video = None if settings.frames is None else video_tokens(shape).count(settings.frames)
        model, name = build(shape, place, resolve_dtype(dtype, place), attn), shape
    if pruner.needs_pixels:
        looks = [part for part in (pruner.scorer, pruner.selector, pruner.reducer) if part.uses_vision]
        what = pruner.name or (looks[0] if looks else pruner.schedule).registered_name
        raise PrunekitError(f"bench: '{what}' works in the vision encoder, and the prefills timed here start behind it")
    pruner.apply(model).remove()  # what the model cannot do is said before any work is done
    counts: list[int | None] = [None] if shape is None else [video or VISUAL.get(shape, NOMINAL)]
    if settings.visual_tokens is not None:
        counts = [*settings.visual_tokens]
    folder.mkdir(parents=True, exist_ok=True)
    record: BenchRecord = {
        "schema": SCHEMA,
        "model": name,
        "shape": shape,
        **machine(model),
        "attn": attn,
        "method": pruner.describe(),
        "points": [],
    }
    for count in counts:
        work = _workload(model, loaded, first_example, count, settings)
        fitted = pruner
        if pruner.budget is not None:
            fitted = pruner.replace(budget=for_prompt(pruner.budget, work.visual, work.text))
        if (allotment := allotment_of(fitted, work.family)) is not None:
            print(allotment.describe())
        point = bench_point(model, work, fitted, settings)
        record["points"].append(point)
        (folder / "bench.json").write_text(json.dumps(record, indent=1) + "\n")  # what is measured stands
        print_point(point, _title(record, point))
        if settings.profile and count == counts[0]:
            (folder / "profile.txt").write_text(profile_prefill(model, work, fitted))
    line = draw(record["points"], _title(record, None), folder / "bench.png")
    files = ["bench.json", *(["bench.png"] if line is None else []), *(["profile.txt"] if settings.profile else [])]
    print(*([line] if line else []), f"files: {folder} ({', '.join(files)})", sep="\n")
    return record


def _workload(
    model: PreTrainedModel,
    loaded: LoadedModel | None,
    first_example: Callable[[], Example],
    count: int | None,
    settings: BenchOptions,
) -> Workload:
    if count is None:
        assert loaded is not None  # a shape has a count of its own
        example = first_example() if settings.frames is None else noise_video(settings.frames)
        return from_example(loaded, example, settings.batch_size)
    return synthetic(model, count, settings.text_tokens, settings.batch_size, settings.frames)


def _title(record: BenchRecord, point: Point | None) -> str:
    where = f"{record['model']}, {record['dtype']}, {record['device']}, {record['threads']} threads"
    if point is None:
        return where
    frames = f" ({point['frames']} frames)" if point["frames"] else ""
    prompt = (
        f"{point['visual_tokens']} visual{frames} + {point['text_tokens']} text tokens, batch {point['batch_size']}"
    )
    return f"{where}: {prompt}, {cut_before(point['cut_layers'])}"
