"""Reports: figures against plain recomputation, names, escapes, bad input, and what a real sweep gives."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import defaultdict
from statistics import mean
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from commands import arguments, run_main
from fabricated import EVIL, TASKS, change, make_run, questions, spoilt
from prunekit.errors import PrunekitError
from prunekit.records.runs import find_runs
from prunekit.report.plots import overlaps
from prunekit.report.task import analyse, report
from prunekit.results import compare, tables
from prunekit.results.entries import scorer_fact
from prunekit.results.seeds import COSTS

FILES = {
    "table.md", "table.tex", "table.csv", "pareto.png", "pareto.pdf", "layers.png", "overlap.png", "kept.png",
    "report.html",
}  # fmt: skip


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 400)


def by_task(rows, value=lambda row: row["correct"]):
    """Mean over tasks, by plain counting."""
    comparison = defaultdict(list)
    for row in rows:
        comparison[row["task"]].append(float(value(row)))
    return mean(mean(v) for v in comparison.values())


def records(folder):
    return {r["label"]: r for r in csv.DictReader(io.StringIO((folder / "table.csv").read_text()))}


def sweep(folder):
    """Two budgets, three seeds of the random control, the downsampled control."""
    made = {("fastv", k): make_run(folder / f"fastv_{k}", "fastv", 0.7, keep=k) for k in (0.5, 0.25)}
    made |= {("ivtp", k): make_run(folder / f"deep/er/ivtp_{k}", "ivtp", 0.85, keep=k, layer=2) for k in (0.5, 0.25)}
    made |= {
        ("random", k, s): make_run(folder / f"random_{k}_{s}", "random", 0.5, keep=k, seed=s, scorer="random")
        for k in (0.5, 0.25)
        for s in range(3)
    }
    made["downsample", 0.5] = make_run(folder / "down", "downsample", 0.6, keep=0.5)
    return made


def test_figures_are_those_of_plain_counting(tmp_path):
    made = sweep(tmp_path / "runs")
    comparison = report(str(tmp_path / "runs"), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    got = records(tmp_path / "out")
    assert set(got) == {"dense", "downsample @ 0.5"} | {
        f"{m} @ {k}" for m in ("fastv", "ivtp", "random") for k in (0.5, 0.25)
    }
    assert comparison.reference == "random"
    hard = {row["id"] for row in made["downsample", 0.5] if not row["correct"]}
    for name in ("fastv", "ivtp"):
        for keep in (0.5, 0.25):
            row, runs = got[f"{name} @ {keep}"], made[name, keep]
            control = mean(by_task(made["random", keep, s]) for s in range(3))
            assert float(row["accuracy"]) == pytest.approx(by_task(runs))
            assert float(row["over_dense"]) == pytest.approx(by_task(runs, lambda r: r["correct"] - r["dense_correct"]))
            assert float(row["over_reference"]) == pytest.approx(by_task(runs) - control)
            assert row["reference"] == f"random @ {keep}" and row["seeds"] == "1"
            assert float(row["hard_accuracy"]) == pytest.approx(by_task([r for r in runs if r["id"] in hard]))
            assert int(row["hard_examples"]) == len(hard) and row["hard_control"] == "downsample @ 0.5"
            assert float(row["easy_accuracy"]) == pytest.approx(by_task([r for r in runs if r["id"] not in hard]))
            assert int(row["easy_examples"]) == len(runs) - len(hard)
            assert float(row["easy_low"]) <= float(row["easy_accuracy"]) <= float(row["easy_high"])
            assert float(row["kept"]) == keep * 16
            for task in TASKS:
                share = mean(float(r["correct"]) for r in runs if r["task"] == task)
                assert float(row[f"accuracy/{task}"]) == pytest.approx(share)
    drawn = got["random @ 0.25"]
    per_seed = [by_task(made["random", 0.25, s]) for s in range(3)]
    assert drawn["seeds"] == "3" and float(drawn["accuracy"]) == pytest.approx(mean(per_seed))
    assert float(drawn["seeds_low"]) < mean(per_seed) < float(drawn["seeds_high"])
    assert float(got["dense"]["accuracy"]) == pytest.approx(by_task(made["fastv", 0.5], lambda r: r["dense_correct"]))


def slow_draws(rows, other, rounds=1500, seed=5):
    """Paired bootstrap over images of a difference: a plain loop with another generator."""
    rng, images, comparison = random.Random(seed), sorted({r["image_id"] for r in rows}), []
    groups = {i: [(a, b) for a, b in zip(rows, other, strict=True) if a["image_id"] == i] for i in images}
    for _ in range(rounds):
        drawn = [pair for _ in images for pair in groups[rng.choice(images)]]
        comparison.append(by_task([a for a, _ in drawn]) - by_task([b for _, b in drawn]))
    return sorted(comparison)


def test_intervals_and_p_values_are_those_of_a_slow_bootstrap(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "RESAMPLES", 2000)
    asked = questions(30)
    a = make_run(tmp_path / "runs/a", "fastv", 0.8, asked=asked)
    b = make_run(tmp_path / "runs/b", "dart", 0.66, asked=asked)
    rows = {row.entry.label: row.over_reference for row in analyse(str(tmp_path / "runs"), "dart").rows}
    draws, comparison, dense = slow_draws(a, b), rows["fastv"], rows["dense"]
    assert comparison.interval == [pytest.approx(draws[37], abs=0.02), pytest.approx(draws[-38], abs=0.02)]
    tail = min(mean(d <= 1e-12 for d in draws), mean(d >= -1e-12 for d in draws))
    assert comparison.p == pytest.approx(2 * tail, abs=0.03)
    small, large = sorted([comparison, dense], key=lambda d: d.p)
    assert (small.adjusted, large.adjusted) == (2 * small.p, max(2 * small.p, large.p)) and rows["dart"] is None


def test_bold_is_only_what_is_significantly_best(tmp_path):
    asked = questions(40)
    good = [True] * 150 + [False] * 10
    make_run(tmp_path / "runs/a", "fastv", 0, asked=asked, correct=good)
    make_run(tmp_path / "runs/b", "dart", 0.5, asked=asked)
    make_run(tmp_path / "runs/oracle", "oracle", 0, asked=asked, correct=[True] * 160, scorer="oracle")
    comparison = analyse(str(tmp_path / "runs"))
    assert {row.entry.label for row in comparison.rows if "mean" in row.best} == {"fastv"}
    assert re.search(r"\| fastv \| 0\.5 \| \*\*9\d\.\d", tables.markdown(comparison))
    assert r"\textbf{9" in tables.latex(comparison)
    make_run(tmp_path / "runs/c", "ivtp", 0, asked=asked, correct=[True] * 149 + [False] * 11)  # nearly as good
    comparison = analyse(str(tmp_path / "runs"))
    assert not any("mean" in row.best for row in comparison.rows)
    assert "**" not in tables.markdown(comparison).split("| method | keep | colour")[0]


def test_facts_of_a_scorer_are_recorded_or_looked_up(tmp_path):
    """A scorer of somebody else's folder is not registered here: its run says what it is."""
    asked = questions(4)
    for name, recorded in {
        "theirs": {"uses_regions": True, "draws": True},
        "oracle": {},
        "random": {},
        "mine": {},
    }.items():
        make_run(tmp_path / name, name, 0.5, asked=asked, scorer=name)
        path = tmp_path / name / "metrics.json"
        change(path, method={**json.loads(path.read_text())["method"], **recorded})
    runs = {run.folder.name: run for run in find_runs(tmp_path)[0]}
    assert {name for name, run in runs.items() if scorer_fact(run, "uses_regions")} == {"theirs", "oracle"}
    assert {name for name, run in runs.items() if scorer_fact(run, "draws")} == {"theirs", "random"}


