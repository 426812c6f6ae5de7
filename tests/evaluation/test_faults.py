"""What may go wrong with single examples and with memory while the rest goes on; streams in bounded memory."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from prunekit.data import load
from prunekit.data.pictures import Picture
from prunekit.errors import PrunekitError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.faults import out_of_memory
from prunekit.evaluation.pictures import draw_kept
from prunekit.evaluation.sheets import sheets_of
from runs import lines, measured, run


def same_but(metrics, *names):
    return {key: value for key, value in metrics.items() if key not in names}


def test_unusable_examples_are_rows_with_an_error_and_the_rest_goes_on(tmp_path, loaded):
    good = load("test", 20)
    bad = [
        replace(good[0], id="bytes", pictures=(Picture(b"no picture", "rows.parquet row 3"),)),
        replace(good[1], id="missing", pictures=(Picture(tmp_path / "gone.png", "rows.jsonl row 9"),)),
        replace(good[2], id="answers", error="rows.jsonl row 12: 'answers' must be a list of texts, not 7"),
        replace(good[3], id=good[4].id),
    ]
    mixed = [bad[0], *good[:9], *bad[1:3], *good[9:], bad[3]]
    outcome = run(loaded, tmp_path / "mixed", mixed)
    run(loaded, tmp_path / "good", good)
    assert measured(tmp_path / "mixed")["errors"] == 4 and measured(tmp_path / "good")["errors"] == 0
    assert same_but(measured(tmp_path / "mixed"), "errors") == same_but(measured(tmp_path / "good"), "errors")
    rows = lines(tmp_path / "mixed")
    assert [row for row in rows if "error" not in row] == lines(tmp_path / "good")
    errors = {row["id"]: row["error"] for row in rows if "error" in row}
    assert "rows.parquet row 3" in errors["bytes"] and "rows.jsonl row 9" in errors["missing"]
    assert errors["answers"].startswith("rows.jsonl row 12") and len(errors) == 4
    assert any("stands twice" in error for error in errors.values())
    assert [row["id"] for row in outcome.rows] == [e.id for e in outcome.examples] == [e.id for e in good]
    draw_kept(outcome.examples, outcome.rows, sheets_of(Batcher(loaded)), tmp_path / "kept.png")


def test_data_without_a_usable_example_is_one_clear_line(tmp_path, loaded):
    bad = [replace(e, error=f"rows.jsonl row {n}: no answer") for n, e in enumerate(load("test", 3))]
    with pytest.raises(PrunekitError, match=r"data 'mine': none of the first 3 .* rows.jsonl row 0: no answer"):
        run(loaded, tmp_path, bad, data="mine")
    good = load("test", 9)[3:]
    run(loaded, tmp_path / "late", [*bad[:2], *good], window=3)
    assert (measured(tmp_path / "late")["examples"], measured(tmp_path / "late")["errors"]) == (6, 2)
    with pytest.raises(PrunekitError, match="none of the first 3"):
        run(loaded, tmp_path / "never", [*bad, *good], window=3)
    with pytest.raises(PrunekitError, match="data 'mine': no examples"):
        run(loaded, tmp_path, iter(()), data="mine")


def crowded(monkeypatch, loaded, most, error):
    """A model whose memory holds ``most`` examples; the batches that it was given."""
    tried, original = [], loaded.model.generate

    def generate(**inputs):
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > most:
            raise error
        return original(**inputs)

    monkeypatch.setattr(loaded.model, "generate", generate)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, loaded, monkeypatch, error):
    examples = load("test", 20)
    run(loaded, tmp_path / "roomy", examples, batch_size=8)
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "other"))
    tried = crowded(monkeypatch, loaded, 3, error)
    with pytest.warns(UserWarning, match="out of memory with 8 examples at a time: going on with 4"):
        run(loaded, tmp_path / "crowded", examples, batch_size=8)
    half = len(tried) // 2
    for side in (tried[:half], tried[half:]):  # dense, then pruned: no larger batch is tried twice
        assert side[:3] == [8, 4, 2] and max(side[3:]) == 2 and sum(n for n in side if n <= 3) == 20
    assert lines(tmp_path / "crowded") == lines(tmp_path / "roomy")
    assert measured(tmp_path / "crowded") == measured(tmp_path / "roomy")


def test_an_example_too_large_by_itself_is_an_error_of_its_own(tmp_path, loaded, monkeypatch):
    examples = load("test", 12)
    large, original = examples[5], loaded.processor.__class__.__call__
    sizes = []

    def process(self, *args, **kwargs):
        sizes.append(len(kwargs["text"]))
        if large.question in str(kwargs.get("text")):
            raise MemoryError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(loaded.processor.__class__, "__call__", process)
    examples = [e for e in examples if e is large or e.question != large.question]
    run(loaded, tmp_path, examples)
    (row,) = [row for row in lines(tmp_path) if "error" in row]
    assert row["id"] == large.id and "does not fit in memory by itself" in row["error"]
    assert measured(tmp_path)["examples"] == len(examples) - 1
    assert 4 in sizes[sizes.index(1) + 2 :], "later batches are whole again"


def test_other_errors_are_not_taken_for_short_memory(tmp_path, loaded, monkeypatch):
    crowded(monkeypatch, loaded, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        run(loaded, tmp_path)
    assert out_of_memory(RuntimeError("CUDA error: out of memory")) and not out_of_memory(ValueError("out of memory"))


def test_a_stream_gives_what_a_list_does_and_holds_no_more_than_its_windows(tmp_path, loaded):
    examples, window, alive_now = load("test", 60), 8, []
    most = 0

    class Stream:
        def __iter__(self):
            nonlocal most
            for example in examples:
                copy = replace(example)
                alive_now.append(weakref.ref(copy))
                most = max(most, sum(ref() is not None for ref in alive_now))
                yield copy

    found = run(loaded, tmp_path / "stream", Stream(), window=window)
    run(loaded, tmp_path / "list", examples)
    assert lines(tmp_path / "stream") == lines(tmp_path / "list")
    assert measured(tmp_path / "stream") == measured(tmp_path / "list")
    assert window <= most <= 3 * window  # the one at work, the first, and the one being made
    assert [row["id"] for row in found.rows] == [e.id for e in examples[:window]]
