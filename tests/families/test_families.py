"""Every family: removal ≡ masking on tiny random models, against the dense model's own masks.

The default run takes one slice of the product for each family (which slice turns with the family's place in the list);
``pytest -m full`` runs it all.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import pytest
import torch

import prunekit
import zoo
from prunekit.families import EXACT, REFUSED, make_family
from removal import NAMES, PADDINGS, SCHEDULES, TOLERANCE, attentions, difference
from zoo.base import FAMILIES, VIDEO, in_turn
from zoo.qwen_like import GRID, patches

PRODUCT = [case for name in NAMES for case in itertools.product((name,), attentions(name), PADDINGS, SCHEDULES)]
SLICE = [
    (name, attentions(name)[place % len(attentions(name))], PADDINGS[place % 3], SCHEDULES[(place // 2) % 2])
    for place, name in enumerate(NAMES)
]
WITHDRAWN = [
    (name, attentions(name)[place % len(attentions(name))], PADDINGS[(place + 1) % 3], "withdraw")
    for place, name in enumerate(NAMES)
]
VARIANTS = [(name, attentions(name)[0], "left", "progressive", v) for name in NAMES for v in zoo.variants(name)[1:]]


def check(*case: str, layers: tuple[int, ...] = ()) -> None:
    if case[0] in zoo.BROKEN:
        pytest.skip(zoo.BROKEN[case[0]])
    hold(difference(*case, layers=layers))


def hold(found: dict[str, float]) -> None:
    if math.isnan(found["moved"]):
        pytest.skip("the dense model itself is not finite here")
    assert found["moved"] > 1e-3, "hiding changes nothing: the comparison proves nothing"
    assert found["prompt"] < TOLERANCE and found.get("decode", 0.0) < TOLERANCE, found


@pytest.mark.parametrize("case", SLICE, ids="-".join)
def test_removal_equals_masking(case):
    check(*case)


@pytest.mark.parametrize("case", WITHDRAWN, ids="-".join)
def test_withdrawal_equals_masking(case):
    check(*case)


@pytest.mark.parametrize("case", VARIANTS[::7], ids="-".join)
def test_several_images_none_and_video(case):
    check(*case)


@pytest.mark.full
@pytest.mark.parametrize("case", PRODUCT, ids="-".join)
def test_removal_equals_masking_everywhere(case):
    check(*case)


@pytest.mark.full
@pytest.mark.parametrize("case", VARIANTS, ids="-".join)
def test_several_images_none_and_video_everywhere(case):
    check(*case)


@pytest.mark.parametrize("layers", [(3,), (1, 3), (3, 5)], ids=str)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_a_cut_between_layers_that_share_their_choice_of_keys(padding, layers):
    if "mistral_large4_index" not in NAMES:
        pytest.skip("this transformers has no such family")
    check("mistral_large4_index", "sdpa", padding, "progressive", layers=layers)


def test_no_cut_between_a_lender_of_keys_and_a_borrower_that_chooses_among_its_own():
    if "mistral_large4_shared" not in NAMES:
        pytest.skip("this transformers has no such family")
    schedule = prunekit.create("schedule", "one_shot", layer=3)
    with pytest.raises(prunekit.PrunekitError, match="borrows the keys of layer 2"):
        prunekit.Pruner(schedule=schedule).apply(zoo.build("mistral_large4_shared"))


@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "qwen3_5", "inkling2", "cohere_compass"])
def test_late_cuts(name):
    """Between and behind the layers that lend keys, and before the last."""
    if name not in NAMES:
        pytest.skip("this transformers has no such family")
    depth = make_family(zoo.build(name, attentions(name)[0])).depth
    check(name, attentions(name)[0], "left", "progressive", layers=(2, depth - 1))


@pytest.mark.parametrize("name", sorted(zoo.BROKEN))
def test_the_error_of_a_family_that_the_release_cannot_run_comes_through(name):
    """Pruned it fails as it does dense, and is left as it was; so what ``zoo.BROKEN`` says is true."""
    model, batch = zoo.build(name), zoo.batch(name, "left")
    with torch.no_grad(), pytest.raises(AttributeError) as dense:
        model(**batch.inputs)
    with torch.no_grad(), pytest.raises(AttributeError) as pruned, prunekit.Pruner()(model):
        model(**batch.inputs)
    assert str(pruned.value) == str(dense.value)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", sorted(zoo.BROKEN))
def test_a_family_that_the_release_cannot_run_is_exact_once_mended(name, padding):
    hold(difference(name, "sdpa", padding, "progressive", layers=(1, 3), build=zoo.build_mended))


def test_every_exact_family_is_in_the_zoo():
    assert set(EXACT) <= set(zoo.FAMILY.values()) | set(newer_families())
    assert not set(EXACT) & set(REFUSED)


def newer_families() -> list[str]:
    """Those that an older transformers does not have."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as known

    return [name for name in EXACT if name not in known]


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_a_family_without_visual_tokens_in_its_decoder_is_refused_in_one_line(name):
    model = zoo.build(name, zoo.SUPPORTS[name][-1])
    with pytest.raises(prunekit.PrunekitError, match=f"model type '{zoo.FAMILY[name]}'") as caught:
        prunekit.Pruner().apply(model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_sparse_attention_beyond_its_budget_warns_once():
    name = "mistral_large4_beyond"
    if name not in zoo.BEYOND:
        pytest.skip("this transformers has no such family")
    model, batch = zoo.build(name), zoo.batch(name)
    with (
        torch.no_grad(),
        prunekit.Pruner("random", "single", "one_shot")(model),
        pytest.warns(UserWarning, match="8 keys that its sparse attention") as caught,
    ):
        model(**batch.inputs)
        model(**batch.inputs)
    assert len(caught) == 1


def test_reading_attention_leaves_sparse_attention_on():
    """The tap must not hide the implementation's name from code that asks for it: the dense logits stay as they are."""
    for name in ("mistral_large4_beyond", "dots3_note_beyond", "minimax_m3_vl_beyond", "glm5_next_beyond"):
        if name not in zoo.BEYOND:
            continue
        for attn in attentions(name):
            model, batch = zoo.build(name, attn), zoo.batch(name, "left")
            family = make_family(model)
            layer = max(i for i in range(family.depth) if family.attends(i - 1) and i)
            schedule = prunekit.create("schedule", "one_shot", layer=layer)
            with torch.no_grad():
                dense = model(**batch.inputs).logits
                with pytest.warns(UserWarning), prunekit.Pruner(schedule=schedule, keep_ratio=1.0)(model):
                    assert (model(**batch.inputs).logits - dense).abs().max() <= 1e-6, name


def test_an_unknown_model_type_is_pruned_with_a_warning():
    model, batch = zoo.build("llava"), zoo.batch("llava")
    model.config.__class__ = type("Newer", (type(model.config),), {"model_type": "newer_than_prunekit"})
    with pytest.warns(UserWarning, match="newer_than_prunekit"), prunekit.Pruner()(model) as trace, torch.no_grad():
        model(**batch.inputs)
    assert trace.cuts


class TestWhatAModelCannotDo:
    """Said at ``apply``, in one line that names the module, with nothing left on the model."""

    def refused(self, match: str, model, **options):
        with pytest.raises(prunekit.PrunekitError, match=match) as caught:
            prunekit.Pruner("random", "single", **options).apply(model)
        assert "\n" not in str(caught.value)
        assert not any(m._forward_pre_hooks for m in model.modules())

    def test_flex_attention(self):
        model = zoo.build("llava")
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = "flex_attention"
        self.refused("flex_attention", model)

    def test_flash_attention_with_sliding_windows(self):
        model = zoo.build("gemma3")
        model.config.get_text_config()._attn_implementation_internal = "flash_attention_2"
        self.refused("Gemma3Attention of layer 0", model)

    @pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "llama4", "blip-2", "kosmos-2", "gemma4", "cohere_compass"])
    def test_renumbering_without_plain_rotary_positions(self, name):
        if name in NAMES:
            self.refused("positions=renumber", zoo.build(name), positions="renumber")

    @pytest.mark.parametrize("name", ["gemma3n", "glm5_next", "inkling2"])
    def test_merging_where_a_token_has_several_hidden_states(self, name):
        if name in NAMES:
            self.refused("reducer 'merge'", zoo.build(name, attentions(name)[0]), reducer="merge")


