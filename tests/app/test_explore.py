"""The explorer's computation against plain runs of the model, and what it refuses. No browser, no gradio."""

from __future__ import annotations

import base64
import io
import json
import random
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import prunekit
from films import film
from prunekit.app import explore
from prunekit.app.explore import DENSE, OWN, Explorer, Stopped
from prunekit.app.query import MOST_LETTERS, Query, Upload
from prunekit.app.table import tabulate
from prunekit.data.mini import load
from prunekit.errors import PrunekitError
from prunekit.evaluation.batches import Batcher
from prunekit.models import load_model
from prunekit.registry import registry

TOKENS = 3


@pytest.fixture(scope="module")
def explorer(loaded):
    return Explorer(loaded, prunekit.Pruner(), load("test", 40), max_new_tokens=TOKENS)


@pytest.fixture(autouse=True)
def _timed_once(monkeypatch):
    monkeypatch.setattr(explore, "ROUNDS", 1)


@pytest.fixture
def example(explorer):
    return random.choice(list(explorer.examples.values()))


def asked(example, /, **changes) -> Query:
    return Query(**{"example": example.id, "question": example.question, "methods": ("fastv",), **changes})


def last(records):
    return list(records)[-1]


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    out = io.BytesIO()
    image.save(out, kind)
    return base64.b64encode(out.getvalue()).decode()


def picture() -> Upload:
    pixels = np.random.default_rng().integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Upload(name="mine.png", data=encoded(Image.fromarray(pixels)))


def plain_run(loaded, example, pruner=None, **options):
    """Greedy answer and trace, with nothing of the explorer."""
    inputs = Batcher(loaded).inputs([example], pruner)
    handle = None if pruner is None else pruner.apply(loaded.model, **options)
    try:
        with torch.inference_mode():
            ids = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        return ids[0, inputs["input_ids"].shape[1] :], inputs, handle and handle.trace
    finally:
        if handle is not None:
            handle.remove()


