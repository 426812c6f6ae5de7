"""Ours beside published values: through the command on rows of the benchmarks' form, and every cell composed."""

from __future__ import annotations

import json
import random
from collections import defaultdict

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir

from commands import run_main
from fabricated import png
from prunekit.data.benchmarks import BENCHMARKS
from prunekit.metrics import METRICS
from prunekit.results.published import DENSE, published_table, rows_of, target_named
from prunekit.run.config import parse
from prunekit.run.config_store import register_options
from prunekit.run.objects import build_pruner
from prunekit.run.sweeps import plain
from prunekit.run.words import CONF

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TARGETS = list(yaml.safe_load((CONF / "published.yaml").read_text()))


@pytest.mark.parametrize("name", TARGETS)
def test_every_cell_composes_to_a_run_of_its_benchmark(name):
    """As many cells as it takes to compose each row and each benchmark once."""
    target, jobs, seen = target_named(name), rows_of(name), set()
    register_options()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job, words in jobs.items():
            (benchmark,) = [word.removeprefix("data=") for word in words if word.startswith("data=")]
            parts = {benchmark, job.removesuffix(f"_{benchmark}")}
            if parts <= seen:
                continue
            seen |= parts
            config = parse(plain(compose("config", overrides=words)))
            assert config.data.name == benchmark in BENCHMARKS and build_pruner(config)
    for row, benchmark, value in target.cells():
        number = target.benchmarks[benchmark].number
        metric = yaml.safe_load((CONF / "data" / f"{benchmark}.yaml").read_text())["metric"]
        assert number == "accuracy" or METRICS[metric].corpus is not None
        assert value > 0 and any(job.endswith(f"_{benchmark}") for job in jobs), (row, benchmark)


@pytest.fixture
def pope(tmp_path):
    rows = [
        {"question_id": str(n // 2), "question": f"Is there a dog {n}?", "answer": ("yes", "no")[n % 2],
         "image": {"bytes": png(size=(n // 2 + 8, 8)), "path": None}, "category": ("random", "popular")[n // 12]}
        for n in range(24)
    ]  # fmt: skip
    path = tmp_path / "pope.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def f1(rows, key):
    """Mean over splits of the F1 of "yes", by plain counting."""
    splits = defaultdict(list)
    for row in rows:
        splits[row["task"]].append((row[key] == "yes", row["answers"] == ["yes"]))
    scores = []
    for pairs in splits.values():
        hits = sum(said and true for said, true in pairs)
        scores.append(2 * hits / (sum(said for said, _ in pairs) + sum(true for _, true in pairs)))
    return np.mean(scores)


def test_cells_by_command(monkeypatch, tmp_path, model_folder, pope):
    """Tiny model and data in the target's place; then other answers, so that the numbers must follow the files."""
    folder = tmp_path / "run"
    command = [
        "experiment=published", "target=restore_llava", "model=hf", f"model.name={model_folder}", "data=pope",
        f"data.path={pope}", "sweep.only=[ToMe_64_pope,DivPrune_64_pope,FastV_64_pope]", "device=cpu",
        "logger.mode=disabled", f"hydra.run.dir={folder}", "data.max_new_tokens=1", "resume=true",
        f"sweep.table.file={folder}/doc.md",
    ]  # fmt: skip
    code, out, err = run_main(monkeypatch, *command)
    assert code == 0, err
    rng, by_method = random.Random(5), {}
    for name, share in (("ToMe", 0.843), ("DivPrune", 0.2)):
        path = folder / f"{name}_64_pope" / "predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            wrong = {"yes": "no", "no": "yes"}[row["answers"][0]]
            row["prediction"] = row["answers"][0] if rng.random() < share else wrong
            row["dense_prediction"] = row["answers"][0] if rng.random() < 0.9 else wrong
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics = json.loads((path.parent / "metrics.json").read_text())
        metrics |= {"extra": {"f1": f1(rows, "prediction")}, "dense_extra": {"f1": f1(rows, "dense_prediction")}}
        (path.parent / "metrics.json").write_text(json.dumps(metrics))
        by_method[name] = rows
    text, record = published_table(folder, "restore_llava")
    cells = {(cell["row"], cell["benchmark"]): cell for cell in record["cells"]}
    assert set(cells) == {(row, "pope") for row in (DENSE, "ToMe 64", "DivPrune 64", "FastV 64")}
    for row, rows, key in (
        ("ToMe 64", by_method["ToMe"], "prediction"),
        ("DivPrune 64", by_method["DivPrune"], "prediction"),
    ):
        cell = cells[row, "pope"]
        assert cell["ours"] == pytest.approx(100 * f1(rows, key)) and cell["ci"][0] < cell["ours"] < cell["ci"][1]
        assert cell["covered"] == (cell["ci"][0] <= cell["published"] <= cell["ci"][1])
        low, high = slow_interval(rows)
        assert cell["ci"] == [pytest.approx(100 * low, abs=6), pytest.approx(100 * high, abs=6)]
    assert "| DivPrune 64 | pope | 85.3 |" in text and "published is above" in text and "RESTORE (ICML 2026)" in text
    assert "<!-- published:begin -->" in (folder / "doc.md").read_text() and "| dense | pope | 85.9 |" in out


def slow_interval(rows):
    """Bootstrap over images with another generator, an image drawn twice being two."""
    rng, draws = random.Random(9), []
    images = sorted({row["image_id"] for row in rows})
    for _ in range(600):
        drawn = [rng.choice(images) for _ in images]
        draws.append(f1([row for image in drawn for row in rows if row["image_id"] == image], "prediction"))
    return np.percentile(draws, [2.5, 97.5])


def test_what_did_not_run_says_why(monkeypatch, tmp_path):
    code, out, err = run_main(
        monkeypatch, "experiment=published", "target=fastv_table", "model=hf", "model.name=/no/such", "device=cpu",
        "sweep.only=[FastV_50%_gqa]", "logger.mode=disabled", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert code == 1 and "failed: job FastV_50_gqa" in err
    lines = [line for line in out.splitlines() if line.startswith(("| FastV 50 %", "| dense"))]
    assert len(lines) == 2 and all("no result: " in line for line in lines)


def test_an_unknown_target_is_named(monkeypatch, tmp_path):
    code, _, err = run_main(monkeypatch, "experiment=published", "target=fastv_tabel", f"hydra.run.dir={tmp_path}")
    assert code == 1 and "Did you mean 'fastv_table'" in err and "\n" not in err.strip()
