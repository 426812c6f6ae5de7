"""``task=bench bench.engine=vllm``: dense against pruned requests in one vLLM engine, in turn.

Both are requests to the same engine in this process, so weights, KV blocks and batch limits are the same. Every picture
is new noise and no cache of prefixes or processed images is on: each request pays for its encoder and its prefill.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from prunekit.bench.options import BenchOptions
from prunekit.results.screen import screen_table, show

LEAST = 16
"""Requests of a timed run, or twice the concurrency where that is more."""

HEADINGS = ("at once", "run", "first token ms", "tokens/s", "requests/s", "KV blocks", "time", "KV")


class Load(TypedDict):
    """One timed run: medians are over its requests, ``blocks`` the most KV blocks in use."""

    first_token_s: float
    tokens_per_s: float
    requests_per_s: float
    blocks: int


class Served(TypedDict):
    """What a bench of serving found at one concurrency: the rounds of both contenders in order."""

    concurrency: int
    dense: list[Load]
    pruned: list[Load]


@dataclass
class Flight:
    """A request under way: when it came, and what it has given."""

    came: float
    first: float | None = None
    tokens: int = 0


@dataclass
class Bench:
    """An engine, and the requests that are put to it.

    Attributes:
        text: the prompt with its placeholder.
        size: width and height of its picture.
        new_tokens: tokens of each answer; it does not end before.
    """

    llm: Any
    text: str
    size: tuple[int, int]
    new_tokens: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    _number: int = 0

    def load(self, options: dict[str, object] | None, requests: int, concurrency: int) -> Load:
        """So many requests, of which ``concurrency`` are under way at a time."""
        flights: dict[str, Flight] = {}
        done: list[Flight] = []
        pending = [self._picture() for _ in range(requests)]
        blocks, start = 0, time.perf_counter()
        while pending or flights:
            while pending and len(flights) < concurrency:
                self._number += 1
                flights[str(self._number)] = Flight(time.perf_counter())
                self._add(str(self._number), pending.pop(), options)
            outputs, now = self.llm.llm_engine.step(), time.perf_counter()
            blocks = max(blocks, self._blocks())
            for output in outputs:
                flight = flights[output.request_id]
                flight.first = flight.first or now
                flight.tokens = len(output.outputs[0].token_ids)
                if output.finished:
                    done.append(flights.pop(output.request_id))
        wall = time.perf_counter() - start
        return {
            "first_token_s": median((flight.first or now) - flight.came for flight in done),
            "tokens_per_s": sum(flight.tokens for flight in done) / wall,
            "requests_per_s": requests / wall,
            "blocks": blocks,
        }

    def _picture(self) -> Image.Image:
        width, height = self.size
        return Image.fromarray(self.rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def _add(self, number: str, picture: Image.Image, options: dict[str, object] | None) -> None:
        from vllm import SamplingParams

        prompt = {
            "prompt": self.text,
            "multi_modal_data": {"image": picture},
            "mm_processor_kwargs": {"prunekit": None} if options is None else {},
        }
        sampling = SamplingParams(temperature=0, max_tokens=self.new_tokens, ignore_eos=True)
        self.llm.llm_engine.add_request(number, prompt, sampling)

    def _blocks(self) -> int:
        pool = self.llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - pool.get_num_free_blocks()


def start_engine(
    model: str, overrides: dict[str, object], dtype: str, seed: int, most: int, longest: int | None = None
) -> Any:
    """An engine in this process that batches up to ``most`` requests, without caches.

    Args:
        longest: tokens of the longest request to a folder without weights, which gets random ones.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        model=model, hf_overrides=overrides, dtype=dtype, seed=seed, max_num_seqs=most, enable_prefix_caching=False,
        mm_processor_cache_gb=0, limit_mm_per_prompt={"image": 1}, enforce_eager=True, block_size=32,
        load_format="auto" if longest is None else "dummy", max_model_len=longest,
    )  # fmt: skip


def bench_serving(bench: Bench, options: dict[str, object], settings: BenchOptions, folder: Path, title: str) -> None:
    """Measure, print, and write ``bench.json``."""
    results: list[Served] = []
    for concurrency in settings.concurrency:
        requests = max(LEAST, 2 * concurrency)
        result: Served = {"concurrency": concurrency, "dense": [], "pruned": []}
        for number in range(settings.rounds + 1):
            dense = bench.load(None, requests, concurrency)
            pruned = bench.load(options, requests, concurrency)
            if number:  # the first warms up
                result["dense"].append(dense)
                result["pruned"].append(pruned)
        results.append(result)
        record = {"schema": 1, "engine": "vllm", "title": title, "method": options, "served": results}
        (folder / "bench.json").write_text(json.dumps(record, indent=1) + "\n")  # what is measured stands
    show(screen_table(title, HEADINGS, [row for result in results for row in rows(result)]), width=120)
    print(f"files: {folder} (bench.json)")


def rows(result: Served) -> list[list[str]]:
    """The table's rows at one concurrency: medians of the rounds, and ratios to dense of rounds side by side."""
    cells = []
    for name, loads in (("dense", result["dense"]), ("pruned", result["pruned"])):
        time_ratio = _ratio([load["requests_per_s"] for load in result["dense"]], [x["requests_per_s"] for x in loads])
        block_ratio = _ratio([load["blocks"] for load in loads], [load["blocks"] for load in result["dense"]])
        first = median(load["first_token_s"] for load in loads)
        cells.append(
            [
                str(result["concurrency"]), name, f"{1000 * first:.0f}",
                f"{median(load['tokens_per_s'] for load in loads):.1f}",
                f"{median(load['requests_per_s'] for load in loads):.2f}",
                f"{median(load['blocks'] for load in loads):.0f}", f"{time_ratio:.2f}", f"{block_ratio:.2f}",
            ]
        )  # fmt: skip
    return cells


def _ratio(values: Sequence[float], others: Sequence[float]) -> float:
    return median(value / other for value, other in zip(values, others, strict=True))