def test_sides_are_what_plain_runs_give(explorer, loaded, example):
    record = last(explorer.explore(asked(example, methods=("fastv", OWN), compare=("random",), keep_ratio=0.3)))
    assert [side.label for side in record.sides] == [DENSE, "fastv", OWN, "random"]
    pruners = [None, prunekit.method("fastv", keep_ratio=0.3), prunekit.Pruner(keep_ratio=0.3)]
    for side, pruner in zip(record.sides, pruners, strict=False):
        ids, inputs, trace = plain_run(loaded, example, pruner)
        assert side.answer == loaded.processor.decode(ids, skip_special_tokens=True).strip()
        assert "".join(word.text for word in side.words).strip() == side.answer
        length, config = inputs["input_ids"].shape[1], loaded.model.config.text_config
        layers = [length] * config.num_hidden_layers if trace is None else trace.tokens_per_layer[:, 0].tolist()
        assert list(side.tokens_per_layer) == layers
        width, wide = config.hidden_size, config.intermediate_size
        flops = sum(2 * (4 * n * width**2 + 2 * n**2 * width + 3 * n * width * wide) for n in layers)
        assert side.flops == pytest.approx(flops)
        heads = config.num_key_value_heads * (width // config.num_attention_heads)
        assert side.kv_bytes == sum(2 * 4 * heads * n for n in layers)  # keys and values in float32
        assert side.prefill_seconds > 0 and side.dense_seconds > 0 and side.answer_seconds > 0
        for shown, cut in zip(side.cuts, trace.cuts if trace else (), strict=True):
            assert np.array_equal(shown.kept, cut.kept[0].numpy())
            assert np.allclose(shown.scores, cut.scores[0].numpy(), equal_nan=True)


def test_probabilities_are_the_models(explorer, loaded, example):
    (dense, *_) = last(explorer.explore(asked(example))).sides
    ids, inputs, _ = plain_run(loaded, example)
    whole = torch.cat([inputs["input_ids"], ids[None]], 1)
    features = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        logits = loaded.model(input_ids=whole, attention_mask=torch.ones_like(whole), **features).logits[0]
    chances = logits[inputs["input_ids"].shape[1] - 1 : -1].softmax(-1).gather(1, ids[:, None])[:, 0].tolist()
    texts = [loaded.processor.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
    shown = [chance for n, chance in enumerate(chances) if texts[n] != (texts[n - 1] if n else "")]
    assert [word.probability for word in dense.words] == pytest.approx(shown, abs=1e-4)


def test_a_second_question_shows_what_moves(explorer, loaded, example):
    other = "is there a sign with a letter on it"
    side = last(explorer.explore(asked(example, methods=(OWN,), before=other))).sides[1]
    earlier = plain_run(loaded, explorer.example(asked(example, question=other)), prunekit.Pruner(keep_ratio=0.25))[2]
    assert len(side.earlier) == len(side.cuts) == len(earlier.cuts) == 2
    for common, cut, before, plain in zip(side.in_common, side.cuts, side.earlier, earlier.cuts, strict=True):
        assert np.array_equal(before.kept, plain.kept[0].numpy())
        assert common == sum(1 for a, b in zip(cut.kept, before.kept, strict=True) if a and b)


def test_the_oracle_needs_the_datas_own_question(explorer, example):
    known = last(explorer.explore(asked(example, compare=("oracle",))))
    assert known.answers == example.answers and known.regions and not known.sides[2].error
    inside = {(round(a * 1000), round(b * 1000)) for a, b, *_ in known.regions}
    width, height = example.image().size
    assert inside == {(round(1000 * a / width), round(1000 * b / height)) for a, b, *_ in example.regions}
    own = last(explorer.explore(asked(example, question="what do you see", compare=("oracle",))))
    assert own.answers == () and own.sides[0].right is None and not own.sides[1].error
    assert "does not say where the answer" in own.sides[2].error


def test_budgets(explorer, example):
    (_, tokens) = last(explorer.explore(asked(example, methods=(OWN,), budget="17"))).sides
    assert tokens.cuts[-1].kept.sum() == 17
    (dense, flops) = last(explorer.explore(asked(example, methods=(OWN,), budget="flops:0.6"))).sides
    assert flops.flops / dense.flops == pytest.approx(0.6, abs=0.1)
    (_, wrong) = last(explorer.explore(asked(example, methods=("vtw",)))).sides
    assert "keeps no visual token" in wrong.error and not wrong.cuts


def test_places_of_tokens(explorer, example):
    record = last(explorer.explore(asked(example)))
    for token in range(144):
        row, column = divmod(token, 12)
        assert record.places[token] == f"row {row + 1}, column {column + 1}"
        assert record.boxes[token] == pytest.approx([column / 12, row / 12, (column + 1) / 12, (row + 1) / 12])


def test_uploads_and_states(explorer):
    upload = picture()
    query = Query(upload=upload, question="what is it", methods=(OWN,), keep_ratio=0.5, before="who is it")
    record = last(explorer.explore(query))
    assert record.sides[1].cuts[-1].kept.sum() == 72 and record.sides[1].earlier
    shown = json.loads(json.dumps(record.data(), allow_nan=False))
    again = Query.parse(json.dumps(shown["query"]))
    assert again == query
    assert last(explorer.explore(again)).sides[1].answer == record.sides[1].answer
    assert record.data(whole=False)["query"]["upload"]["data"] == ""
    cut = shown["sides"][1]["cuts"][0]
    assert cut["kept"].count("1") == record.sides[1].cuts[0].kept.sum() and len(cut["scores"]) == 144


def test_a_clip(saved):
    loaded = load_model(str(saved("qwen2_5_vl")), device="cpu")
    clip = Explorer(loaded, prunekit.Pruner(), load("test", 4), max_new_tokens=2)
    upload = Upload(name="clip.mp4", video=True, data=base64.b64encode(film(8, size=(56, 56))).decode())
    record = last(clip.explore(Query(upload=upload, question="what moves", methods=(OWN,))))
    assert not record.sides[1].error and record.sides[1].cuts[-1].kept.any()
    assert record.panels is not None and record.panels.max() > 0
    assert any(place.startswith("frame 2, row 1") for place in record.places)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"question": "  "}, "the question is empty"),
        ({"question": "a" * (MOST_LETTERS + 1)}, "more than"),
        ({"methods": ()}, "choose one to 4"),
        ({"methods": ("fastv",) * 5}, "choose one to 4"),
        ({"methods": ("fastw",)}, "Did you mean 'fastv'"),
        ({"methods": ("scorer=nothing",)}, "Unknown method 'scorer=nothing'"),
        ({"keep_ratio": 0.0}, "must lie in (0, 1]"),
        ({"example": "test-99999-9"}, "no example 'test-99999-9'"),
        ({"example": None}, "pick one of the pictures"),
        ({"example": None, "upload": Upload(name="a.png", data="no base64!")}, "a.png: the upload is broken"),
        ({"example": None, "upload": Upload(name="a.png", data=base64.b64encode(b"words").decode())}, "not an image"),
        ({"example": None, "upload": Upload(name="a.mp4", video=True, data="AAAA")}, "a.mp4: the video cannot be read"),
    ],
)
def test_bad_input_is_one_line(explorer, example, changes, part):
    with pytest.raises(PrunekitError) as error:
        last(explorer.explore(asked(example, **changes)))
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "not json", '{"rows": 1}', '{"example": 3, "question": "a"}', "[" * 9999]
)
def test_broken_states_are_one_line(text):
    with pytest.raises(PrunekitError) as error:
        Query.parse(text)
    assert "\n" not in str(error.value)


def test_a_picture_of_a_hundred_megapixels_is_refused(explorer):
    huge = Upload(name="huge.png", data=encoded(Image.new("1", (10_000, 10_001))))
    with pytest.raises(PrunekitError, match="10000 x 10001 pixels"):
        last(explorer.explore(Query(upload=huge, question="what", methods=(OWN,))))


