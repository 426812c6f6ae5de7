"""One bench: a model, a pruner, and the numbers of visual tokens to sweep."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import psutil
import torch

from prunekit.bench.measure import Setting, Timings, ratios, spread, take_turns
from prunekit.bench.options import BenchOptions
from prunekit.bench.record import Contender, Machine, Point
from prunekit.bench.segments import ceiling_segments, eager_segments, segmented
from prunekit.bench.workload import Workload
from prunekit.cost import Cost, Outline, estimate, outline
from prunekit.errors import PrunekitError
from prunekit.pruning.pruner import Pruner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMA = 1
EAGER_SHARE = 0.5
"""Share of the free memory that ``eager_fastv``'s attention weights may take; beyond it is left out, and said so."""


def bench_point(model: PreTrainedModel, work: Workload, pruner: Pruner, options: BenchOptions) -> Point:
    """All contenders on one workload, as plain data: times with their quartiles, ratios, costs, efficiencies."""
    plan = outline(pruner, work.shape.text, work.visual, work.text)
    contenders, notes = _contenders(model, work, pruner, plan, options)
    timings, vision = take_turns(model, work, contenders, options.rounds, options.new_tokens)
    costs = {name: _cost(work, None if name == "dense" else pruner, options) for name in timings}
    point: Point = {
        "visual_tokens": work.visual,
        "frames": work.frames,
        "text_tokens": work.text,
        "batch_size": work.batch,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "cut_layers": list(plan.cut_layers),
        "tokens_per_layer": list(plan.tokens),
        "vision_s": spread(vision) if vision else None,
        "flops": {name: costs[name].flops for name in ("dense", "pruned")},
        "contenders": {},
        "notes": notes,
    }
    for name, found in timings.items():
        point["contenders"][name] = _row(name, found, timings, costs, vision, options, work.batch)
    return point


def _row(
    name: str,
    found: Timings,
    all_found: dict[str, Timings],
    costs: dict[str, Cost],
    vision: list[float],
    options: BenchOptions,
    batch: int,
) -> Contender:
    dense, cost = all_found["dense"], costs[name]
    seen = vision or [0.0] * options.rounds
    first = [v + p for v, p in zip(seen, found.prefill, strict=True)]
    whole = [f + options.new_tokens * t for f, t in zip(first, found.token, strict=True)]
    implied = (cost.prefill + cost.lm_head) / (costs["dense"].prefill + costs["dense"].lm_head)
    measured = ratios(found.prefill, dense.prefill)
    assert measured is not None
    row: Contender = {
        "prefill_s": spread(found.prefill),
        "first_token_s": spread(first),
        "token_s": spread(found.token) if options.new_tokens else None,
        "tokens_per_s": spread([batch * options.new_tokens / w for w in whole]) if options.new_tokens else None,
        "activation_bytes": found.memory,
        "device_peak_bytes": found.device_peak,
        "kv_bytes": found.kv_bytes,
        "flops_ratio": implied,
        "prefill_ratio": measured,
        "token_ratio": ratios(found.token, dense.token),
        "efficiency": None if name == "dense" else implied / measured["median"],
    }
    if "ceiling" in all_found and name != "dense":
        row["over_ceiling"] = ratios(found.prefill, all_found["ceiling"].prefill)
        row["token_over_ceiling"] = ratios(found.token, all_found["ceiling"].token)
    return row


def _cost(work: Workload, pruner: Pruner | None, options: BenchOptions) -> Cost:
    return estimate(
        work.shape,
        pruner,
        visual=work.visual,
        text=work.text,
        convention="exact",
        images=work.images,
        frames=work.frames,
        before=work.before,
        batch=work.batch,
        decode=options.new_tokens,
    )


def _contenders(
    model: PreTrainedModel, work: Workload, pruner: Pruner, plan: Outline, options: BenchOptions
) -> tuple[dict[str, Setting], list[str]]:
    """What runs, by name, and in words what does not."""
    found: dict[str, Setting] = {"dense": nullcontext, "pruned": lambda: pruner(model)}
    notes: list[str] = []
    segments = ceiling_segments(plan.tokens, work.visual + work.text)
    try:
        with segmented(work.family, segments):
            pass
    except PrunekitError as error:
        return found, [f"no ceiling and no eager_fastv: {error}"]
    found["ceiling"] = lambda: segmented(work.family, segments)
    if not options.eager:
        return found, notes
    if plan.tokens[0] < work.visual + work.text:
        return found, ["no eager_fastv: no layer lies before the first cut"]
    if len(segments) == 1:
        return found, notes
    need, free = _eager_bytes(work), _free_bytes(model.device)
    if need > EAGER_SHARE * free:
        return found, [f"no eager_fastv: its attention weights take {need / 2**30:.1f} GiB of {free / 2**30:.1f} free"]

    def eager() -> AbstractContextManager[None]:
        places = work.places.to(model.device)
        return segmented(work.family, eager_segments(plan.tokens, plan.visual, places))

    found["eager_fastv"] = eager
    return found, notes


def _eager_bytes(work: Workload) -> int:
    """Full attention weights of one layer: logits, their float32 softmax and its copy in the model's type."""
    return 3 * 4 * work.batch * work.shape.text.heads * (work.visual + work.text) ** 2


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def machine(model: PreTrainedModel) -> Machine:
    """Where and on what it ran."""
    cuda = model.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(model.device) if cuda else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def profile_prefill(model: PreTrainedModel, work: Workload, pruner: Pruner, rows: int = 15) -> str:
    """The operators that one pruned prefill spends most time in, as torch's profiler tables them."""
    from torch.profiler import ProfilerActivity, profile

    cuda = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]

    def once() -> None:
        model(**work.inputs(), use_cache=True, logits_to_keep=1)

    with torch.inference_mode(), pruner(model):
        once()
        with profile(activities=activities) as found:
            once()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=50)
