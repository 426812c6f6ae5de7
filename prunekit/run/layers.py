"""``task=layers``: which layer to cut before."""

from __future__ import annotations

from prunekit.registry import registry
from prunekit.run.config import RunConfig
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, data_name, load, load_examples


def run(config: RunConfig, context: Context) -> None:
    """``task=layers``: a one-shot cut at every layer; accuracy and cost of each, and the layer to choose."""
    from prunekit.data.source import gather
    from prunekit.evaluation.layers import select_layer

    select_layer(
        load(config),
        gather(load_examples(config)),
        lambda layer: build_pruner(config, schedule=registry.create("schedule", "one_shot", layer=layer)),
        context.folder,
        data=data_name(config.data),
        batch_size=config.batch_size,
        max_new_tokens=config.data.max_new_tokens,
        seed=config.seed,
        resume=config.resume,
        overwrite=config.overwrite,
    )
