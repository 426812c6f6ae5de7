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
from prunekit.data.benchmarks import BENCHMARKS, REFUSED
from prunekit.data.source import Source, open_source
from prunekit.metrics import METRICS, metric
from prunekit.run.config_store import register_options
from prunekit.run.words import CONF
from tools.benchmarks_page import presets, prompts, styles

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNIT_BOX = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
    "All values are floating point numbers bounded between 0 and 1. Please provide the bounding box coordinate of the "
    "region this sentence describes: "
)
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
    **{
        name: (
            {"question_id": "1", "image": IMAGE, "question": "Describe it.", "answer": ["left man"], "iscrowd": 0,
             "segmentation": [1.0, 2.0], "bbox": [2.0, 1.5, 4.0, 3.0], "file_name": "COCO_1.jpg"},
            UNIT_BOX + "left man", ("[0.2500, 0.2500, 0.7500, 0.7500]",), "1-1",
        )
        for name in ("refcoco", "refcoco_plus", "refcocog")
    },
    "ocrbench": (
        {"dataset": "IIIT5K", "question": "what is written?", "question_type": "Regular Text Recognition",
         "answer": ["CENTRE"], "image": IMAGE},
        "what is written?", ("CENTRE",), "Regular Text Recognition#1",
    ),
    "ai2d": (
        {"question": "which is it?", "options": ["leaf", "stem", "root", "seed"], "answer": "2", "image": IMAGE},
        "which is it?\nA. leaf\nB. stem\nC. root\nD. seed" + LETTER, ("C",), "1",
    ),
    "mmstar": (
        {"index": 3, "question": "Which?\nOptions: A: one, B: two, C: three, D: four", "image": IMAGE, "answer": "B",
         "category": "math", "l2_category": "geometry", "meta_info": {"source": "s", "split": "val"}},
        "Which?\nOptions: A: one, B: two, C: three, D: four" + LETTER[:-1], ("B",), "3",
    ),
    "mmmu": (
        {"id": "validation_Art_Theory_7", "question": "<image 1> Who?", "options": "['Ann', \"B's\"]", "answer": "B",
         "explanation": "", **{f"image_{n}": IMAGE if n == 1 else None for n in range(1, 8)},
         "img_type": "['Painting']", "topic_difficulty": "Easy", "question_type": "multiple-choice", "subfield": "Art"},
        "<image 1> Who?\nA. Ann\nB. B's\n" + LETTER, ("B",), "Art_Theory#validation_Art_Theory_7",
    ),
    "hallusionbench": (
        {"category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": "1",
         "sample_note": "n", "question_id": "2", "question": "Is it longer?", "gt_answer_details": "No.",
         "gt_answer": "0", "filename": "./a.png", "image": IMAGE},
        "Is it longer? Please answer yes or no.", ("no",), "VD/illusion/0/1/2",
    ),
    "mathvista": (
        {"pid": "1", "question": "How far?", "image": "images/1.jpg", "decoded_image": IMAGE, "choices": None,
         "unit": "cm", "precision": 1.0, "answer": "1.2", "question_type": "free_form", "answer_type": "float",
         "metadata": {"split": "testmini"}, "query": "q"},
        "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the "
        "final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: How far? (Unit: cm)", ("1.2",), "1",
    ),
    "infovqa": (
        {"questionId": "65718", "question": "What share?", "image": IMAGE, "answers": ["10%", "10"],
         "data_split": "val"},
        "What share?" + SHORT, ("10%", "10"), "65718",
    ),
    "realworldqa": (
        {"image_path": "1.webp", "image": IMAGE, "answer": "B",
         "question": "Which way?\nA. Left.\nB. Right.\nPlease answer directly with only the letter."},
        "Which way?\nA. Left.\nB. Right.\nPlease answer directly with only the letter.", ("B",), "1",
    ),
}  # fmt: skip
TASKS = {"pope": "adversarial", "mme": "count", "chartqa": "human", "mmstar": "math"}
NEW = (
    "refcoco", "refcoco_plus", "refcocog", "ocrbench", "ai2d", "mmstar", "mmmu", "hallusionbench", "mathvista",
    "infovqa", "realworldqa",
)  # fmt: skip


def test_every_benchmark_has_a_preset_and_a_row_here():
    files = {path.stem for path in (CONF / "data").glob("*.yaml")}
    assert files == {*BENCHMARKS, *REFUSED, "mini", "jsonl", "parquet", "hf"}
    assert ROWS.keys() == {name for name, benchmark in BENCHMARKS.items() if not benchmark.video}


