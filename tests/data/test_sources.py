"""Data from files and data sets: what rows become, what is wrong with those that become nothing, and memory."""

from __future__ import annotations

import io
import json
import operator
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from commands import run_main
from fabricated import png
from paths import ROOT
from prunekit.data.pictures import Picture
from prunekit.data.rows import parse_prompt
from prunekit.data.source import Examples, gather, open_source
from prunekit.errors import RowError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def jsonl(folder: Path, *rows: object, name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def opened(path: Path, name: str = "jsonl", **options):
    return open_source({"max_pixels": 10_000, "name": name, "path": str(path), **options})


GOOD = {"image": "a.png", "question": "what is it?", "answers": ["a dog", "dog"]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "b.png").write_bytes(png("blue", (4, 4)))
    return tmp_path


def test_rows_of_a_jsonl_file(folder):
    two = {
        "id": "x7", "images": ["a.png", "b.png"], "question": "which {options}?", "answer": 1, "task": "pick",
        "choices": ["cat", "dog"], "context": "Look.\n",
        "history": [["is it?", "yes"], {"question": "sure?", "answer": "no"}],
    }  # fmt: skip
    (first,) = opened(jsonl(folder, {**GOOD, "id": 3}))
    assert (first.id, first.task, first.question, first.answers, first.error) == (
        "3", "all", "what is it?", ("a dog", "dog"), "",
    )  # fmt: skip
    assert first.image().size == (8, 6) and first.image().getpixel((0, 0)) == (255, 0, 0)
    (second,) = opened(jsonl(folder, two))
    assert second.id == "x7" and second.task == "pick" and second.answers == ("B",)
    assert second.history == (("is it?", "yes"), ("sure?", "no")) and second.choices == ("cat", "dog")
    assert [image.size for image in second.images()] == [(8, 6), (4, 4)] and len(second.image_ids) == 2
    assert second.question == (
        "Look.\nwhich {options}?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    )


def test_rows_of_parquet_files(folder):
    table = pa.Table.from_pylist([
        {"image": png("red"), "question": "q1", "answers": ["a"], "extra": 1},
        {"image": png("red"), "question": "q2", "answers": ["b"], "extra": 2},
        {"image": png("blue"), "question": "q3", "answers": ["c"], "extra": 3},
    ])  # fmt: skip
    for start in range(3):
        pq.write_table(table.slice(start, 1), folder / f"part-{start}.parquet")
    for path in (folder, folder / "part-*.parquet"):
        examples = opened(path, "parquet")
        assert operator.length_hint(examples) == 3
        assert [(e.id, e.question, e.answers) for e in examples] == [
            (str(i), f"q{i}", ("abc"[i - 1],)) for i in (1, 2, 3)
        ]
        first, second, third = examples
        assert first.image_id == second.image_id != third.image_id  # the same bytes are the same image
    assert [e.id for e in opened(folder, "parquet", limit=2)] == ["1", "2"]


def test_images_may_come_as_the_datasets_library_keeps_them(folder):
    rows = [{"image": {"bytes": png(), "path": "x.png"}}, {"image": {"bytes": None, "path": str(folder / "b.png")}}]
    table = pa.Table.from_pylist([{**row, "question": "q", "answers": ["a"]} for row in rows])
    pq.write_table(table, folder / "q.parquet")
    assert [e.image().size for e in opened(folder / "q.parquet", "parquet")] == [(8, 6), (4, 4)]


def test_columns_of_other_names(folder):
    path = jsonl(folder, {"picture": "a.png", "text": "q", "label": "a"})
    columns = {"image": "picture", "question": "text", "answers": "label"}
    (found,) = opened(path, columns=columns)
    assert (found.question, found.answers) == ("q", ("a",))
    with pytest.raises(ValueError, match=r"q\.jsonl: no column 'txt'; it has picture, text, label"):
        opened(path, columns={**columns, "question": "txt"})


@pytest.mark.parametrize(
    ("answers", "letter"), [("B", "B"), ("b", "B"), (["B"], "B"), (1, "B"), ("dog", "B"), (["cat"], "A"), (0, "A")]
)
def test_the_answer_among_choices_is_a_letter(folder, answers, letter):
    (found,) = opened(jsonl(folder, {**GOOD, "answers": answers, "choices": ["cat", "dog"]}))
    assert found.answers == (letter,) and not found.error


def test_a_capital_is_the_letter_even_where_options_are_letters(folder):
    rows = [{**GOOD, "answers": answer, "choices": ["B", "A", "c"]} for answer in ("A", "B", "c")]
    assert [e.answers for e in opened(jsonl(folder, *rows))] == [("A",), ("B",), ("C",)]


BAD_ROWS = [
    ({**GOOD, "answers": 5}, "answers must be a list of texts, not 5"),
    ({**GOOD, "answers": {"a": 1}}, "answers must be a list of texts"),
    ({**GOOD, "answers": ["a", 7]}, "answers must be a list of texts, not ['a', 7]"),
    ({**GOOD, "answers": []}, "answers is an empty list"),
    ({**GOOD, "answers": None}, "answers must be a list of texts, not nothing"),
    ({"image": "a.png", "question": "q"}, "no 'answers'"),
    ({**GOOD, "question": None}, "question must be a text, not nothing"),
    ({**GOOD, "question": "  "}, "question is empty"),
    ({**GOOD, "image": None}, "no image"),
    ({**GOOD, "image": 3}, "image must be a path or encoded bytes, not 3"),
    ({**GOOD, "choices": "AB"}, "choices must be a list of texts, not 'AB'"),
    ({**GOOD, "choices": ["x", "y"]}, "answers must be one of the 2 choices"),
    ({**GOOD, "choices": ["x", "y"], "answers": 2}, "answers must be one of the 2 choices"),
    ({**GOOD, "choices": ["x", "y"], "answers": True}, "not True"),
    ({**GOOD, "history": [["only"]]}, "history must be a list of [question, answer]"),
    ({**GOOD, "history": "before"}, "history must be a list of [question, answer]"),
    ({**GOOD, "task": 1}, "task must be a text"),
    ({**GOOD, "choices": [str(n) for n in range(30)], "answers": 28}, "30 choices, more than there are letters"),
    ({**GOOD, "question": "\ud83d"}, "question holds half a character"),
    ("[" * 100_000, "not JSON"),
    ({**GOOD, "id": 1.5}, "id must be a text or a whole number"),
    ({**GOOD, "id": "first"}, "id 'first' is taken by an earlier row"),
    ('{"image": "a.png",', "not JSON"),
    ("[1, 2]", "not a JSON object"),
    ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "not JSON"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[message for _, message in BAD_ROWS])
def test_a_row_that_cannot_be_used_is_named_and_the_rest_goes_on(folder, row, message):
    path = jsonl(folder, {**GOOD, "id": "first"}, row, {**GOOD, "id": "last"})
    first, bad, last = opened(path)
    assert not first.error and not last.error
    assert bad.error.startswith(f"{path} row 2: ") and message in bad.error and "\n" not in bad.error
    with pytest.raises(RowError, match="row 2"):
        bad.images()
    assert [e.id for e in gather(opened(path))] == ["first", "last"]


BAD_IMAGES = {
    "not an image": (b"these are no pixels", "not an image of a known format"),
    "empty": (b"", "not an image of a known format"),
    "cut short": (png(size=(90, 90))[:120], "cannot be read"),
    "damaged": (png(size=(90, 90))[:60] + b"\0" * 40 + png(size=(90, 90))[100:], "cannot be read"),
    "too large": (png(size=(101, 100)), "101 x 100 pixels, more than data.max_pixels=10000"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_image_that_cannot_be_used_is_named_when_it_is_asked_for(folder, kind):
    content, message = BAD_IMAGES[kind]
    (folder / "bad.png").write_bytes(content)
    rows = [{**GOOD, "image": name} for name in ("bad.png", "missing.png", "a\0.png")]
    path = jsonl(folder, GOOD, *rows)
    good, bad, missing, odd = opened(path)
    with pytest.raises(RowError, match="row 4: image"):
        odd.digest()
    assert good.image().size == (8, 6) and not bad.error
    with pytest.raises(RowError, match=r"q\.jsonl row 2: ") as found:
        bad.images()
    assert message in str(found.value)
    with pytest.raises(RowError, match=r"q\.jsonl row 3: image '.*missing\.png': No such file"):
        missing.digest()


def test_a_hundred_megapixels_are_refused_before_they_are_decoded(monkeypatch):
    """A picture of one colour is small on disk and 300 MB in memory; Pillow's own limit lies higher."""
    content = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(content, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        RowError, match=r"x row 1: the image has 10000 x 10000 pixels, more than data\.max_pixels=50000000"
    ):
        Picture(content.getvalue(), "x row 1").load()


def test_beyond_pillows_own_limit_its_words_are_given(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(RowError, match=r"x row 1: the image cannot be read: Image size \(48 pixels\) exceeds"):
        Picture(png(), "x row 1", max_pixels=10**9).load()
    assert Picture(png(size=(5, 5)), "x row 1").load().size == (5, 5)  # in its range of warnings: no word


WHOLE_FILE = [
    ("", r"q\.jsonl: no rows"),
    ("\n\n", r"q\.jsonl: no rows"),
    ("nonsense\n", r"q\.jsonl: no rows"),
    (json.dumps({"question": "q", "answers": ["a"]}), r"q\.jsonl: no column 'image'; it has question, answers"),
    (json.dumps({"image": "a.png", "answers": ["a"]}), r"q\.jsonl: no column 'question'"),
    (json.dumps({"image": "a.png", "question": "q"}), r"q\.jsonl: no column 'answers'; it has image, question"),
]


@pytest.mark.parametrize(("content", "message"), WHOLE_FILE)
def test_a_file_that_cannot_be_used_is_an_error(folder, content, message):
    (folder / "q.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        opened(folder / "q.jsonl")


def test_files_that_are_not_there_or_not_what_they_should_be(folder):
    with pytest.raises(ValueError, match="no such file"):
        opened(folder / "none.jsonl")
    with pytest.raises(ValueError, match=r"no such file.*none-\*"):
        opened(folder / "none-*.parquet", "parquet")
    (folder / "q.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"q\.parquet: not a Parquet file"):
        opened(folder / "q.parquet", "parquet")
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "question": pa.array([], pa.string())}), folder / "e.parquet"
    )
    with pytest.raises(ValueError, match=r"e\.parquet: no rows"):
        opened(folder / "e.parquet", "parquet")
    bad = jsonl(folder, {**GOOD, "answers": 1})
    with pytest.raises(ValueError, match=r"no usable row; .*row 1: answers must be"):
        gather(opened(bad))


def test_prompts():
    assert parse_prompt("{question}\\nShort.") == "{question}\nShort." and parse_prompt(None) is None
    for wrong, message in (("{qestion}", "Did you mean 'question'"), ("Hello", "no {question}"), (3, "must be a text")):
        with pytest.raises(ValueError, match=message):
            parse_prompt(wrong)


def test_the_same_question_about_the_same_pixels_has_the_same_digest(folder):
    one, two, three, four = opened(
        jsonl(folder, GOOD, {**GOOD, "image": "b.png"}, {**GOOD, "history": [["a", "b"]]}, {**GOOD, "answers": ["x"]})
    )
    assert one.digest() == four.digest() and len({e.digest() for e in (one, two, three)}) == 3
    before = one.digest()
    (folder / "a.png").write_bytes(png("green"))
    assert one.digest() != before


def test_what_is_asked_has_a_digest(folder):
    path = jsonl(folder, GOOD)
    first = opened(path).digest
    assert first == opened(path, limit=1).digest and first != opened(path, prompt="{question} Short.").digest
    with pytest.raises(ValueError, match=r"option of data 'jsonl': 'promt'\. Did you mean 'prompt'"):
        opened(path, promt="x")


def test_ids_may_come_in_any_row(folder):
    found = list(opened(jsonl(folder, GOOD, {**GOOD, "id": "1"}, {**GOOD, "id": "1"})))
    assert [bool(e.error) for e in found] == [False, True, True] and len({e.id for e in found}) == 3


def test_mini_is_a_list_with_its_metric():
    found = open_source({"name": "mini", "split": "test", "limit": 5})
    assert isinstance(found, Examples) and len(found) == 5 and found.metric == "exact"


def test_memory_stays_flat_over_200_000_rows(tmp_path):
    """200 000 rows, as a file and as a data set, in a process of its own: its memory's peak after all of them is that
    after the file's first 20 000, though their images alone would take 400 MB."""
    pytest.importorskip("datasets")
    code = textwrap.dedent(
        """
        import datasets, os, resource, sys, pyarrow as pa, pyarrow.dataset, pyarrow.parquet as pq
        from prunekit.data.source import open_source

        folder, rows, group = sys.argv[1], 200_000, 1_000
        path = os.path.join(folder, "test-0.parquet")
        names = ("image", "question", "answer")
        types = dict(zip(names, (pa.binary(), pa.string(), pa.string())))
        with pq.ParquetWriter(path, pa.schema(types.items()), compression="none", use_dictionary=False) as file:
            for start in range(0, rows, group):
                images = [b"%08d" % i + b"x" * 2000 for i in range(start, start + group)]
                columns = dict(zip(names, (images, ["what is it?"] * group, ["a"] * group)))
                file.write_table(pa.table(columns, schema=pa.schema(types.items())))
        for name, place in (("parquet", path), ("hf", folder)):
            for count, example in enumerate(open_source({"name": name, "path": place}), 1):
                assert example.pictures[0].source.startswith(b"%08d" % (count - 1)) and not example.error
                if count in (20_000, rows):
                    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    counts, peaks = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert counts == (20_000, 200_000) * 2
    assert peaks[1] - peaks[0] < 20_000 and peaks[3] - peaks[0] < 80_000  # kilobytes


def test_random_rows_never_raise_anything_but_what_they_should(folder):
    """Fuzz: whatever a row holds, it becomes an example or an error that names it."""
    rng = random.Random(0)
    values = [None, 1, -1, 0.5, True, "", "a.png", "x", [], ["a"], [1], [None], {}, {"bytes": None}, {"path": "a.png"},
              [["a", "b"]], [{"question": "q", "answer": "a"}], "A", ["A"]]  # fmt: skip
    names = ["image", "question", "answers", "choices", "task", "history", "context", "id"]
    rows = [{name: rng.choice(values) for name in names if rng.random() < 0.8} for _ in range(2000)]
    path = jsonl(folder, {**GOOD, "id": "g"}, *rows)
    found = list(opened(path))
    assert len(found) == 2001 and len({e.id for e in found}) == 2001
    for number, example in enumerate(found[1:], 2):
        assert example.error.startswith(f"{path} row {number}: ") if example.error else example.question


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=jsonl"], "data.path"),
        (["data=jsonl", "data.path=/no/such.jsonl"], "no such file '/no/such.jsonl'"),
        (["data=jsonl", "data.path=x.jsonl", "data.metric=vqaa"], "Did you mean 'vqa'"),
        (["data=jsonl", "data.path=x.jsonl", "data.max_pixels=none"], "data.max_pixels must be a whole number"),
        (["data=jsonl", "data.path=x.jsonl", "data.colour=red"], "colour"),
        (["data=gqaa"], "Did you mean 'gqa'"),
    ],
)
def test_bad_options_end_in_one_line(monkeypatch, tmp_path, arguments, message):
    code, _, err = run_main(monkeypatch, *arguments, f"hydra.run.dir={tmp_path}")
    assert code == 1 and message in err and "Traceback" not in err


def test_a_run_on_a_file(monkeypatch, folder, model_folder):
    """The embedded model's kind on a user's own questions: the file's metric, fractions as they are."""
    path = jsonl(folder, GOOD, {**GOOD, "image": "b.png", "answers": ["x"] * 10}, {**GOOD, "task": "other"})
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={model_folder}", "data=jsonl", f"data.path={path}", "data.metric=vqa",
        "data.max_new_tokens=1", "logger.mode=disabled", "device=cpu", f"hydra.run.dir={folder / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert (
        metrics["metric"] == "vqa" and metrics["examples"] == 3 and set(metrics["accuracy"]) == {"mean", "all", "other"}
    )
    assert metrics["data"] == f"jsonl/{path}"