def test_overlap_is_intersection_over_union(tmp_path):
    made = [make_run(tmp_path / "runs" / n, n, 0.7, keep=k) for n, k in (("a", 0.5), ("b", 0.25))]
    comparison = analyse(str(tmp_path / "runs"))
    entries = [row.entry for row in comparison.rows if row.entry.runs]
    got = overlaps(entries, [q.id for q in comparison.questions])
    expected = mean(
        len(set(x["kept"]) & set(y["kept"])) / len(set(x["kept"]) | set(y["kept"])) for x, y in zip(*made, strict=True)
    )
    assert got[0, 1] == got[1, 0] == pytest.approx(expected) and np.all(np.diag(got) == 1)


def test_names_tell_entries_apart(tmp_path):
    runs = tmp_path / "runs"
    make_run(runs / "0", None, 0.7, scorer="instruction")
    make_run(runs / "1", None, 0.7, scorer="visual")
    make_run(runs / "2", "fastv", 0.7, layer=1)
    make_run(runs / "3", "fastv", 0.7, layer=2)
    make_run(runs / "4", "dart", 0.7)
    make_run(runs / "5", "dart", 0.7, colour="red")
    make_run(runs / "6", "ivtp", 0.7)
    make_run(runs / "10", "ivtp", 0.7)  # the same again
    comparison = analyse(str(runs))
    assert {row.entry.label for row in comparison.rows} == {
        "dense", "instruction", "visual", "fastv schedule.layer=1", "fastv schedule.layer=2", "ivtp",
        "dart schedule.colour=None", "dart schedule.colour=red",
    }  # fmt: skip
    assert comparison.notes == [f"'{runs}/10' repeats '{runs}/6', which counts"]


