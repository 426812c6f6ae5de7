"""``task=bench bench.engine=vllm``."""

import json
import os
import subprocess
import sys

import pytest

import serving
from prunekit.bench.serving import Load, rows


def load(first: float, requests: float, blocks: int) -> Load:
    return {"first_token_s": first, "tokens_per_s": 2 * requests, "requests_per_s": requests, "blocks": blocks}


def test_ratios_are_of_rounds_side_by_side():
    dense = [load(0.1, 10.0, 40), load(0.3, 5.0, 40), load(0.2, 20.0, 40)]
    pruned = [load(0.05, 20.0, 10), load(0.1, 20.0, 10), load(0.2, 30.0, 10)]
    table = rows({"concurrency": 8, "dense": dense, "pruned": pruned})
    assert table[0] == ["8", "dense", "200", "20.0", "10.00", "40", "1.00", "1.00"]
    assert table[1] == ["8", "pruned", "100", "40.0", "20.00", "10", "0.50", "0.25"]


@serving.NEEDS_VLLM
@pytest.mark.parametrize("model", ["model=mini", "bench.shape=small"])
def test_dense_against_pruned(tmp_path, model):
    words = ["task=bench", "bench.engine=vllm", "method=divprune", "keep_ratio=0.25", "dtype=float32", "bench.rounds=1",
             "bench.new_tokens=2", "bench.concurrency=[1,8]", "logger.mode=disabled", model,
             f"hydra.run.dir={tmp_path}"]  # fmt: skip
    environment = {**os.environ, **serving.ENVIRONMENT}
    subprocess.run([sys.executable, "-m", "prunekit", *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    served = json.loads((tmp_path / "bench.json").read_text())["served"]
    assert [entry["concurrency"] for entry in served] == [1, 8]
    for entry in served:
        (dense,), (pruned,) = entry["dense"], entry["pruned"]
        assert 0 < pruned["blocks"] < dense["blocks"]
        assert min(dense["first_token_s"], pruned["first_token_s"], dense["requests_per_s"]) > 0