@pytest.mark.parametrize("name", ROWS)
def test_a_presets_row(name, tmp_path):
    row, question, answers, own_id = ROWS[name]
    options = preset(name)
    assert options["name"] == name and options["path"].count("/") == 1 and options["metric"] in METRICS
    loaded_rows = open_source({**options, "path": str(parquet(tmp_path / "rows.parquet", row))})
    (example,) = loaded_rows
    assert not example.error, example.error
    assert (example.question, example.answers, example.id) == (question, answers, own_id)
    assert example.task == TASKS.get(name, name) and example.image().size == (8, 6)
    perfect = "blue" if answers == tuple(TEN) else answers[0]
    assert (
        metric(loaded_rows.metric).score(perfect, example) == 1
        and metric(loaded_rows.metric).score("zebra", example) == 0
    )


@pytest.mark.parametrize("name", ROWS)
def test_what_a_preset_needs_is_said_when_it_is_missing(name, tmp_path):
    row, *_ = ROWS[name]
    options = preset(name)
    for column in {*BENCHMARKS[name].needs, BENCHMARKS[name].image}:
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
                assert str(error) == f"{path}: no rows" and name in ("scienceqa", "seed", "hallusionbench")
            else:
                assert example.question or example.error.startswith(f"{path} row 1: ")


def test_questions_that_do_not_count_are_left_out(tmp_path):
    seed, *_ = ROWS["seed"]
    path = parquet(tmp_path / "seed.parquet", {**seed, "data_type": "video"}, seed, {**seed, "data_type": "video"})
    assert [e.id for e in open_source({**preset("seed"), "path": str(path), "limit": 1})] == ["instance counting#9"]
    science, *_ = ROWS["scienceqa"]
    path = parquet(tmp_path / "science.parquet", {**science, "image": None}, {**science, "hint": ""})
    (loaded_rows,) = open_source({**preset("scienceqa"), "path": str(path)})
    assert loaded_rows.question.startswith("Which state?")
    path = parquet(tmp_path / "video.parquet", {**seed, "data_type": "video"})
    with pytest.raises(ValueError, match=r"video\.parquet: no rows"):
        list(open_source({**preset("seed"), "path": str(path)}))


def test_vqa_answers_as_older_copies_have_them(tmp_path):
    row, _, answers, _ = ROWS["vqav2"]
    path = parquet(tmp_path / "rows.parquet", {**row, "answers": {"answer": TEN, "answer_id": list(range(10))}})
    (loaded_rows,) = open_source({**preset("vqav2"), "path": str(path)})
    assert loaded_rows.answers == answers


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
    loaded_rows = open_source(options)
    first, second, third = loaded_rows
    assert first.image().getpixel((0, 0)) == (0, 0, 255) and second.image().getpixel((0, 0)) == (255, 0, 0)
    assert third.error == f"{gqa_copy} testdev_balanced_instructions testdev row 3: no image"
    assert operator.length_hint(loaded_rows, -1) == (-1 if streaming else 3)
    assert list(loaded_rows) == [first, second, third]  # a source can be gone through again


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


@pytest.mark.parametrize("name", NEW)
def test_a_preset_through_the_command(name, monkeypatch, tmp_path, model_folder):
    """A good row and one whose answer is missing: the run goes on, and names the row."""
    row, *_ = ROWS[name]
    answer = "gt_answer" if name == "hallusionbench" else "bbox" if name.startswith("ref") else "answers"
    answer = answer if answer in row else "answer"
    path = parquet(tmp_path / "rows.parquet", row, {**row, answer: None})
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={model_folder}", f"data={name}", f"data.path={path}", "device=cpu",
        "data.max_new_tokens=1", "logger.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}", "method=random",
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["examples"], metrics["errors"]) == (1, 1)
    good, bad = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert "prediction" in good and bad["error"].startswith(f"{path} row 2: ")


