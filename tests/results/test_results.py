"""The table of a sweep over rows: its figures recomputed from the runs' files, claims, the markers in the document."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import numpy as np
import pytest

from commands import arguments, run_main
from prunekit.files import put_between
from prunekit.results.markdown import markdown_table
from prunekit.results.numbers import ratio, with_interval
from prunekit.results.settings import Claim, TableSettings
from prunekit.results.statistics import iou
from prunekit.results.sweep import judge, summarise
from prunekit.results.sweep_table import render


def table(model_folder, folder, *more):
    return arguments(
        model_folder, folder, "experiment=methods", "sweep.only=[fastv,random]", "keep_ratio=0.1",
        f"sweep.table.file={folder}/doc.md", "resume=true", *more,
    )  # fmt: skip


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def by_task(folder, key="correct"):
    """Mean over tasks of the share of right answers, from the lines of a run."""
    summary = defaultdict(list)
    for row in rows(folder):
        summary[row["task"]].append(row[key])
    return np.mean([np.mean(v) for v in summary.values()])


def test_figures_are_those_of_the_runs_and_finished_runs_are_read_again(monkeypatch, tmp_path, model_folder):
    folder = tmp_path / "table"
    folder.mkdir()
    begin, end = "<!-- methods:begin -->", "<!-- methods:end -->"
    (folder / "doc.md").write_text(f"# Title\n\nbefore\n\n{begin}\nold\n{end}\n\nafter\n")
    code, out, err = run_main(monkeypatch, *table(model_folder, folder))
    assert code == 0, err
    assert "4 of 4 jobs finished" in out
    # Some answers right, as an untrained model's are not: then the table must follow the files.
    seeds = [folder / "random" / f"seed_{seed}" for seed in (0, 1, 2)]
    places = {"fastv": folder / "fastv"}
    for number, place in enumerate([*seeds, *places.values()]):
        made = rows(place)
        for i, row in enumerate(made):
            row["correct"] = (i + number) % 3 == 0
        (place / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    code, out, err = run_main(monkeypatch, *table(model_folder, folder))
    assert code == 0, err
    assert "pruned:" not in err and out.count("finished before") == 4  # nothing was run again
    results = json.loads((folder / "results.json").read_text())
    cells = {c["row"]: c for c in results["cells"]}
    assert len(cells) == 2 and results["examples"] == 14
    random = np.mean([by_task(place) for place in seeds])
    for name, place in places.items():
        cell, right = cells[name], by_task(place)
        assert cell["accuracy"]["mean"] == pytest.approx(right)
        assert cell["change"]["mean"] == pytest.approx(right - by_task(place, "dense_correct"))
        assert cell["over_reference"]["mean"] == pytest.approx(right - random)
        assert cell["over_reference_ci"][0] <= cell["over_reference"]["mean"] <= cell["over_reference_ci"][1]
        assert cell["kept"] == round(0.1 * 144)
    cell = cells["random"]
    assert cell["accuracy"]["mean"] == pytest.approx(random) and cell["seeds"] == 3
    document = (folder / "doc.md").read_text()
    assert document.startswith("# Title\n\nbefore\n\n") and document.endswith("\n\nafter\n") and "old" not in document
    assert "| fastv |" in document and "random (3 seeds)" in document


def test_a_method_that_the_model_refuses_is_named_in_the_table(monkeypatch, tmp_path, model_folder):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "deep.yaml").write_text(
        "scorer: random\nfusion: single\nschedule: {name: one_shot, layer: 40}\n"
    )
    monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path / "methods"))
    words = ["sweep.only=[deep,fastv]", "keep_ratio=0.5"]
    code, out, err = run_main(monkeypatch, *table(model_folder, tmp_path / "run", *words))
    assert code == 1 and "failed: job deep: " in err
    assert "no result for `deep`" in out and "layer 40 is not in 0..5" in out and "| fastv |" in out


def made(folder, name, right, kept=(0, 1), image=lambda i: i // 2, values=None):
    """A finished run with given outcomes, written by hand."""
    folder.mkdir(parents=True)
    lines = [
        {"id": f"q{i}", "image_id": f"i{image(i)}", "task": "ab"[i % 2], "correct": bool(r), "dense_correct": True,
         "question": "?", "prediction": "", "dense_prediction": "", "kept": list(kept)} for i, r in enumerate(right)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"schema": 1, "method": {"scorer": "random"}, "examples": len(lines), "tokens_per_layer": [1.0],
               "model": "m", "data": "d", "flops_ratio": 0.5619, "flops_ratio_with_vision": None, "kv_ratio": 0.5,
               "prefill_ratio": 0.7, "prefill_ratio_includes_vision": False}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return {"folder": folder.name, "row": name, "values": values or {}, "overrides": []}


@pytest.fixture
def sweep(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.9
    jobs = [
        made(tmp_path / "0", "good", right, kept=(0, 1, 2, 3)),
        made(tmp_path / "1", "bad", rng.random(400) < 0.5, kept=(2, 3, 4, 5, 6, 7)),
        made(tmp_path / "2", "like", np.roll(right, 2)[:390], kept=(), values={"seed": "0"}),
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "jobs": jobs}))
    return tmp_path


def test_claims_are_judged_by_paired_intervals(sweep):
    claims = [
        {"text": "a", "better": "good", "worse": "bad"},
        {"text": "b", "better": "bad", "worse": "good"},
        {"text": "c", "better": "good", "worse": "like"},
        {"text": "d", "better": "bad", "worse": "dense", "margin": -0.01},
        {"text": "e", "better": "bad", "worse": "dense", "margin": -0.9},
        {"text": "f", "row": "good", "cost": "flops_ratio", "value": 0.56},
        {"text": "g", "row": "good", "cost": "flops_ratio", "value": 0.57},
        {"text": "h", "better": "good", "worse": "bad", "task": "turn 3"},
    ]
    summary = summarise(sweep, TableSettings(name="x", overlap="good", claims=claims)).record()
    verdicts = [claim["verdict"] for claim in summary["claims"]]
    assert verdicts == [
        "holds", "does not hold", "open", "does not hold", "holds", "holds", "does not hold",
        "not measured: of mean, a, b none is 'turn 3'",
    ]  # fmt: skip
    assert summary["examples"] == 390  # those that every run has
    first = summary["claims"][0]
    rows_of = {n: {r["id"]: r for r in rows(sweep / n)} for n in ("0", "1")}
    pairs = [(rows_of["0"][f"q{i}"]["correct"] - rows_of["1"][f"q{i}"]["correct"], i % 2) for i in range(390)]
    expected = np.mean([np.mean([d for d, task in pairs if task == t]) for t in (0, 1)])
    assert first["difference"] == pytest.approx(expected) and first["ci"][0] < expected < first["ci"][1]
    overlaps = {cell["row"]: cell["overlap"]["mean"] for cell in summary["cells"]}
    assert overlaps == {"good": 1.0, "bad": pytest.approx(2 / 8), "like": 0.0}


def test_what_is_swept_besides_makes_sections(tmp_path):
    jobs = []
    for number, (name, keep, seed) in enumerate(itertools.product(("a", "b"), ("0.5", "0.1"), ("0", "1"))):
        right = np.arange(40) % (4 if keep == "0.5" else 2) > 0
        jobs.append(made(tmp_path / str(number), name, right, values={"keep_ratio": keep, "seed": seed}))
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "jobs": jobs}))
    for compact in (False, True):
        settings = TableSettings(name="x", reference="a", compact=compact)
        summary = summarise(tmp_path, settings)
        recorded = summary.record()["cells"]
        cells = [(c["row"], c["section"].removeprefix("keep_ratio "), c["seeds"]) for c in recorded]
        assert cells == [("a", "0.5", 2), ("a", "0.1", 2), ("b", "0.5", 2), ("b", "0.1", 2)]
        assert all(cell["over_reference"]["mean"] == 0 for cell in recorded)
        text = render(summary, settings)
        assert ("### Keep 0.1" in text) != compact and ("| keep 0.5 | keep 0.1 |" in text) == compact
        assert "75.0 [" in text and "50.0 [" in text


def test_claims_about_rows_that_are_not_there(sweep):
    with pytest.raises(ValueError, match="Did you mean 'good'"):
        summarise(sweep, TableSettings(name="x", claims=[{"text": "a", "better": "godo", "worse": "bad"}]))
    narrowed = TableSettings(name="x", narrowed=True, claims=[{"text": "a", "better": "good", "worse": "left out"}])
    assert [judged.verdict for judged in summarise(sweep, narrowed).claims] == ["not measured"]
    gone = judge(Claim(text="a", better="good", worse="bad"), {}, {}, [], {"good", "bad"})
    assert gone.verdict == "not measured"


def test_how_numbers_and_tables_are_written():
    assert with_interval(0.123, (0.11, 0.1349)) == "12.3 [11.0, 13.5]"
    assert with_interval(0.01, [-0.0201, 0.03], signed=True, unit=" %") == "+1.0 % [-2.0, +3.0]"
    assert with_interval(0.5, None) == "50.0 [–]"
    assert with_interval(0.5, (0.25, 0.75), scale=1, digits=3) == "0.500 [0.250, 0.750]" and ratio(None) == "–"
    assert markdown_table(["", "a", "b"], [["x", "1", "2"]], align="lrl") == "| | a | b |\n|---|--:|---|\n| x | 1 | 2 |"


def test_rows_have_labels_and_the_columns_that_are_asked_for(sweep):
    """A control is compared with those before it alone; what no job measured is no column."""
    plan = json.loads((sweep / "sweep.json").read_text())
    for job, label in zip(plan["jobs"], ("Good one", "Bad one", "Like"), strict=True):
        job["label"] = label
    (sweep / "sweep.json").write_text(json.dumps(plan))
    path = sweep / "1" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "m+lora", "spread": {"on_kept": 0.25}}))
    settings = TableSettings(
        name="x", against={"good": "the good", "bad": "the bad"}, tasks=False, note="As asked.",
        columns=["accuracy", "against", "own_dense", "on_kept", "hoyer"],
    )  # fmt: skip
    text = render(summarise(sweep, settings), settings)
    assert "`m` on `d`" in text and "As asked." in text and "Costs" not in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    heads = ["", "accuracy", "against the good", "against the bad", "its own dense", "attention on what stays"]
    assert lines[0] == heads
    assert [line[0] for line in lines[2:]] == ["Good one", "Bad one", "Like"]
    assert [line[2:4].count("–") for line in lines[2:]] == [2, 1, 0]
    assert [line[5] for line in lines[2:]] == ["–", "25.0 %", "–"]


def test_iou_of_sets():
    assert iou([1, 2, 3], [2, 3, 4]) == 0.5 and iou([], []) == 1.0 and iou([1], []) == 0.0


def test_runs_of_different_data_are_not_compared(sweep):
    path = sweep / "1" / "metrics.json"
    path.write_text(path.read_text().replace('"d"', '"other"'))
    with pytest.raises(ValueError, match="differ in their data: d, other"):
        summarise(sweep, TableSettings(name="x"))


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["keep_ratio=2"], "keep_ratio"),
        (["sweep.only=[fastvv]"], "Did you mean 'fastv'"),
        (["sweep.table.order=size"], "'size'"),
        (["sweep.table.file=/dev/null/doc.md"], "'/dev/null' is no folder"),
    ],
)
def test_bad_options_of_the_table(monkeypatch, tmp_path, model_folder, words, word):
    arguments = [a for a in table(model_folder, tmp_path) if not a.startswith("sweep.only")]
    code, _, err = run_main(monkeypatch, *arguments, *(words if "only" in words[0] else [*words, "sweep.only=[fastv]"]))
    lines = err.strip().splitlines()
    assert code == 1 and word in lines[-1] and "Traceback" not in err


def test_markers_are_added_where_there_are_none(tmp_path):
    path = tmp_path / "new.md"
    put_between(path, "one", "mine")
    put_between(path, "other", "yours")
    put_between(path, "two", "mine")
    text = path.read_text()
    assert text.count("<!-- mine:begin -->") == 1 and "two" in text and "one" not in text and "other" in text


def test_questions_that_a_downsampled_image_answers_are_told_apart(tmp_path):
    """In each section by the control of the same budget alone, as plain counting has it; the control has no columns."""
    rng, jobs, right = np.random.default_rng(4), [], {}
    for row, keep in [("a", 0.5), ("a", 0.25), ("small", 0.5), ("b", 0.5), ("whole", 1.0)]:
        place = f"{row}{keep}"
        right[row, keep] = rng.random(60) < 0.6
        jobs.append(
            made(tmp_path / place, row, right[row, keep], values={} if keep == 1 else {"keep_ratio": str(keep)})
        )
        path = tmp_path / place / "metrics.json"
        method = {"scorer": "random", "keep_ratio": keep, "name": "downsample" if row == "small" else row}
        path.write_text(json.dumps({**json.loads(path.read_text()), "method": method}))
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "jobs": jobs}))
    settings = TableSettings(name="x")
    summary = summarise(tmp_path, settings)
    cells = {(c["row"], c["section"]): c for c in summary.record()["cells"]}
    asked = [(f"q{i}", "ab"[i % 2]) for i in range(60)]
    control = right["small", 0.5]
    for name, chosen in (("hard", ~control), ("easy", control)):
        for row in ("a", "b"):
            cell = cells[row, "keep_ratio 0.5"]
            of_task = [
                [right[row, 0.5][i] for i, (_, t) in enumerate(asked) if t == task and chosen[i]] for task in "ab"
            ]
            assert cell[name]["mean"] == pytest.approx(np.mean([np.mean(values) for values in of_task]))
            assert cell[f"{name}_ci"][0] <= cell[name]["mean"] <= cell[f"{name}_ci"][1]
            assert cell[f"{name}_examples"] == chosen.sum()
        assert name not in cells["small", "keep_ratio 0.5"] and name not in cells["a", "keep_ratio 0.25"]
        assert cells["small", "keep_ratio 0.5"][f"dense_{name}"]["mean"] == 1.0
    text = render(summary, settings)
    first, second = text.split("### Keep 0.25")
    assert (
        f"`small` gets {(~control).sum()} wrong (hard; dense 100.0 [100.0, 100.0]) and {control.sum()} right" in first
    )
    assert "| hard | easy |" in first and "hard" not in second


def test_both_groups_on_the_embedded_data(monkeypatch, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run_main(
        monkeypatch, "experiment=difficult", "sweep.only=[fastv,downsample]", "keep_ratio=0.25", "data.limit=14",
        "logger.mode=disabled", "device=cpu", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert code == 0, err
    cells = {c["row"]: c for c in json.loads((folder / "results.json").read_text())["cells"]}
    hard = {row["id"] for row in rows(folder / "downsample") if not row["correct"]}
    assert cells["fastv"]["hard_examples"] == len(hard) > 0 and cells["fastv"]["easy_examples"] == 14 - len(hard) > 0
    assert "| accuracy | hard | easy |" in out and f"`downsample` gets {len(hard)} wrong (hard; dense" in out