def test_rows_of_a_table_have_the_names_of_its_plan(tmp_path):
    """The same method answers with its own and with another question's tokens: the plan alone tells the two apart."""
    runs = tmp_path / "runs"
    own = make_run(runs / "table/own", "ivtp", 0.8)
    other = make_run(runs / "table/other/seed_0", "ivtp", 0.5, seed=0)
    make_run(runs / "table/other/seed_1", "ivtp", 0.5, seed=1)
    make_run(runs / "table/dense", "ivtp", 0.9, keep=1.0)
    rows = {"own": "own", "other/seed_0": "other", "other/seed_1": "other", "dense": "dense"}
    plan = {"schema": 1, "jobs": [{"folder": folder, "row": row} for folder, row in rows.items()]}
    (runs / "table" / "sweep.json").write_text(json.dumps(plan))
    comparison = {row.entry.label: row for row in analyse(str(runs), "other").rows}
    assert comparison.keys() == {"dense", "own", "other"} and comparison["other"].seeds == 2
    assert comparison["own"].accuracy["mean"] == pytest.approx(by_task(own)) and by_task(own) != by_task(other)
    assert comparison["dense"].entry.runs == [] and comparison["own"].over_reference.other == "other"
    assert {row.entry.label for row in analyse(str(runs / "table/dense")).rows} == {"dense", "dense @ 1"}


def test_rows_of_a_larger_run_behind_those_of_this_one_do_not_count(tmp_path):
    made = make_run(tmp_path / "runs/0", "fastv", 0.7)
    change(tmp_path / "runs/0/metrics.json", examples=20)
    comparison = analyse(str(tmp_path / "runs"))
    assert [q.id for q in comparison.questions] == [row["id"] for row in made[:20]]


