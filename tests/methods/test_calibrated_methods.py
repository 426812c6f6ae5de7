"""Schedules that are fitted on a few examples: what they measure and decide, in plain loops over eager attention and
masked models, and how the fit is kept."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import prunekit
from commands import arguments, run_main
from prunekit.components.calibrated import FILE, Calibration
from reference import dense_with_hidden_keys, eager_attentions
from zoo.tiny import DEPTH, PADDINGS, make_batch, tiny_model

FAMILIES = ("llava", "qwen2_vl")
CASES = [(family, padding) for family in FAMILIES for padding in PADDINGS]


@functools.cache
def attentions_of(family: str, padding: str) -> list[np.ndarray]:
    return eager_attentions(tiny_model(family, "eager"), make_batch(family, padding, seed=7), {})


def written(folder, curve: np.ndarray, schedule: str, model: torch.nn.Module | None = None):
    """A file with a curve, of a model of 64 zeros or of the one that is given."""
    from prunekit.families import make_family

    mark = torch.zeros(64) if model is None else make_family(model).mark
    Calibration(torch.tensor(curve), mark, {"schedule": schedule, "model": "tiny"}).write(folder / FILE)
    return str(folder / FILE)


# -- FitPrune ----------------------------------------------------------------------------------------------------------


def received(attention: np.ndarray, batch: Any, b: int) -> tuple[list[float], list[float]]:
    """What each visual token of a sample receives in a layer [H, S, S] from visual tokens and from the instruction:
    the largest over heads, averaged over the queries behind it (itself included)."""
    visual = batch.visual[b].nonzero()[:, 0].tolist()
    text = [i for i in range(len(batch.mask[b])) if batch.mask[b, i] and i not in visual and i > visual[0]]
    own, asked = [], []
    for i in visual:
        for queries, total in ((visual, own), (text, asked)):
            seeing = [j for j in queries if j >= i]
            total.append(sum(max(attention[h, j, i] for h in range(len(attention))) for j in seeing) / len(seeing))
    return own, asked


@pytest.mark.parametrize(("family", "padding"), CASES)
def test_fitprune_scores(family, padding, tmp_path):
    model, batch = tiny_model(family), make_batch(family, padding, seed=7)
    curve = np.random.default_rng(0).random((DEPTH - 1, 2, 65)).cumsum(-1)
    schedule = prunekit.create("schedule", "fitprune", weights=written(tmp_path, curve, "fitprune", model))
    with torch.no_grad(), prunekit.method("fitprune", schedule=schedule)(model) as trace:
        model(**batch.inputs)
    for b in range(3):
        own, asked = received(attentions_of(family, padding)[0][b], batch, b)
        expected = np.array(own) * np.array(asked)
        assert np.abs(trace.cuts[0].scores[b, : len(own)].numpy() / expected - 1).max() < 1e-3


@pytest.mark.parametrize(("family", "padding"), CASES)
def test_fitprune_measures_what_attention_loses(family, padding, tmp_path):
    model, batch = tiny_model(family), make_batch(family, padding, seed=7)
    schedule = prunekit.create("schedule", "fitprune")
    with torch.no_grad():
        curve = schedule.measure(model, DEPTH, [batch.inputs, batch.inputs]).numpy()
    assert curve.shape == (DEPTH - 1, 2, 65)
    for layer in range(DEPTH - 1):
        lost = np.zeros((2, 65))
        for b in range(3):
            kinds = received(attentions_of(family, padding)[layer][b], batch, b)
            order = sorted(range(len(kinds[0])), key=lambda i: kinds[0][i] * kinds[1][i])
            for kind, values in enumerate(kinds):
                for step in range(65):
                    share = step / 64 * len(order)
                    whole, part = int(share), share - int(share)
                    gone = sum(values[i] for i in order[:whole])
                    gone += part * values[order[whole]] if part else 0
                    lost[kind, step] += gone / sum(values) / 3
        assert np.abs(curve[layer] - lost).max() < 1e-4


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("keep", [0.9, 0.37, 0.05])
@pytest.mark.parametrize("crossing", [False, True])
def test_fitprune_leaves_the_keep_ratio_by_the_largest_loss_that_does(seed, keep, crossing, tmp_path):
    """ε by bisection, and each layer's share by looking it up, where prunekit has both in closed form."""
    curve = np.random.default_rng(seed).random((DEPTH - 1, 2, 65)).cumsum(-1)
    curve = (curve - curve[..., :1]) / (curve[..., -1:] - curve[..., :1])
    if not crossing:
        curve[:, 1] = curve[:, 0] * 0.9
    schedule = prunekit.create("schedule", "fitprune", weights=written(tmp_path, curve, "fitprune"))

    def left(limit: float) -> list[float]:
        spare = [min(np.interp(limit, curve[layer, kind], np.linspace(0, 1, 65)) for kind in (0, 1))
                 for layer in range(DEPTH - 1)]  # fmt: skip
        return [1 - max(spare[: layer + 1]) for layer in range(DEPTH - 1)]

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle)[-1] < keep else (middle, high)
    cuts = schedule.cuts(DEPTH, keep)
    assert [cut.layer for cut in cuts] == list(range(1, DEPTH)) and cuts[-1].ratio == keep
    # Where the two kinds cross between steps, prunekit takes the larger of their ends.
    apart = max(abs(cut.ratio - share) for cut, share in zip(cuts, left(low), strict=True))
    assert apart < (1 / 64 if crossing else 1e-5)


