"""The presets about videos on rows of their benchmarks' own form: prompt, answers, where the video lies, metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import folders
from commands import run_main
from films import number, write_film
from paths import ROOT
from prunekit.data.benchmarks import BENCHMARKS, MVBENCH
from prunekit.data.source import defaults, open_source
from prunekit.metrics import metric

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")
pytest.importorskip("datasets")

LETTER = "Answer with the option's letter from the given choices directly."
SUBTITLES = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.\n"
)
FIVE = {"a0": "run", "a1": "sit", "a2": "eat", "a3": "cry", "a4": "sing"}

ROWS: dict[str, tuple[dict[str, Any], str, str, tuple[str, str, str]]] = {
    # name: row, file of the video, question, (answer, id, task)
    "videomme": (
        {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Humanity & History",
         "url": "https://www.youtube.com/watch?v=fFjv93ACGo8", "videoID": "fFjv93ACGo8", "question_id": "001-1",
         "task_type": "Counting Problem", "question": "Which color?", "answer": "C",
         "options": ["A. Red.", "B. Blue.", "C. C. D.", "D. No."]},
        "fFjv93ACGo8.mp4",
        SUBTITLES + "Which color?\nA. Red.\nB. Blue.\nC. C. D.\nD. No.\n\n" + LETTER, ("C", "001-1", "short"),
    ),
    "mvbench": (
        {"video": "T3.mp4", "question": "What happened after?", "candidates": ["Ate.", "Sat."], "answer": "Sat.",
         "task_type": "action_sequence"},
        "star/Charades_segment/T3.mp4",
        "Question:What happened after?\nOption:\n(A) Ate.\n(B) Sat.\nOnly give the best option.\n",
        ("B", "1", "action_sequence"),
    ),
    "mlvu": (
        {"video_name": "needle_1.mp4", "duration": 467.98, "question": "What color?\n(A) Yellow\n(B) Red",
         "answer": "A", "candidates": ["Yellow", "Red"], "task_type": "plotQA"},
        "needle_1.mp4",
        "What color?\n(A) Yellow\n(B) Red\nOnly give the best option.\nBest option: (", ("A", "1", "plotQA"),
    ),
    "longvideobench": (
        {"video_id": "86C", "question": "On the screen?", "correct_choice": 2, "id": "86C_0", "video_path": "86C.mkv",
         "duration_group": 15, "question_category": "TOS", "duration": 12.0, "subtitle_path": "86C_en.json",
         "option0": "a", "option1": "b", "option2": "c", "option3": "d", "option4": "N/A"},
        "86C.mkv", f"On the screen?\nA. a\nB. b\nC. c\nD. d\n{LETTER}\n", ("C", "15 s#86C_0", "longvideobench"),
    ),
    "egoschema": (
        {"question_idx": "3", "question": "What does C do?", "video_idx": "001934bb",
         "option": ["A. c cooks.", "B. c runs.", "C. c reads.", "D. c eats.", "E. c sits."], "answer": "4"},
        "001934bb.mp4",
        f"What does C do?\nA. c cooks.\nB. c runs.\nC. c reads.\nD. c eats.\nE. c sits.\n{LETTER}",
        ("E", "3", "egoschema"),
    ),
    "nextqa": (
        {"video": 4010069381, "frame_count": 369, "width": 640, "height": 480, "question": "how do they react",
         "answer": 1, "qid": 6, "type": "CH", **FIVE},
        "4010069381.mp4", "how do they react\nA. run\nB. sit\nC. eat\nD. cry\nE. sing",
        ("B", "CH#4010069381/6", "nextqa"),
    ),
    "activitynetqa": (
        {"video_name": "1QIUV7WYKXg", "question_id": "v_1_5", "question": "is the athlete outdoors",
         "answer": "yes", "type": "3"},
        "v_1QIUV7WYKXg.webm", "Is the athlete outdoors? Answer the question using a single word or phrase.",
        ("yes", "v_1_5", "activitynetqa"),
    ),
}  # fmt: skip


def opened(name: str, folder: Path, *rows: dict[str, Any], **options: Any):
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "rows.parquet")
    return open_source({"name": name, "path": str(folder / "rows.parquet"), **options})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return folders.save("llava_onevision", tmp_path_factory.mktemp("llava_onevision"))


def test_every_benchmark_about_videos_has_a_row_here():
    assert ROWS.keys() == {name for name, benchmark in BENCHMARKS.items() if benchmark.video}


@pytest.mark.parametrize("name", ROWS)
def test_a_presets_row(name, tmp_path):
    row, file, question, (answer, own_id, task) = ROWS[name]
    write_film(tmp_path / "videos" / file, 20)
    source = opened(name, tmp_path, row, videos=str(tmp_path / "videos"), frames=4)
    (example,) = source
    assert not example.error, example.error
    assert (example.question, example.answers, example.id, example.task) == (question, (answer,), own_id, task)
    assert [number(frame) for frame in example.clip().frames] == [0, 6, 13, 19]
    assert example.media == ("video",) and example.images() == []
    score = metric(source.metric).score
    assert score(answer, example) == 1 and score("zebra", example) == 0
    if example.choices:
        assert score(f"({answer}) {example.choices['ABCDE'.index(answer)]}", example) == 1


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_through_the_command(name, monkeypatch, tmp_path, model):
    """Two rows of a form; the second's video is missing, and the run goes on without it."""
    row, file, question, (answer, own_id, task) = ROWS[name]
    write_film(tmp_path / "videos" / file, 8)
    key = next(key for key in ("videoID", "video_idx", "video_name", "video_path", "video") if key in row)
    own = next((key for key in ("question_id", "id", "question_idx", "qid") if key in row), None)
    other = {**row, key: 7 if name == "nextqa" else "missing", **({own: 9 if own == "qid" else "9"} if own else {})}
    pq.write_table(pa.Table.from_pylist([row, other]), tmp_path / "rows.parquet")
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={model}", f"data={name}", f"data.path={tmp_path / 'rows.parquet'}",
        f"data.videos={tmp_path / 'videos'}", "data.frames=3", "data.max_new_tokens=2", "logger.mode=disabled",
        "device=cpu", "schedule=one_shot", "schedule.layer=2", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["examples"] == 1 and metrics["errors"] == 1 and metrics["metric"] == defaults(name)["metric"]
    assert set(metrics["accuracy"]) == {"mean", task} and metrics["data"] == f"{name}/{defaults(name)['split']}"
    good, bad = sorted(map(json.loads, (tmp_path / "run" / "predictions.jsonl").open()), key=lambda row: "error" in row)
    assert good["question"] == question and good["id"] == own_id and good["answers"] == [answer]
    assert len(good["kept"]) == round(0.5 * (3 * 1 + 1))  # three frames of one pooled token, and the newline
    assert "No such file" in bad["error"] and ("missing" in bad["error"] or "/7'" in bad["error"])
    if defaults(name)["metric"] == "choice_groups":
        assert metrics["extra"].keys() == {f"accuracy/{own_id.partition('#')[0]}"}