def test_without_a_record_there_is_no_picture_and_the_report_says_so(tmp_path):
    make_run(tmp_path / "runs/0", "fastv", 0.7, pictures=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept.png").write_text("of an older report")
    comparison = report(str(tmp_path / "runs"), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES - {"kept.png"}
    assert "no kept.png" in comparison.notes[0] and "no kept.png" in (tmp_path / "out/report.html").read_text()


def test_texts_are_escaped_in_every_file(tmp_path):
    make_run(tmp_path / "runs/a", EVIL, 0.7, asked=questions(6, EVIL), data=EVIL)
    make_run(tmp_path / "runs/b", "fastv", 0.6, asked=questions(6, EVIL), data=EVIL)
    report(str(tmp_path / "runs"), tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert "<script>window" not in page and "<img" not in page and page.count("<script") == 2
    for line in (tmp_path / "out/table.md").read_text().splitlines():
        assert "<" not in line
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (11, 5)
    tex = (tmp_path / "out/table.tex").read_text().split("\\begin", 1)[1]
    assert not re.search(r"(?<!\\)[%$#_]", tex.replace(r"$\cdot$", "").replace("$-$", ""))
    assert tables.escape_latex("a_b & 50% {x} \\y") == r"a\_b \& 50\% \{x\} \textbackslash{}y"


def test_questions_about_one_image_have_neither_interval_nor_p_value(tmp_path):
    for name in ("fastv", "random"):
        make_run(tmp_path / "runs" / name, name, 0.7, asked=questions(1))
    report(str(tmp_path / "runs"), tmp_path / "out")
    row = records(tmp_path / "out")["fastv"]
    empty = ("accuracy_low", "over_dense_low", "over_reference_high", "p", "p_holm")
    assert float(row["accuracy"]) >= 0 and {row[name] for name in empty} == {""}
    assert "[–]" in (tmp_path / "out/table.md").read_text()
    assert "NaN" not in (tmp_path / "out/report.html").read_text()


def test_the_page_asks_nothing_of_any_server(tmp_path):
    make_run(tmp_path / "runs/a", "fastv", 0.7)
    report(str(tmp_path / "runs"), tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|<link|\bsrc=|url\(", page)
    assert "default-src 'none'" in page


def test_the_plots_of_the_page_are_the_files_figures_reduced_to_shapes(tmp_path):
    """No text, style, link or script in them, and each row's point under its number in the table."""
    sweep(tmp_path / "runs")
    comparison = report(str(tmp_path / "runs"), tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    figures = {
        name: ElementTree.fromstring(svg)
        for name, svg in re.findall(r'<template id="figure-(\w+)">(.*?)</template>', page, re.DOTALL)
    }
    assert list(figures) == [*COSTS, "layers"]
    for name, root in figures.items():
        assert {node.tag for node in root.iter()} == {"svg", "g", "defs", "path", "use"} | (
            set() if name == "layers" else {"circle"}
        )
        assert not any((node.text or "").strip() or (node.tail or "").strip() for node in root.iter())
        names = {key for node in root.iter() for key in node.attrib}
        assert not names & {"style", "class"} and not [key for key in names if key.startswith("on")]
        defined = {node.get("id") for node in root.iter()} - {None}
        assert all(node.get("href")[1:] in defined and node.get("href")[0] == "#" for node in root.iter("use"))
        assert all(one.startswith(f"{name}-") for one in defined)
    for cost in COSTS:
        points = [group.get("data-row") for group in figures[cost] if group.find("circle") is not None]
        shown = comparison.rows
        known = [str(n) for n, row in enumerate(shown) if row.entry.costs[cost] is not None or not row.entry.runs]
        assert sorted(points, key=int) == known
    curves = " ".join(node.get("data-row") for node in figures["layers"].iter() if node.get("data-row")).split()
    assert sorted(curves, key=int) == [str(number) for number in range(len(comparison.rows))]


def empty(runs):
    runs.mkdir()


def half_written(runs):
    make_run(runs / "0", "fastv", 0.7)
    (runs / "0" / "metrics.json").unlink()


def cut_off(runs):
    make_run(runs / "0", "fastv", 0.7)
    path = runs / "0" / "predictions.jsonl"
    path.write_text(path.read_text()[:-30])


def lines_missing(runs):
    make_run(runs / "0", "fastv", 0.7)
    path = runs / "0" / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))


def broken_metrics(runs):
    make_run(runs / "0", "fastv", 0.7)
    (runs / "0" / "metrics.json").write_text('{"schema": 1,')


def other_schema(runs):
    make_run(runs / "0", "fastv", 0.7)
    change(runs / "0" / "metrics.json", schema=2)


def lacks_a_key(runs):
    make_run(runs / "0", "fastv", 0.7)
    path = runs / "0" / "metrics.json"
    path.write_text(path.read_text().replace('"kv_ratio"', '"kv"'))


def odd_plan(runs):
    make_run(runs / "0", "fastv", 0.7)
    (runs / "sweep.json").write_text('{"jobs": 3}')


def mixed_data(runs):
    make_run(runs / "0", "fastv", 0.7)
    make_run(runs / "1", "fastv", 0.7, data="gqa/testdev")


def mixed_models(runs):
    make_run(runs / "0", "fastv", 0.7)
    make_run(runs / "1", "fastv", 0.7, model="other")


def mixed_limits(runs):
    make_run(runs / "0", "fastv", 0.7)
    make_run(runs / "1", "dart", 0.7, asked=questions(5))


def failed(runs):
    (runs / "0").mkdir(parents=True)
    (runs / "0" / "error.txt").write_text("scorer=instruction: layer 99 is not in 0..5\n")


def broken_record(runs):
    make_run(runs / "0", "fastv", 0.7)
    (runs / "0" / "kept.npz").write_bytes(b"PK not a zip")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda runs: None, ["no such folder"]),
        (empty, ["no finished run"]),
        (half_written, ["no finished run", "half-written", "/0'"]),
        (cut_off, ["half-written", "line 48"]),
        (lines_missing, ["half-written", "10 of 48"]),
        (broken_metrics, ["metrics.json' cannot be read"]),
        (other_schema, ["schema 2", "reads 1"]),
        (lacks_a_key, ["no 'kv_ratio'"]),
        (spoilt("metrics.json", method={}), ["metrics.json'", "no 'scorer'"]),
        (spoilt("metrics.json", tokens_per_layer=None), ["metrics.json'", "must be a list"]),
        (spoilt("metrics.json", prefill_ratio=float("nan")), ["'prefill_ratio' must be a number, not nan"]),
        (spoilt("predictions.jsonl", kept=None), ["predictions.jsonl'", "'kept' must be a list", "line 1"]),
        (spoilt("predictions.jsonl", kept=[[1]]), ["'kept' must list numbers"]),
        (spoilt("predictions.jsonl", answers=3), ["'answers' must be a list, not 3"]),
        (spoilt("predictions.jsonl", id=[1]), ["line 1 is no prediction"]),
        (odd_plan, ["sweep.json'", "list of mappings"]),
        (mixed_data, ["'mini/test'", "'gqa/testdev'"]),
        (mixed_models, ["one model", "'other'"]),
        (mixed_limits, ["48 in", "20 in"]),
        (failed, ["no finished run", "layer 99"]),
        (broken_record, ["kept.npz' cannot be read"]),
    ],
)
def test_bad_runs_end_in_one_line_and_nothing_is_written(tmp_path, make, words):
    make(tmp_path / "runs")
    out = tmp_path / "out"
    out.mkdir()
    (out / "table.md").write_text("of before")
    with pytest.raises(PrunekitError) as caught:
        report(str(tmp_path / "runs"), out)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert [p.name for p in out.iterdir()] == ["table.md"] and (out / "table.md").read_text() == "of before"


def test_what_is_unfinished_is_named_and_the_rest_reported(tmp_path):
    make_run(tmp_path / "runs/0", "fastv", 0.7)
    half_written(tmp_path / "runs/sub")
    (tmp_path / "runs/1").mkdir()
    (tmp_path / "runs/1/error.txt").write_text("scorer=x: no\n")
    comparison = analyse(str(tmp_path / "runs"))
    assert len(comparison.notes) == 2
    assert any("half-written" in n for n in comparison.notes) and any(
        "failed: scorer=x: no" in n for n in comparison.notes
    )


def test_unusable_examples_are_left_out_of_all_runs(tmp_path):
    make_run(tmp_path / "runs/0", "fastv", 0.7)
    make_run(tmp_path / "runs/1", "dart", 0.7)
    path = tmp_path / "runs/1/predictions.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({"id": json.loads(first)["id"], "error": "no such image"}), *rest]))
    comparison = analyse(str(tmp_path / "runs"))
    assert len(comparison.questions) == 47 and "1 of 48 examples could not be used" in comparison.notes[0]


def test_a_run_folder_and_a_file_are_no_places_for_a_report(tmp_path):
    make_run(tmp_path / "runs/0", "fastv", 0.7)
    before = sorted(p.name for p in (tmp_path / "runs/0").iterdir())
    with pytest.raises(PrunekitError, match="is a run"):
        report(str(tmp_path / "runs"), tmp_path / "runs/0")
    assert sorted(p.name for p in (tmp_path / "runs/0").iterdir()) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunekitError, match="cannot be written"):
        report(str(tmp_path / "runs"), tmp_path / "file/out")
    with pytest.raises(PrunekitError, match=r"report\.runs=DIR"):
        report(None, tmp_path / "out")
    with pytest.raises(PrunekitError, match="Did you mean 'fastv'"):
        report(str(tmp_path / "runs"), tmp_path / "out", reference="fastvv")
    assert not (tmp_path / "out").exists()