def test_what_memory_does_not_hold_is_one_line(explorer, example, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")

    monkeypatch.setattr(explorer.loaded.model, "generate", full)
    with pytest.raises(PrunekitError, match="do not fit in memory") as error:
        last(explorer.explore(asked(example)))
    assert "\n" not in str(error.value)


def test_stopped_work_leaves_the_model_dense(explorer, loaded, example):
    before = plain_run(loaded, example)[0]

    def stop(text: str, done: float) -> None:
        assert 0 <= done <= 1
        if text.startswith("fastv: token 2"):
            raise Stopped

    with pytest.raises(Stopped):
        last(explorer.explore(asked(example), stop))
    assert torch.equal(plain_run(loaded, example)[0], before)
    assert explorer.lock.acquire(blocking=False)
    explorer.lock.release()


def test_two_users_at_once(explorer):
    one, _ = random.sample(list(explorer.examples.values()), 2)
    queries = [asked(one, keep_ratio=0.2, methods=(OWN,)), Query(upload=picture(), question="what", methods=("fastv",))]
    alone = [last(explorer.explore(query)) for query in queries]
    together: dict[int, list] = {0: [], 1: []}

    def user(number: int) -> None:
        together[number] = [last(explorer.explore(queries[number])) for _ in range(3)]

    threads = [threading.Thread(target=user, args=(number,)) for number in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, records in together.items():
        assert len(records) == 3
        for record in records:
            assert record.query == queries[number] and record.picture == alone[number].picture
            for a, b in zip(record.sides, alone[number].sides, strict=True):
                assert a.answer == b.answer and [*map(list, (c.kept for c in a.cuts))] == [
                    *map(list, (c.kept for c in b.cuts))
                ]


def test_a_users_own_methods_come_first(explorer, example, tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "bright.py").write_text(
        "from dataclasses import dataclass\nimport prunekit\n"
        "@prunekit.register('scorer', 'bright')\n@dataclass\nclass Bright(prunekit.Scorer):\n"
        "    def score(self, view):\n        return view.visual(view.hidden_states).norm(dim=-1)\n"
        "prunekit.compose('bright_method', scorer='bright', fusion='single', schedule='one_shot')\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        assert explorer.names()[:3] == [OWN, "bright_method", "scorer=bright"]
        record = last(explorer.explore(asked(example, methods=("bright_method", "scorer=bright"))))
        assert [side.about.split(" · ")[0] for side in record.sides[1:]] == ["bright", "bright"]
        assert not any(side.error for side in record.sides)
    finally:
        registry._compositions.pop("bright_method", None)
        registry._classes["scorer"].pop("bright", None)


def test_the_table_counts_what_single_questions_give():
    loaded = load_model("mini", device="cpu")  # a trained one: its answers are right and wrong
    explorer = Explorer(loaded, prunekit.Pruner(), load("test", 40), max_new_tokens=TOKENS)
    names, count = ("fastv", OWN), 20
    examples = list(explorer.examples.values())[:count]
    query = asked(examples[0], methods=(*names, "vtw"), keep_ratio=0.1)
    lines = last(tabulate(explorer, query, count))
    assert [line.cells[0] for line in lines] == [DENSE, *names, "vtw"] and "keeps no visual token" in lines[-1].error
    assert lines[0].cells[1].split()[0] not in ("0.0", "100.0")
    pruners = [None, prunekit.method("fastv", keep_ratio=0.1), prunekit.Pruner(keep_ratio=0.1)]
    for line, pruner in zip(lines, pruners, strict=False):
        right: dict[str, list[float]] = {}
        tokens, dense = [], []
        for example in examples:
            ids, inputs, trace = plain_run(loaded, example, pruner)
            answer = loaded.processor.decode(ids, skip_special_tokens=True).strip()
            right.setdefault(example.task, []).append(float(answer.lower() in example.answers))
            whole = [inputs["input_ids"].shape[1]] * explorer.family.depth
            tokens += whole if trace is None else trace.tokens_per_layer[:, 0].tolist()
            dense += whole
        accuracy = 100 * sum(sum(task) / len(task) for task in right.values()) / len(right)
        assert line.cells[1].split()[0] == f"{accuracy:.1f}"
        assert line.cells[4] == f"{sum(tokens) / sum(dense):.3f}"
        assert line.cells[5] == f"{sum(tokens) / len(tokens):.0f}"


def test_the_table_can_be_stopped(explorer, example):
    def stop(text: str, done: float) -> None:
        if text.startswith("fastv: 9"):
            raise Stopped

    rows = tabulate(explorer, asked(example), 20, stop)
    assert [line.cells[0] for line in next(rows)] == [DENSE]
    with pytest.raises(Stopped):
        next(rows)
    assert last(explorer.explore(asked(example))).sides[0].answer is not None
