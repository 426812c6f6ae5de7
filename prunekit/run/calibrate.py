"""``task=calibrate``: a schedule fitted on a few examples of a split, written with its pruner."""

from __future__ import annotations

from typing import Any

from prunekit import ranks
from prunekit.components.calibrated import FILE
from prunekit.errors import FolderError, PrunekitError
from prunekit.families import make_family
from prunekit.pruning.calibration import calibrate
from prunekit.run.config import CalibrateConfig, DataOptions
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, data_name, load, load_examples


def run(config: CalibrateConfig, context: Context) -> None:
    """``task=calibrate``: measure, write ``schedule.safetensors`` and ``pruner.yaml``, print where the cuts are."""
    from prunekit.data.source import gather
    from prunekit.evaluation.batches import Batcher

    if ranks.world() > 1:
        raise PrunekitError(f"task=calibrate takes a few examples: run it in one process, not in {ranks.world()}")
    options: dict[str, Any] = {**config.data.opened(), **config.calibrate.model_dump()}
    data = DataOptions(**options)
    pruner, examples = build_pruner(config), gather(load_examples(config, data))
    if (context.folder / FILE).exists() and not config.overwrite:
        raise FolderError(f"'{context.folder}' holds a calibration: overwrite=true replaces it, or name a new folder")
    loaded = load(config)
    batcher = Batcher(loaded)
    batches = [batcher.inputs(group, pruner) for group in batcher.batches(examples, config.batch_size)]
    said = {"model": loaded.name, "data": data_name(data), "examples": str(len(examples))}
    fitted = calibrate(pruner, loaded.model, batches, context.folder, said)
    cuts = fitted.schedule.cuts(make_family(loaded.model).depth, fitted.share)
    places = ", ".join(f"{cut.ratio:.0%} from layer {cut.layer}" for cut in cuts)
    print(f"calibrated on {len(examples)} examples of {said['data']}: of the visual tokens {places}")
    print(f"files: {context.folder} ({FILE}, pruner.yaml); use it by schedule.weights={context.folder}")