def test_a_sweep_on_the_command_line_and_its_report(monkeypatch, tmp_path, model_folder):
    """Three real runs of an untrained model; then the report from the same command line, and its bad input."""
    fixed = [a for a in arguments(model_folder, tmp_path / "unused") if not a.startswith("hydra.run.dir")]
    words = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "method=fastv,random,downsample"]
    code, _, err = run_main(monkeypatch, "-m", *fixed, *words)
    assert code == 0, err
    out = tmp_path / "report"
    tail = [f"hydra.run.dir={out}", "logger.mode=disabled"]
    code, shown, err = run_main(monkeypatch, "task=report", f"report.runs={tmp_path / 'sweep'}", *tail)
    assert code == 0, err
    assert {p.name for p in out.iterdir()} >= FILES and "downsample" in shown and "pareto.png" in shown
    for name in ("pareto.png", "layers.png", "overlap.png", "kept.png"):
        assert min(Image.open(out / name).size) > 400
    payload = re.search(r'id="data">(.*?)</script>', (out / "report.html").read_text(), re.DOTALL)
    data = json.loads(payload.group(1))
    assert len(data["rows"]) == 4 and data["examples"] and data["rows"][0]["label"] == "dense"
    fastv = next(p for p in data["examples"][0]["panels"] if p["label"] == "fastv")
    assert fastv["cuts"][-1]["kept"].count("1") == 72 and len(fastv["cuts"][-1]["heat"]) == 288
    rows = [json.loads(line) for line in (tmp_path / "sweep/0/predictions.jsonl").read_text().splitlines()]
    kept = {row["id"]: row["kept"] for row in rows}
    for example in data["examples"]:  # what was recorded is what was answered with
        panel = next(p for p in example["panels"] if p["label"] == "fastv")
        assert [i for i, bit in enumerate(panel["cuts"][-1]["kept"]) if bit == "1"] == kept[example["id"]]
    before = {p: p.read_bytes() for p in (tmp_path / "sweep/0").rglob("*") if p.is_file()}
    place = f"hydra.run.dir={tmp_path / 'sweep/0'}"
    code, _, err = run_main(monkeypatch, "task=report", f"report.runs={tmp_path / 'sweep'}", place)
    assert code == 1 and "is a run" in err and len(err.strip().splitlines()) == 1
    assert {p: p.read_bytes() for p in (tmp_path / "sweep/0").rglob("*") if p.is_file()} == before
    for bad, word in (
        (["report.runs=/no/such"], "/no/such"),
        ([f"report.runs={tmp_path / 'sweep'}", "report.reference=fastvv"], "fastv'"),
    ):
        code, _, err = run_main(monkeypatch, "task=report", *bad, *tail)
        assert code == 1 and word in err and len(err.strip().splitlines()) == 1
