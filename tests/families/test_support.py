"""The table of model types: the only place that names them, every row complete, and true of the zoo's models."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
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
