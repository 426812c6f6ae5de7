"""The table of model types: the only place that names them, every row complete, and true of the zoo's models."""

from __future__ import annotations

import ast
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import prunekit
import zoo
from prunekit.bench.workload import synthetic
from prunekit.cost.towers import tower_of
from prunekit.evaluation.batches import Batcher
from prunekit.families import EXACT, FAMILIES, REFUSED, SUPPORT, Family, family_of, make_family, support_of
from prunekit.families.support import DECODERS, UNKNOWN, VISION_ENCODERS
from prunekit.families.vision import vision_of
from zoo.tiny import tiny_model

PACKAGE = Path(prunekit.__file__).parent
TABLE = PACKAGE / "families" / "support.py"
MODEL_TYPES = {*SUPPORT, *DECODERS, *VISION_ENCODERS}

NAMED_ELSEWHERE = {
    "bench/shapes.py": "the configs of published models, which transformers builds by their type",
    "bench/shape_folder.py": "the shapes for which a processor is built",
    "run/objects.py": "LLaVA's notation, by what its processor shows",
    "data/boxes.py": "notations of boxes, named after the models that write them",
}

# the first entry of the zoo for each model type; an older transformers lacks some
ENTRY = {zoo.FAMILY[name]: name for name in reversed((*zoo.NAMES, *zoo.REFUSED))}


