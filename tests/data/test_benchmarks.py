"""The presets on rows of their benchmarks' own form: prompt, answers, metric; from Parquet, a local copy of a hub's
repository, and save_to_disk."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from commands import run_main
from fabricated import png
from paths import ROOT
from prunekit.data.benchmarks import BENCHMARKS
from prunekit.data.source import Source, open_source
from prunekit.metrics import METRICS, metric
from prunekit.run.config_store import register_options
from prunekit.run.words import CONF

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
IMAGE = {"bytes": png(), "path": "a.png"}
TEN = ["Red"] * 3 + ["blue"] * 7


@functools.cache
def preset(name: str) -> dict[str, Any]:
    """The options that ``data=name`` composes to."""
    register_options()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"data={name}"])
    return OmegaConf.to_container(config)["data"]


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


ROWS: dict[str, tuple[dict[str, Any], str, tuple[str, ...], str]] = {
    "gqa": (
        {"id": "20", "imageId": "n1", "image": IMAGE, "question": "Is it red?", "answer": "yes", "fullAnswer": "Yes."},
        "Is it red?" + SHORT, ("yes",), "20",
    ),
    "vqav2": (
        {"question_id": 7, "image": IMAGE, "question": "What color?", "question_type": "what color",
         "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(TEN)]},
        "What color?" + SHORT, tuple(TEN), "7",
    ),
    "textvqa": (
        {"question_id": 34602, "image": IMAGE, "question": "what brand?", "answers": TEN, "ocr_tokens": ["RED", "CO."]},
        "what brand?" + SHORT, tuple(TEN), "34602",
    ),
    "textvqa_ocr": (
        {"question_id": 34602, "image": IMAGE, "question": "what brand?", "answers": TEN, "ocr_tokens": ["RED", "CO."]},
        "what brand?\nReference OCR token: RED, CO." + SHORT, tuple(TEN), "34602",
    ),
    "pope": (
        {"id": "0", "question_id": "1", "question": "Is there a dog?", "answer": "no", "image_source": "COCO_1",
         "image": IMAGE, "category": "adversarial"},
        "Is there a dog?" + SHORT, ("no",), "1#1",
    ),
    "mmbench": (
        {"index": 2000031, "question": "Which?", "hint": "Look well.", "answer": "B", "A": "cat", "B": "dog",
         "C": "nan", "D": None, "category": "c", "image": IMAGE, "source": "s", "comment": "nan", "split": "dev"},
        "Look well.\nWhich?\nA. cat\nB. dog" + LETTER, ("B",), "31#2000031",
    ),
    "mme": (
        {"question_id": "count/1.png", "image": IMAGE, "question": "Are there two? Please answer yes or no.",
         "answer": "Yes", "category": "count"},
        "Are there two?" + SHORT, ("Yes",), "count/1.png#1",
    ),
    "scienceqa": (
        {"image": IMAGE, "question": "Which state?", "choices": ["Ohio", "Utah"], "answer": 1, "hint": "Read the map.",
         "task": "closed choice", "lecture": "", "solution": ""},
        "Context: Read the map.\nWhich state?\nA. Ohio\nB. Utah" + LETTER, ("B",), "1",
    ),
    "vizwiz": (
        {"question_id": "VizWiz_val_1.jpg", "image": IMAGE, "question": "What is it?", "answers": TEN},
        "What is it?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT, tuple(TEN),
        "VizWiz_val_1.jpg",
    ),
    "chartqa": (
        {"type": "human_test", "question": "How many?", "answer": "14", "image": IMAGE},
        "How many?\nAnswer the question with a single word.", ("14",), "1",
    ),
    "docvqa": (
        {"questionId": "337", "question": "Who?", "question_types": ["form"], "image": IMAGE, "docId": 1,
         "answers": ["Mr. X", "X"], "data_split": "val"},
        "Who?" + SHORT, ("Mr. X", "X"), "337",
    ),
    "seed": (
        {"answer": "C", "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4", "data_type": "image",
         "question": "How many?", "question_id": "9", "question_type_id": 5, "image": [IMAGE], "segment": None},
        "How many?\nA. 1\nB. 2\nC. 3\nD. 4" + LETTER, ("C",), "instance counting#9",
    ),
}  # fmt: skip
TASKS = {"pope": "adversarial", "mme": "count", "chartqa": "human"}


def test_every_benchmark_has_a_preset_and_a_row_here():
    files = {path.stem for path in (CONF / "data").glob("*.yaml")}
    assert files == {*BENCHMARKS, "mini", "jsonl", "parquet", "hf"}
    assert ROWS.keys() == {name for name, benchmark in BENCHMARKS.items() if not benchmark.video}


@pytest.mark.parametrize("name", ROWS)
def test_a_presets_row(name, tmp_path):
    row, question, answers, own_id = ROWS[name]
    options = preset(name)
    assert options["name"] == name and options["path"].startswith("lmms-lab/") and options["metric"] in METRICS
    found = open_source({**options, "path": str(parquet(tmp_path / "rows.parquet", row))})
    (example,) = found
    assert not example.error, example.error
    assert (example.question, example.answers, example.id) == (question, answers, own_id)
    assert example.task == TASKS.get(name, name) and example.image().size == (8, 6)
    perfect = "blue" if answers == tuple(TEN) else answers[0]
    assert metric(found.metric).score(perfect, example) == 1 and metric(found.metric).score("zebra", example) == 0


@pytest.mark.parametrize("name", ROWS)
def test_what_a_preset_needs_is_said_when_it_is_missing(name, tmp_path):
    row, *_ = ROWS[name]
    options = preset(name)
    for column in (*BENCHMARKS[name].needs, "image"):
        path = parquet(tmp_path / "rows.parquet", {key: value for key, value in row.items() if key != column})
        with pytest.raises(ValueError, match=rf"rows\.parquet: no column '{column}'"):
            open_source({**options, "path": str(path)})


@pytest.mark.parametrize("name", ROWS)
def test_values_of_another_kind_are_errors_of_their_row(name, tmp_path):
    """Each column of a row in turn holds a number that it should not: an example or an error, never an exception."""
    row, *_ = ROWS[name]
    for column in BENCHMARKS[name].columns:
        for value in (-5, None, 1.5):
            path = parquet(tmp_path / "rows.parquet", {**row, column: value})
            try:
                (example,) = open_source({**preset(name), "path": str(path)})
            except ValueError as error:  # what the row now says leaves it out
                assert str(error) == f"{path}: no rows" and name in ("scienceqa", "seed")
            else:
                assert example.question or example.error.startswith(f"{path} row 1: ")


def test_questions_that_do_not_count_are_left_out(tmp_path):
    seed, *_ = ROWS["seed"]
    path = parquet(tmp_path / "seed.parquet", {**seed, "data_type": "video"}, seed, {**seed, "data_type": "video"})
    assert [e.id for e in open_source({**preset("seed"), "path": str(path), "limit": 1})] == ["instance counting#9"]
    science, *_ = ROWS["scienceqa"]
    path = parquet(tmp_path / "science.parquet", {**science, "image": None}, {**science, "hint": ""})
    (found,) = open_source({**preset("scienceqa"), "path": str(path)})
    assert found.question.startswith("Which state?")
    path = parquet(tmp_path / "video.parquet", {**seed, "data_type": "video"})
    with pytest.raises(ValueError, match=r"video\.parquet: no rows"):
        list(open_source({**preset("seed"), "path": str(path)}))


def test_vqa_answers_as_older_copies_have_them(tmp_path):
    row, _, answers, _ = ROWS["vqav2"]
    path = parquet(tmp_path / "rows.parquet", {**row, "answers": {"answer": TEN, "answer_id": list(range(10))}})
    (found,) = open_source({**preset("vqav2"), "path": str(path)})
    assert found.answers == answers


@pytest.fixture
def gqa_copy(tmp_path):
    """A local copy of a repository as the hub has GQA: questions and images in two configurations."""
    folder = tmp_path / "GQA"
    image = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    pictures = {"id": ["n1", "n2"], "image": [{"bytes": png(c), "path": None} for c in ("red", "blue")]}
    questions = {
        "id": ["1", "2", "3"],
        "imageId": ["n2", "n1", "n9"],
        "question": ["a?", "b?", "c?"],
        "answer": ["x"] * 3,
    }
    readme = ["---", "configs:"]
    for config, table in (
        ("testdev_balanced_images", datasets.Dataset.from_dict(pictures, features=image)),
        ("testdev_balanced_instructions", datasets.Dataset.from_dict(questions)),
    ):
        (folder / config).mkdir(parents=True)
        table.to_parquet(folder / config / "testdev-0.parquet")
        readme += [f"- config_name: {config}", "  data_files:", "  - split: testdev", f"    path: {config}/testdev-*"]
    (folder / "README.md").write_text("\n".join([*readme, "---", ""]))
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_copy_of_a_repository_with_its_images_apart(gqa_copy, streaming, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = {**preset("gqa"), "path": str(gqa_copy), "streaming": streaming}
    found = open_source(options)
    first, second, third = found
    assert first.image().getpixel((0, 0)) == (0, 0, 255) and second.image().getpixel((0, 0)) == (255, 0, 0)
    assert third.error == f"{gqa_copy} testdev_balanced_instructions testdev row 3: no image"
    assert operator.length_hint(found, -1) == (-1 if streaming else 3)
    assert list(found) == [first, second, third]  # a source can be gone through again


@pytest.mark.parametrize("streaming", [True, False])
def test_an_empty_split_of_a_repository(tmp_path, streaming, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    table = pa.table({name: pa.array([], pa.string()) for name in ("image", "question", "answer")})
    (tmp_path / "copy").mkdir()
    pq.write_table(table, tmp_path / "copy" / "test-0.parquet")
    # the library itself gives up on a file without rows, in words of its own
    with pytest.raises(ValueError, match=r"copy.*(after row 0|cannot be loaded)"):
        list(open_source({**preset("hf"), "path": str(tmp_path / "copy"), "streaming": streaming}))


def test_a_folder_of_save_to_disk(tmp_path):
    row = {"image": [IMAGE] * 2, "question": ["a?", "b?"], "answer": ["x", "y"]}
    features = {"image": datasets.Image(), **{name: datasets.Value("string") for name in ("question", "answer")}}
    table = datasets.Dataset.from_dict(row, features=datasets.Features(features))
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"dev": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    options = preset("hf")
    one = open_source({**options, "path": str(tmp_path / "one")})
    assert isinstance(one, Source) and [e.answers for e in one] == [("x",), ("y",)]
    assert next(iter(one)).image().size == (8, 6)
    two = {**options, "path": str(tmp_path / "two")}
    assert [e.question for e in open_source(two)] == ["b?"]
    assert [e.question for e in open_source({**two, "split": "dev"})] == ["a?", "b?"]
    with pytest.raises(ValueError, match=r"Unknown split of .*two 'tset'\. Did you mean 'test'"):
        open_source({**two, "split": "tset"})
    nothing = {name: [] for name in features}
    datasets.Dataset.from_dict(nothing, features=datasets.Features(features)).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="none: no rows"):
        open_source({**options, "path": str(tmp_path / "none")})


def test_data_sets_that_cannot_be_had(gqa_copy, monkeypatch, tmp_path):
    options = {**preset("gqa"), "path": str(gqa_copy)}
    with pytest.raises(ValueError, match=r"GQA.*split.*testdev"):
        open_source({**options, "split": "test"})
    with pytest.raises(ValueError, match=r"GQA.*'balanced' not found.*testdev_balanced_images"):
        open_source({**options, "config": "balanced"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(
        ValueError, match=r"'nobody/nothing' not found: no such folder, not in the cache .*HF_HUB_OFFLINE"
    ):
        open_source({**options, "path": "nobody/nothing"})
    assert before == datasets.config.HF_HUB_OFFLINE


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'prunekit\[data\]'"):
        open_source(preset("gqa"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'prunekit\[data\]'"):
        open_source({**preset("pope"), "path": str(tmp_path / "x.parquet")})


def test_numbers_over_all_rows_of_a_run(monkeypatch, tmp_path, model_folder):
    """POPE through the command: accuracy per split, F1 of pruned and dense in metrics.json."""
    row, *_ = ROWS["pope"]
    splits = ("random", "popular", "adversarial")
    rows = [{**row, "category": split, "answer": answer} for split in splits for answer in ("yes", "no")]
    path = parquet(tmp_path / "pope.parquet", *rows)
    code, out, err = run_main(
        monkeypatch, "model=hf", f"model.name={model_folder}", "data=pope", f"data.path={path}", "device=cpu",
        "data.max_new_tokens=1", "logger.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["metric"] == "pope" and metrics["data"] == "pope/test"
    assert set(metrics["accuracy"]) == {"mean", *splits}
    for side in ("extra", "dense_extra"):
        assert {"f1", *(f"f1/{split}" for split in splits)} <= metrics[side].keys()
    (line,) = [line for line in out.splitlines() if " f1 " in line]
    assert f"{metrics['extra']['f1']:.4g}" in line and "f1/random" not in out


@pytest.mark.parametrize("name", ROWS)
def test_the_page_says_what_the_preset_does(name):
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 6]
    options = preset(name)
    source = "the same" if name == "textvqa_ocr" else options["path"]
    split = "" if name == "textvqa_ocr" else f", {options['split']}"
    assert source in line and split in line and f"`{options['metric']}`" in line
    assert options["config"] is None or f"({options['config']})" in line


def test_the_page_lists_every_model():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for path in (CONF / "model").glob("*.yaml"):
        name = yaml.safe_load(path.read_text())["name"]
        assert f"`{path.stem}`" in page and (name == "???" or name in page), path
