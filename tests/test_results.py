"""The table of methods: its figures recomputed from the runs' files, resumption, the markers in the document."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
from test_cli import arguments, model_folder, run_main  # noqa: F401  (a fixture)

from prunekit.evaluation.results import BEGIN, END, put_between


def table(model_folder, run_dir, *more):  # noqa: F811
    return arguments(
        model_folder, run_dir, "experiment=methods", "table.methods=[fastv,random,pyramiddrop]", "table.keep=[0.5,0.1]",
        "table.seeds=2", f"table.file={run_dir}/doc.md", "resume=true", *more,
    )  # fmt: skip


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def by_task(folder, key="correct"):
    """Mean over tasks of the share of right answers, from the lines of a run."""
    found = defaultdict(list)
    for row in rows(folder):
        found[row["task"]].append(row[key])
    return np.mean([np.mean(v) for v in found.values()])


def test_figures_are_those_of_the_runs_and_finished_runs_are_read_again(monkeypatch, tmp_path, model_folder):  # noqa: F811
    run_dir = tmp_path / "table"
    run_dir.mkdir()
    (run_dir / "doc.md").write_text(f"# Title\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    code, _, err = run_main(monkeypatch, *table(model_folder, run_dir))
    assert code == 0, err
    # Some answers right, as an untrained model's are not: then the table must follow the files.
    for name, seeds in (("fastv", 1), ("random", 2), ("pyramiddrop", 1)):
        for seed in range(seeds):
            path = run_dir / name / "keep_0.1" / f"seed_{seed}" / "predictions.jsonl"
            made = rows(path.parent)
            for i, row in enumerate(made):
                row["correct"] = (i + seed + len(name)) % 3 == 0
            path.write_text("".join(json.dumps(row) + "\n" for row in made))
    code, _, err = run_main(monkeypatch, *table(model_folder, run_dir))
    assert code == 0, err
    assert "pruned:" not in err  # nothing was run again
    results = json.loads((run_dir / "results.json").read_text())
    cells = {(c["method"], c["keep_ratio"]): c for c in results["cells"]}
    assert len(cells) == 6 and results["examples"] == 14
    random = np.mean([by_task(run_dir / "random" / "keep_0.1" / f"seed_{s}") for s in (0, 1)])
    dense = by_task(run_dir / "fastv" / "keep_0.1" / "seed_0", "dense_correct")
    for name in ("fastv", "pyramiddrop"):
        cell, right = cells[name, 0.1], by_task(run_dir / name / "keep_0.1" / "seed_0")
        assert cell["accuracy"]["mean"] == pytest.approx(right)
        assert cell["change"]["mean"] == pytest.approx(right - dense)
        assert cell["over_random"]["mean"] == pytest.approx(right - random)
        assert cell["over_random_ci"][0] <= cell["over_random"]["mean"] <= cell["over_random_ci"][1]
        assert cell["kept"] == round(0.1 * 144)
    assert cells["random", 0.1]["accuracy"]["mean"] == pytest.approx(random) and cells["random", 0.1]["seeds"] == 2
    document = (run_dir / "doc.md").read_text()
    assert document.startswith("# Title\n\nbefore\n\n") and document.endswith("\n\nafter\n") and "old" not in document
    assert "| pyramiddrop |" in document and "### Keep 0.1" in document and "random (2 seeds)" in document


def test_a_method_that_the_model_refuses_is_named_in_the_table(monkeypatch, tmp_path, model_folder):  # noqa: F811
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "deep.yaml").write_text(
        "scorer: random\nfusion: single\nschedule: {name: one_shot, layer: 40}\n"
    )
    monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path / "methods"))
    words = ["table.methods=[deep]", "table.keep=[0.5]", "table.seeds=1"]
    code, out, err = run_main(monkeypatch, *table(model_folder, tmp_path / "run", *words))
    assert code == 0, err
    assert "`deep` is refused: schedule: layer 40 is not in 0..5" in out


@pytest.mark.parametrize(
    ("words", "word"), [(["table.keep=[2]"], "table.keep"), (["table.methods=[fastvv]"], "Did you mean 'fastv'")]
)
def test_bad_options_of_the_table(monkeypatch, tmp_path, model_folder, words, word):  # noqa: F811
    code, _, err = run_main(monkeypatch, *table(model_folder, tmp_path, *words))
    assert code == 1 and word in err and len(err.strip().splitlines()) == 1


def test_markers_are_added_where_there_are_none(tmp_path):
    path = tmp_path / "new.md"
    put_between(path, "one")
    put_between(path, "two")
    assert path.read_text().count(BEGIN) == 1 and "two" in path.read_text() and "one" not in path.read_text()