@dataclass
class Every(prunekit.Scorer):
    """Every third token, whatever stands there."""

    def score(self, view):
        places = torch.arange(view.alive.shape[1])
        return -(places % 3).float().expand(view.alive.shape)


@pytest.mark.parametrize("name", ["llava", "paligemma", "exaone4_5", "chameleon", "lfm2_vl", "mistral_large4"])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_renumbered_positions_go_on_without_a_gap(name, padding):
    """Decoding a token on the cache equals a prefill that has it from the start."""
    if name not in NAMES:
        pytest.skip("this transformers has no such family")
    model, batch = zoo.build(name), zoo.batch(name, padding)
    word = torch.full((3, 1), 7)
    longer = {k: v for k, v in batch.inputs.items()}
    longer["input_ids"] = torch.cat([longer["input_ids"], word], 1)
    longer["attention_mask"] = torch.cat([longer["attention_mask"], torch.ones_like(word)], 1)
    if "token_type_ids" in longer:
        pytest.skip("a bidirectional prompt sees its last token")
    pruner = prunekit.Pruner(Every(), "single", "progressive", keep_ratio=0.4, positions="renumber")
    with torch.no_grad(), pruner(model, prompt="all"):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        mask = longer["attention_mask"]
        step = model(input_ids=word, attention_mask=mask, past_key_values=cache, use_cache=True).logits[:, -1]
        whole = model(**longer).logits[:, -1]
    assert (step - whole).abs().max() < TOLERANCE