@pytest.mark.parametrize("name", ROWS)
def test_what_a_preset_needs_is_said_when_it_is_missing(name, tmp_path):
    row, *_ = ROWS[name]
    for column in BENCHMARKS[name].needs:
        with pytest.raises(ValueError, match=rf"rows\.parquet: no column '{column}'"):
            opened(name, tmp_path, {key: value for key, value in row.items() if key != column})


@pytest.mark.parametrize("name", ROWS)
def test_values_of_another_kind_are_errors_of_their_row(name, tmp_path):
    """Each column of a row in turn holds a value that it should not: an example or an error, never an exception."""
    row, *_ = ROWS[name]
    for column in BENCHMARKS[name].columns:
        for value in (-5, None, 1.5, ["x"]):
            (example,) = opened(name, tmp_path, {**row, column: value})
            assert example.question or example.error.startswith(f"{tmp_path / 'rows.parquet'} row 1: "), (column, value)


def test_the_options_of_mlvu_may_stand_in_the_question_alone(tmp_path):
    row, _, question, _ = ROWS["mlvu"]
    (example,) = opened("mlvu", tmp_path, {key: value for key, value in row.items() if key != "candidates"})
    assert example.question == question and example.choices == ("Yellow", "Red")


def test_mvbench_is_all_its_tasks_unless_one_is_named(tmp_path):
    """A local copy of the repository: one configuration a task; the column that names the task stands in none."""
    copy, readme = tmp_path / "MVBench", ["---", "configs:"]
    copy.mkdir()
    row, *_ = ROWS["mvbench"]
    for task in MVBENCH:
        rows = [{**row, "question": f"{task} {number}?"} for number in range(2)]
        (copy / f"{task}.json").write_text(json.dumps([{k: v for k, v in r.items() if k != "task_type"} for r in rows]))
        readme += [f"- config_name: {task}", "  data_files:", "  - split: train", f"    path: {task}.json"]
    (copy / "README.md").write_text("\n".join([*readme, "---", ""]))
    options = {"name": "mvbench", "path": str(copy)}
    examples = list(open_source(options))
    assert [example.task for example in examples] == [task for task in MVBENCH for _ in range(2)]
    assert not any(example.error for example in examples) and len({example.id for example in examples}) == 40
    assert f"Question:{examples[-1].task} 1?" in examples[-1].question
    (only, _) = open_source({**options, "config": "moving_count"})
    assert only.task == "moving_count" and "clevrer/video_validation" in only.image_id
    with pytest.raises(ValueError, match="moving_cout"):
        open_source({**options, "config": "moving_cout"})


@pytest.mark.parametrize("name", ROWS)
def test_the_page_says_what_the_preset_does(name):
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 6]
    options = defaults(name)
    assert options["path"] in line and f", {options['split']}" in line and f"`{options['metric']}`" in line
    assert options["config"] is None or f"({options['config']})" in line