def test_fitprune_meets_a_budget_and_counts_of_tokens(tmp_path):
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    pruner = prunekit.calibrate(prunekit.method("fitprune"), model, [batch.inputs], tmp_path)
    with torch.no_grad():
        with pruner.replace(keep_tokens=3)(model) as trace:
            model(**batch.inputs)
        assert trace.cuts[-1].kept.sum(1).tolist() == [3, 3, 3] and len(trace.cuts) == DEPTH - 1
        with pruner.replace(budget="mean_tokens:12")(model) as trace:
            model(**batch.inputs)
    visual = trace.tokens_per_layer - (batch.mask & ~batch.visual).sum(1)
    assert (visual.double().mean(0) - 12).abs().max() < 1  # the nearest that whole tokens allow


# -- VTW ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "padding"), CASES)
def test_vtw_measures_the_divergence_of_each_layer(family, padding):
    model, batch = tiny_model(family), make_batch(family, padding, seed=3)
    schedule, reference = prunekit.create("schedule", "withdraw_fitted"), tiny_model(family, "eager")
    with torch.no_grad():
        curve = schedule.measure(model, DEPTH, [batch.inputs])
    dense, _, _ = dense_with_hidden_keys(reference, batch, {})
    for layer in range(1, DEPTH):
        without, _, _ = dense_with_hidden_keys(reference, batch, {layer: batch.visual})
        total = 0.0
        for b in range(3):
            last = batch.mask[b].nonzero()[-1, 0]
            p, q = (np.exp(x[b, last].double().numpy()) for x in (dense, without))
            p, q = p / p.sum(), q / q.sum()
            total += sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)))
        assert abs(float(curve[layer - 1]) - total / 3) < 1e-5
    assert float(curve.max()) > 1e-3


def test_vtw_takes_the_first_layer_below_its_threshold(tmp_path):
    weights = written(tmp_path, np.array([0.5, 0.02, 0.001, 0.3, 0.0001]), "withdraw_fitted")
    for threshold, layer in ((0.6, 1), (0.1, 2), (0.003, 3), (0.0005, 5)):
        schedule = prunekit.create("schedule", "withdraw_fitted", weights=weights, threshold=threshold)
        assert schedule.cuts(DEPTH, 0.0) == (prunekit.Cut(layer, 0.0),)
    with pytest.raises(prunekit.PrunekitError, match=r"threshold=1e-05: the least divergence is 0.0001"):
        prunekit.create("schedule", "withdraw_fitted", weights=weights, threshold=1e-5).cuts(DEPTH, 0.0)