BOTH = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3", "llava_next_video", "video_llava")  # GLM-4V: see below
MIXED = {name: in_turn(FAMILIES[name].image, FAMILIES[name].video) for name in BOTH if name in FAMILIES}
CLIPS = dict(sizes=((4, 4), (4, 8), (8, 4)), keys=GRID, token=VIDEO)
UNEQUAL = {
    "qwen2_5_vl": in_turn(*(patches(frames=n, **CLIPS) for n in (2, 3))),
    "qwen3_vl": in_turn(*(patches(frames=n, split_frames=True, **CLIPS) for n in (2, 3))),
}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(("name", "kind"), [*((n, "mixed") for n in MIXED), *((n, "unequal") for n in UNEQUAL)])
def test_images_beside_videos_and_videos_of_unequal_length(name, kind, padding, monkeypatch):
    """Two media in the first sample, one in each other: an image and a video, or videos of two and of three frames."""
    media = MIXED[name] if kind == "mixed" else UNEQUAL[name]
    monkeypatch.setitem(FAMILIES, name, dataclasses.replace(FAMILIES[name], image=media, variants=("two_images",)))
    check(name, "sdpa", padding, "progressive", "two_images")


def test_a_family_that_itself_cannot_tell_images_from_videos(monkeypatch):
    """GLM-4V marks both by one token, and transformers counts them all for the images: nothing to prune exactly."""
    media = in_turn(FAMILIES["glm4v"].image, FAMILIES["glm4v"].video)
    monkeypatch.setitem(
        FAMILIES, "glm4v", dataclasses.replace(FAMILIES["glm4v"], image=media, variants=("two_images",))
    )
    with torch.no_grad(), pytest.raises(ValueError, match="do not match"):
        zoo.build("glm4v")(**zoo.batch("glm4v", "left", variant="two_images").inputs)
