"""``task=layers``: which layer to cut before."""

from __future__ import annotations

from typing import Any

from prunekit.registry import registry
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, data_name, load, load_examples, whole


def run(config: dict[str, Any], context: Context) -> None:
    """``task=layers``: a one-shot cut at every layer; accuracy and cost of each, and the layer to choose."""
    from prunekit.data.source import gather
    from prunekit.evaluation.layers import select_layer

    select_layer(
        load(config),
        gather(load_examples(config)),
        lambda layer: build_pruner(config, schedule=registry.create("schedule", "one_shot", layer=layer)),
        context.folder,
        data=data_name(config),
        batch_size=whole(config, "batch_size", 1),
        max_new_tokens=whole(config, "data.max_new_tokens", 1),
        seed=whole(config, "seed", 0),
        resume=bool(config["resume"]),
        overwrite=bool(config["overwrite"]),
    )