def model_types_in(path: Path) -> Iterator[str]:
    """The strings of a source file that are a known model type."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and node.value in MODEL_TYPES:
            yield f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}: {node.value}"


def rows_with(attribute: str) -> list[str]:
    """Model types in the zoo whose row has an attribute set."""
    return [name for name, row in SUPPORT.items() if getattr(row, attribute) and name in ENTRY]


def test_only_the_table_names_a_model_type():
    others = [path for path in PACKAGE.rglob("*.py") if path != TABLE]
    found = [line for path in others for line in model_types_in(path)]
    assert [line for line in found if line.split(":")[0] not in NAMED_ELSEWHERE] == []
    assert {line.split(":")[0] for line in found} == set(NAMED_ELSEWHERE)  # no exception that is not needed
    assert {line.split(": ")[1] for line in model_types_in(TABLE)} == MODEL_TYPES  # else the search would prove nothing


@pytest.mark.parametrize("name", SUPPORT)
def test_a_row_is_complete(name):
    row = SUPPORT[name]
    assert row.exact != bool(row.refused)
    assert not row.refused or (row == type(row)(refused=row.refused) and "\n" not in row.refused)
    assert row.adapter or not row.decoder
    assert row.patches or not (row.fixed_grid or row.synthetic)
    assert row.encoder_shape or not row.synthetic  # the benchmark runs the encoder apart, and counts it


def test_the_lists_follow_from_the_table():
    assert {*EXACT, *REFUSED} == set(SUPPORT) and len(EXACT) + len(REFUSED) == len(SUPPORT)
    assert all(FAMILIES[name] is SUPPORT[name].adapter for name in FAMILIES)
    assert len(DECODERS) == sum(bool(row.decoder) for row in SUPPORT.values())
    assert support_of("newer_than_prunekit") is UNKNOWN and not UNKNOWN.exact and not UNKNOWN.refused


def test_the_table_and_the_zoo_have_the_same_model_types():
    assert set(zoo.FAMILY.values()) <= set(SUPPORT)
    absent = set(SUPPORT) - set(zoo.FAMILY.values())
    assert not absent & set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)  # an older transformers does not have them


@pytest.mark.parametrize("name", rows_with("exact"))
def test_an_exact_type_gets_the_adapter_of_its_row(name):
    model, row = zoo.build(ENTRY[name], zoo.SUPPORTS[ENTRY[name]][-1]), SUPPORT[name]
    assert model.config.model_type == name
    assert type(make_family(model)) is (row.adapter or Family)
    text = getattr(getattr(model.config, "text_config", None), "model_type", "")
    assert row.decoder == (text if text in DECODERS else "")


@pytest.mark.parametrize("name", rows_with("patches"))
def test_patches_are_laid_out_as_the_row_says(name):
    model, batch = zoo.build(ENTRY[name]), zoo.batch(ENTRY[name])
    family, patches = make_family(model), SUPPORT[name].patches
    tower = vision_of(family)
    assert tower.tiled == patches.tiled
    assert (tower.group > 1) == ((patches.packed and not tower.averages) or bool(patches.joins) or name == "mistral3")
    assert (tower.patches is None) == tower.packed and (patches.packed or bool(tower.patch_size)) == tower.packed
    if patches.reads_output:
        assert tower.read == len(tower.blocks) - 1
    if not (patches.tiled or tower.packed):
        assert batch.visual.sum(1).tolist() == [tower.patches // tower.group] * len(batch.visual)  # one image a sample
    assert (family.grid is not None) == SUPPORT[name].fixed_grid
    assert family.grid in (None, tower.token_grid)


def test_every_vision_encoder_is_that_of_a_type_whose_encoder_is_counted():
    models = [zoo.build(ENTRY[name]) for name in rows_with("encoder_shape")]
    assert set(VISION_ENCODERS) <= {model.config.vision_config.model_type for model in models}


@pytest.mark.parametrize("name", rows_with("synthetic"))
def test_the_benchmark_makes_up_features(name):
    model = zoo.build(ENTRY[name])
    try:
        workload = synthetic(model, 8, 6, 2)
    except prunekit.PrunekitError as error:
        assert "of this transformers takes no image features" in str(error)
        return
    assert model(**workload.inputs()).logits.shape[:2] == (2, 14)


def test_a_new_model_type_is_one_row(monkeypatch):
    model = tiny_model("llava")
    model.config.__class__ = type("Newer", (type(model.config),), {"model_type": "newer_than_prunekit"})
    assert make_family(model).grid is None and tower_of(model.config, 32) is None
    with pytest.raises(prunekit.PrunekitError, match="is not known"):
        vision_of(make_family(model))
    monkeypatch.setitem(SUPPORT, "newer_than_prunekit", SUPPORT["llava"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        family = family_of(model)
    assert family.grid == vision_of(family).grid and tower_of(model.config, 32) is not None
    if Batcher(SimpleNamespace(model=tiny_model("llava"))).shares_features:  # not in older transformers
        assert Batcher(SimpleNamespace(model=model)).shares_features
        assert synthetic(model, 16, 6, 1).visual == 16


TOLERANCE = 1e-4
NAMES = [n for n in zoo.NAMES if zoo.FAMILY[n] in EXACT and "eager" in zoo.SUPPORTS[n]]
PRODUCT = list(itertools.product(NAMES, ("instruction", "visual"), ("single", "multi"), ("left", "right")))
# Coprime to the eight kinds of case of a family, so that all of them come by.
SLICE = PRODUCT[::13]


def eager_weights(model, batch) -> dict[int, torch.Tensor]:
    """Attention weights [B, H, S, S] of each layer that has any, from a dense run."""
    weights: dict[int, torch.Tensor] = {}
    family = make_family(model)
    handles = []
    for index, module in enumerate(family.attentions):
        if module is not None:
            hook = lambda m, args, out, index=index: weights.update({index: out[1]})  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {i: w.double() for i, w in weights.items() if w is not None}


def expected_scores(weights: torch.Tensor, batch, scorer: str) -> list[list[float]]:
    """One layer's scores by plain loops. A query sees a key where the model gave it any weight at all."""
    samples = []
    real = batch.mask
    for b in range(len(weights)):
        visual = [s for s in range(real.shape[1]) if batch.visual[b, s] and real[b, s]]
        text = [s for s in range(real.shape[1]) if real[b, s] and s not in visual and s > visual[0]]
        rows = visual if scorer == "visual" else text
        scores = []
        for column in visual:
            seen = [weights[b, :, row, column].mean().item() for row in rows if weights[b, :, row, column].any()]
            scores.append(sum(seen) / len(seen) if seen else 0.0)
        samples.append(scores)
    return samples


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
            mean = sum(samples[b][n] for samples in evidence) / len(evidence)
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
