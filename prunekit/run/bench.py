"""``task=bench``: measured speed."""

from __future__ import annotations

from prunekit.run.config import BenchConfig
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, load, load_examples


def run(config: BenchConfig, context: Context) -> None:
    """``task=bench``: dense, pruned, ceiling and eager_fastv timed in turn; table, bench.json, bench.png."""
    if config.bench.engine == "vllm":
        from prunekit.run.serve import bench_vllm

        bench_vllm(config, context)
        return
    from prunekit.bench.task import bench

    bench(
        build_pruner(config),
        config.bench,
        context.folder,
        load=lambda: load(config),
        first_example=lambda: next(iter(load_examples(config))),
        device=config.device,
        dtype=config.dtype,
        attn=config.attn,
    )