def test_a_benchmark_that_needs_a_judge_is_refused(monkeypatch, tmp_path):
    code, _, err = run_main(monkeypatch, "data=mmvet", "logger.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 1 and "'mmvet': MM-Vet's score is a language model's opinion" in err and "\n" not in err


def test_each_description_of_an_object_is_a_question(tmp_path):
    row, *_ = ROWS["refcoco"]
    rows = [{**row, "answer": ["left man ", "in red"]}, {**row, "bbox": [1.0, 1.0, 0.0, 2.0]}, {**row, "answer": []}]
    options = {**preset("refcoco"), "path": str(parquet(tmp_path / "rows.parquet", *rows))}
    first, second, third, fourth = loaded_rows = list(open_source(options))
    assert [e.question.removeprefix(UNIT_BOX) for e in (first, second)] == ["left man", "in red"]
    assert len({e.id for e in loaded_rows}) == 4 and first.regions == ((2, 2, 6, 4),)
    assert third.error.endswith("row 2: box must be left, top, width and height in pixels, not [1.0, 1.0, 0.0, 2.0]")
    assert fourth.error.endswith("row 3: answer is an empty list")
    assert len(list(open_source({**options, "limit": 1}))) == 1
    assert operator.length_hint(open_source(options), -1) == -1  # how many there are shows when they are read
    path = parquet(tmp_path / "broken.parquet", {**row, "image": {"bytes": b"no image", "path": None}})
    (broken,) = open_source({**options, "path": str(path)})
    assert broken.error == f"{path} row 1: the image cannot be read: not an image of a known format"


@pytest.mark.parametrize(
    ("style", "question", "answer"),
    [
        ("llava", "describes: left man.", "[0.2500, 0.3125, 0.7500, 0.6875]"),
        ("qwen2", "describes: left man", "<|box_start|>(250.0,250.0),(750.0,750.0)<|box_end|>"),
        ("qwen2.5", "in JSON format.", '{"bbox_2d": [21.0, 14.0, 63.0, 42.0]}'),  # 8 x 6 pixels become 84 x 56
        ("qwen3", "in JSON format.", '{"bbox_2d": [250.0, 250.0, 750.0, 750.0]}'),
        ("internvl", "describes: <ref>left man</ref>", "<box>[[250.0, 250.0, 750.0, 750.0]]</box>"),
        ("paligemma", "detect left man", "<loc0256><loc0256><loc0768><loc0768>"),
    ],
)
def test_a_box_in_the_notation_of_each_family(style, question, answer, tmp_path):
    path = parquet(tmp_path / "rows.parquet", ROWS["refcoco"][0])
    options = {**preset("refcoco"), "path": str(path)}
    (loaded_rows,) = open_source({**options, "style": style})
    assert loaded_rows.question.endswith(question) and loaded_rows.answers == (answer,)
    (own,) = open_source({**options, "style": style, "prompt": "Where is {question}?"})
    assert own.question == "Where is left man?" and own.answers == (answer,)  # what was asked for stays
    with pytest.raises(ValueError, match=r"Unknown data\.style 'qwen9'\. Did you mean 'qwen"):
        open_source({**options, "style": "qwen9"})


@pytest.mark.parametrize(
    ("family", "style"), [("llava", "llava_crop"), ("qwen2_5_vl", "qwen2.5"), ("internvl", "internvl")]
)
def test_the_style_goes_by_the_models_type(family, style, saved, monkeypatch, tmp_path):
    path = parquet(
        tmp_path / "rows.parquet", {**ROWS["refcoco"][0], "image": {"bytes": png(size=(64, 56)), "path": ""}}
    )
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={saved(family)}", "data=refcoco", f"data.path={path}", "device=cpu",
        "data.max_new_tokens=1", "logger.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}", "method=random",
    )  # fmt: skip
    assert code == 0, err
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    (expected,) = open_source({**preset("refcoco"), "path": str(path), "style": style})
    assert (row["question"], tuple(row["answers"])) == (expected.question, expected.answers)


def test_questions_with_and_without_options_are_asked_apart(tmp_path):
    row, *_ = ROWS["mmmu"]
    shown = {**row, "options": "['<image 3>', '<image 1>']", "image_3": IMAGE}
    opened = {**row, "options": "[]", "answer": "['4', 'four']", "question_type": "open"}
    broken = {**row, "options": "[one, two"}
    path = parquet(tmp_path / "rows.parquet", shown, opened, broken)
    two, free, wrong = open_source({**preset("mmmu"), "path": str(path)})
    assert len(two.pictures) == 2 and free.question == "<image 1> Who?\n" + SHORT and free.answers == ("4", "four")
    assert wrong.error == f"{path} row 3: options must be a list as Python writes it, not '[one, two'"
    _, qwen, _ = open_source({**preset("mmmu"), "path": str(path), "style": "qwen2.5"})
    assert qwen.question == "Question: <image 1> Who?"
    math, *_ = ROWS["mathvista"]
    choices = {**math, "choices": ["B", "A"], "answer": "A", "answer_type": "text", "unit": None}
    odd = {**math, "answer_type": "complex"}
    path = parquet(tmp_path / "math.parquet", choices, odd)
    letters, refused = open_source({**preset("mathvista"), "path": str(path)})
    assert letters.answers == ("B",)  # an option's text, not its letter
    assert letters.question.endswith("Question: How far?\nChoices:\n(A) B\n(B) A")
    assert refused.error.endswith("row 2: answer_type must be integer, float or list, not 'complex' with 0 decimals")


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


@pytest.mark.parametrize("table", [presets, styles, prompts])
def test_the_page_says_what_the_presets_do(table):
    assert table() in (ROOT / "docs" / "benchmarks.md").read_text()


def test_the_page_lists_every_model():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for path in (CONF / "model").glob("*.yaml"):
        name = yaml.safe_load(path.read_text())["name"]
        assert f"`{path.stem}`" in page and (name == "???" or name in page), path
