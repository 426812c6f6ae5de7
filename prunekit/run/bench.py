"""``task=bench``: measured speed."""

from __future__ import annotations

from typing import Any

from prunekit import ranks
from prunekit.errors import PrunekitError
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, load, load_examples, whole


def run(config: dict[str, Any], context: Context) -> None:
    """``task=bench``: dense, pruned, ceiling and eager_fastv timed in turn; table, bench.json, bench.png."""
    from prunekit.bench.task import Settings, bench

    if ranks.world() > 1:
        raise PrunekitError(f"task=bench measures time: run it in one process, not in {ranks.world()}")
    options = config["bench"]
    counts = options["visual_tokens"]
    if counts is not None and (not isinstance(counts, list) or not counts):
        raise PrunekitError(f"bench.visual_tokens must be a list of counts like [576,2880], not {counts!r}")
    for place, count in enumerate(counts or ()):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise PrunekitError(f"bench.visual_tokens[{place}] must be a whole number from 1 on, not {count!r}")
    for name in ("eager", "profile"):
        if not isinstance(options[name], bool):
            raise PrunekitError(f"bench.{name} must be true or false, not {options[name]!r}")
    bench(
        config["shape"],
        build_pruner(config),
        Settings(
            visual=counts,
            text=whole(config, "bench.text_tokens", 2),
            batch=whole(config, "bench.batch_size", 1),
            rounds=whole(config, "bench.rounds", 1),
            new_tokens=whole(config, "bench.new_tokens", 0),
            eager=options["eager"],
            profile=options["profile"],
        ),
        context.folder,
        load=lambda: load(config),
        first_example=lambda: next(iter(load_examples(config))),
        device=config["device"],
        dtype=config["dtype"],
        attn=config["attn"],
    )