# -- the fit is kept, and belongs to one model -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fitprune", "vtw_fitted"])
def test_a_calibrated_pruner_is_saved_moved_and_loaded(name, tmp_path):
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    options = {} if name == "fitprune" else {"schedule": prunekit.create("schedule", "withdraw_fitted", threshold=10)}
    method = prunekit.method(name, **options)
    fitted = prunekit.calibrate(method, model, [batch.inputs], tmp_path / "first")
    fitted.save(tmp_path / "second")
    (tmp_path / "second").rename(tmp_path / "third")
    cuts = []
    for pruner in (fitted, *(prunekit.Pruner.load(tmp_path / folder) for folder in ("first", "third"))):
        for dtype in (torch.float32, torch.bfloat16):  # the same model, whatever it is loaded in
            pruner.apply(tiny_model("llava").to(dtype)).remove()
        with torch.no_grad(), pruner(model) as trace:
            model(**batch.inputs)
        cuts.append([cut.kept for cut in trace.cuts])
    assert all(torch.equal(a, b) for other in cuts[1:] for a, b in zip(cuts[0], other, strict=True))


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    model, batch = tiny_model("llava"), make_batch("llava")
    method = prunekit.method("fitprune")
    with pytest.raises(prunekit.PrunekitError, match="'fitprune' is not calibrated on this model; task=calibrate"):
        method.apply(model)
    with pytest.raises(prunekit.PrunekitError, match="is not calibrated"):
        method.outline(32, 64, 128)
    fitted = prunekit.calibrate(method, model, [batch.inputs], tmp_path, {"model": "tiny"})
    with pytest.raises(prunekit.PrunekitError, match=r"is of another model \(tiny\)"):
        fitted.apply(tiny_model("llava", seed=1))
    with pytest.raises(prunekit.PrunekitError, match="is for 6 layers, the decoder has 32"):
        fitted.outline(32, 64, 128)
    (tmp_path / "other").write_text("no tensors")
    save_file({"weights": torch.ones(3)}, tmp_path / "fusion.safetensors")
    for schedule, weights, line in (
        ("fitprune", tmp_path / "gone", "no file"),
        ("fitprune", tmp_path / "other", "is not the file of a calibration run"),
        ("fitprune", tmp_path / "fusion.safetensors", "is not the file of a calibration run"),
        ("withdraw_fitted", tmp_path, "is of schedule 'fitprune', not 'withdraw_fitted'"),
    ):
        with pytest.raises(prunekit.PrunekitError, match=line):
            prunekit.create("schedule", schedule, weights=str(weights))
    with pytest.raises(prunekit.PrunekitError, match="has nothing to calibrate"):
        prunekit.calibrate(prunekit.method("fastv"), model, [batch.inputs], tmp_path)
    words = {"input_ids": batch.ids[:, -5:], "attention_mask": torch.ones(3, 5, dtype=torch.long)}
    with pytest.raises(prunekit.PrunekitError, match="show no visual token"):
        prunekit.calibrate(method, model, [words], tmp_path)
    with pytest.raises(prunekit.PrunekitError, match=r"schedule\.threshold must be above 0"):
        prunekit.create("schedule", "withdraw_fitted", threshold=0.0)


def test_on_the_command_line(monkeypatch, tmp_path, model_folder):
    command = [*arguments(model_folder, tmp_path / "fit", "task=calibrate", "method=fitprune"), "calibrate.limit=4"]
    code, out, err = run_main(monkeypatch, *command)
    assert code == 0, err
    assert "calibrated on 4 examples of mini/validation" in out and (tmp_path / "fit" / FILE).exists()
    code, _, err = run_main(monkeypatch, *command)
    assert code == 2 and "holds a calibration" in err and len(err.splitlines()) == 1
    words = ["method=fitprune", f"schedule.weights={tmp_path / 'fit'}", "keep_ratio=0.25"]
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "run", *words))
    assert code == 0, err
    counts = json.loads((tmp_path / "run" / "metrics.json").read_text())["tokens_per_layer"]
    assert len(set(counts)) > 2 and counts == sorted(counts, reverse=True)
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "none", "method=fitprune"))
    assert code == 1 and "is not calibrated on this model" in err and len(err.splitlines()) == 1
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "bad", "task=calibrate"))
    assert code == 1 and "schedule 'progressive' has nothing to calibrate" in err


@pytest.mark.parametrize("name", ["fitprune", "vtw_fitted"])
def test_embedded_models_have_theirs(name):
    from prunekit.models import load_model

    for model in ("mini", "mini-576"):
        prunekit.method(name).apply(load_model(model, device="cpu").model).remove()
