"""Every family: ``instruction`` and ``visual`` scores equal plain means over the model's own attention weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

import prunekit
import zoo
from prunekit.families import EXACT, make_family

TOLERANCE = 1e-4
NAMES = [n for n in zoo.NAMES if zoo.FAMILY[n] in EXACT and "eager" in zoo.SUPPORTS[n]]
PRODUCT = list(itertools.product(NAMES, ("instruction", "visual"), ("single", "multi"), ("left", "right")))
# Coprime to the eight kinds of case of a family, so that all of them come by.
SLICE = PRODUCT[::13]


def eager_weights(model, batch) -> dict[int, torch.Tensor]:
    """Attention weights [B, H, S, S] of each layer that has any, from a dense run."""
    found: dict[int, torch.Tensor] = {}
    family = make_family(model)
    handles = []
    for index, module in enumerate(family.attentions):
        if module is not None:
            hook = lambda m, args, out, index=index: found.update({index: out[1]})  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {i: w.double() for i, w in found.items() if w is not None}


def expected_scores(weights: torch.Tensor, batch, scorer: str) -> list[list[float]]:
    """One layer's scores by plain loops. A query sees a key where the model gave it any weight at all."""
    found = []
    real = batch.mask
    for b in range(len(weights)):
        visual = [s for s in range(real.shape[1]) if batch.visual[b, s] and real[b, s]]
        text = [s for s in range(real.shape[1]) if real[b, s] and s not in visual and s > visual[0]]
        rows = visual if scorer == "visual" else text
        scores = []
        for column in visual:
            seen = [weights[b, :, row, column].mean().item() for row in rows if weights[b, :, row, column].any()]
            scores.append(sum(seen) / len(seen) if seen else 0.0)
        found.append(scores)
    return found


def check(name: str, scorer: str, fusion: str, padding: str) -> None:
    if name in zoo.BROKEN:
        pytest.skip(zoo.BROKEN[name])
    hold(name, scorer, fusion, padding, zoo.build)


def hold(name: str, scorer: str, fusion: str, padding: str, build: Callable[[str, str], torch.nn.Module]) -> None:
    reference, batch = build(name, "eager"), zoo.batch(name, padding)
    weights, family = eager_weights(reference, batch), make_family(reference)
    layer = max(i for i in range(1, family.depth) if family.attends(i - 1) and not family.refuses_cuts((i,)))
    assert layer - 1 in weights, "the family returns no attention weights"
    pruner = prunekit.Pruner(scorer, fusion, prunekit.create("schedule", "one_shot", layer=layer))
    model = build(name, "sdpa") if "sdpa" in zoo.SUPPORTS[name] else reference
    with torch.no_grad(), pruner(model) as trace:
        model(**batch.inputs)
    layers = [layer - 1] if fusion == "single" else [i for i in range(layer) if i in weights]
    if not all(weights[i][batch.mask.any(1)].isfinite().all() for i in layers):
        pytest.skip("the dense model itself is not finite here")
    evidence = [expected_scores(weights[i], batch, scorer) for i in layers]
    scores = trace.cuts[0].scores
    for b in range(len(scores)):
        for n in range(len(evidence[0][b])):
            mean = sum(found[b][n] for found in evidence) / len(evidence)
            assert abs(float(scores[b, n]) - mean) < TOLERANCE, (b, n, float(scores[b, n]), mean)


@pytest.mark.parametrize("case", SLICE, ids="-".join)
def test_scores_equal_the_models_own_attention(case):
    check(*case)


@pytest.mark.parametrize("name", sorted(zoo.BROKEN))
def test_scores_of_a_family_that_the_release_cannot_run_once_mended(name):
    hold(name, "instruction", "multi", "left", zoo.build_mended)


@pytest.mark.full
@pytest.mark.parametrize("case", PRODUCT, ids="-".join)
def test_scores_equal_the_models_own_attention_everywhere(case):
    check(*case)
