"""``view.vision`` on every encoder that prunekit reads: whose patches stand behind a token, and what they give it."""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import dataclass

import pytest
import torch

import prunekit
import zoo
from painting import PAINTERS, silent, variants
from prunekit.families import family_of
from prunekit.families.support import SUPPORT
from prunekit.families.vision import vision_of
from zoo.base import VIDEO, layout

READABLE = [
    (name, kind)
    for name, kind in PAINTERS
    if SUPPORT.get("llava" if name == "llava_pixtral" else name, SUPPORT["blip"]).patches is not None
]
CASES = [(name, kind, variant) for name, kind in READABLE for variant in variants(name, kind)]


@dataclass
class Reader(prunekit.Scorer):
    """Keeps the encoder's side of the last prefill."""

    uses_vision = uses_places = uses_values = True
    sites = ("input", "decoder")

    def score(self, view):
        vision = view.vision
        reads = dict(features=vision.features, keys=vision.keys(), attention=vision.attention(), places=view.places)
        reads["values"] = vision.values()
        vars(self).update(reads)
        return view.alive.float()


@dataclass
class Same(prunekit.Reducer):
    """Hands on what the projector reads, unchanged."""

    acts_before_projector = True

    def reduce(self, *, tokens, **rest):
        return prunekit.Reduced(tokens)


def read(model, inputs) -> Reader:
    scorer = Reader()
    with torch.no_grad(), prunekit.Pruner(scorer, "single", "input", keep_ratio=0.5)(model):
        model(**inputs)
    return scorer


@pytest.mark.parametrize(("name", "kind", "variant"), CASES)
def test_a_painted_cell_reaches_the_features_and_keys_of_its_token_alone(name, kind, variant):
    model, draw, batch = silent(name), random.Random(name), zoo.batch(name, "left", variant=variant)
    media = [(b, n) for b, sample in enumerate(layout("left", variant)) for n in range(len(sample))]
    number = draw.randrange(len(media))
    inputs = {k: v.clone() if torch.is_tensor(v) else v for k, v in batch.inputs.items()}
    _, place = PAINTERS[name, kind](inputs, number, draw)
    before, after = read(model, batch.inputs), read(model, inputs)
    places, (sample, medium) = before.places, media[number]
    claimed = (places.medium == medium) & (places.frame == place[0]) & (places.row == place[1])
    claimed &= (places.column == place[2]) & ~places.thumbnail & (torch.arange(len(places.row)) == sample)[:, None]
    assert int(claimed.sum()) == 1
    for field in ("features", "keys", "values"):
        change = (getattr(after, field) - getattr(before, field)).flatten(2).abs().amax(-1)
        assert torch.equal(change > 1e-6, claimed), field


@pytest.mark.parametrize(("name", "kind", "variant"), CASES)
def test_what_the_projector_makes_of_features_is_the_token(name, kind, variant):
    """Half of the tokens go at the input; the others, projected once more, answer as those that were not."""
    if family_of(zoo.build(name)).touches_hidden_between_layers:
        pytest.skip("patches are added to later layers: a made token is refused there")
    model, batch = zoo.build(name), zoo.batch(name, "left", variant=variant)
    plain = prunekit.Pruner("random", "single", "input", keep_ratio=0.5)
    with torch.no_grad():
        with plain(model) as trace:
            expected, kept = model(**batch.inputs).logits, trace.cuts[0].kept
        with plain.replace(reducer=Same())(model) as trace:
            logits = model(**batch.inputs).logits
    assert torch.equal(trace.cuts[0].kept, kept)
    real = batch.inputs["attention_mask"].bool() & ~batch.visual
    assert (logits - expected)[real].abs().max() < 1e-4


def received(weights: torch.Tensor, prefix: int) -> list[float]:
    """What each patch gets in [H, S, S]: from the CLS token, else from all that see it."""
    mean = weights.double().mean(0)
    if prefix:
        return mean[0, prefix:].tolist()
    return (mean.sum(0) / (mean > 0).sum(0)).tolist()


SQUARES = {"internvl": (6, 2), "gemma3": (8, 2), "idefics3": (6, 2), "smolvlm": (6, 2), "llava": (4, 1)}


@pytest.mark.parametrize("name", SQUARES)
def test_attention_is_the_mean_over_a_tokens_patches(name):
    """Against the encoder's own eager weights, in a plain loop over squares of patches."""
    model, batch = zoo.build(name, "eager"), zoo.batch(name, "none")
    family, weights = family_of(model), []
    tower = vision_of(family)
    hook = tower.attentions[tower.read].register_forward_hook(lambda m, a, output: weights.append(output[1]))
    with torch.no_grad():
        model(**batch.inputs)
    hook.remove()
    attention, (side, across) = read(model, batch.inputs).attention, SQUARES[name]
    for b, own in enumerate(torch.cat([w for w in weights if w is not None])[:3]):
        values = received(own, tower.prefix)
        cells = side // across
        for token in range(cells * cells):
            row, column = divmod(token, cells)
            square = [(row * across + i) * side + column * across + j for i in range(across) for j in range(across)]
            expected = sum(values[p] for p in square) / len(square)
            assert float(attention[b, token]) == pytest.approx(expected, abs=1e-6)


def altered(name, **changes):
    """A tiny model whose config says otherwise here and there: dotted names, values."""
    config = copy.deepcopy(zoo.build(name).config)
    for path, value in changes.items():
        *parents, last = path.split("__")
        setattr(functools.reduce(getattr, parents, config), last, value)
    torch.manual_seed(0)
    return type(zoo.build(name))(config).eval()


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
def test_attention_of_pooled_frames_is_the_mean_over_their_patches(name):
    """Frames of 2 × 2 patches become one token each, behind the projector or before it; newlines have zeros."""
    model, batch = zoo.build(name, "eager"), zoo.batch(name, "none", variant="video")
    tower, weights = vision_of(family_of(model)), []
    hook = tower.attentions[tower.read].register_forward_hook(lambda m, a, output: weights.append(output[1]))
    with torch.no_grad():
        model(**batch.inputs)
    hook.remove()
    reader = read(model, batch.inputs)
    shown = reader.places.exists
    means = [sum(received(own, tower.prefix)) / 4 for own in weights[0]]
    assert reader.attention[shown].tolist() == pytest.approx(means, abs=1e-6)
    assert not bool(reader.attention[~shown].any()) and not bool(reader.features[~shown].any())


def test_a_bilinear_pool_weighs_patches_as_the_model_does():
    """LLaVA-OneVision, frames of 3 × 3 patches to 2 × 2: the centre of each token lies a quarter of a patch inside the
    corner patch."""
    model = altered("llava_onevision", vision_config__image_size=12)
    inputs = {
        "input_ids": torch.tensor([[1, *[VIDEO] * (2 * 4 + 1), 5, 6, 7]]),
        "pixel_values_videos": torch.randn(1, 2, 3, 12, 12),
    }
    reader, layer = read(model, inputs), model.config.vision_feature_layer
    with torch.no_grad():
        states = model.model.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states
    for frame, patches in enumerate(states[layer].view(2, 3, 3, -1)):
        rows = 0.75 * patches[[0, 2]] + 0.25 * patches[1]
        cells = 0.75 * rows[:, [0, 2]] + 0.25 * rows[:, 1:2]
        assert (reader.features[0, 4 * frame : 4 * frame + 4] - cells.flatten(0, 1)).abs().max() < 1e-5
    assert not bool(reader.features[0, -1].any())


def first_sample(inputs):
    """The first of a batch's samples, with its pixels."""
    grids = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
    counts = {pixels: int(inputs[grid][0].prod()) for pixels, grid in grids.items() if grid in inputs}
    return {key: value[: counts.get(key, 1)] for key, value in inputs.items()}


def together(name, first):
    """The inputs of an image, of a video, and of a sample with both, ``first`` the one that comes first."""
    image, video = (first_sample(zoo.batch(name, variant=variant).inputs) for variant in ("plain", "video"))
    order = (image, video) if first == "image" else (video, image)
    both = {**image, **video}
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in image:
            both[key] = torch.cat([part[key] for part in order], dim=1)
    return image, video, both


@pytest.mark.parametrize("first", ["image", "video"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "video_llama_3", "llava_onevision", "llava_next_video"])
def test_images_and_videos_in_one_sample(name, first):
    """Each is what it is alone."""
    model = zoo.build(name)
    image, video, both = together(name, first)
    alone, mixed = {"image": read(model, image), "video": read(model, video)}, read(model, both)
    for field in ("features", "attention", "keys"):
        expected = torch.cat([getattr(alone[kind], field) for kind in sorted(alone, reverse=first == "video")], dim=1)
        assert (getattr(mixed, field) - expected).abs().max() < 1e-5, field


def test_what_cannot_be_pooled_is_refused():
    """A largest value is no average; tokens of images are made before the projector, those of videos behind it."""
    model = altered("llava_next_video", spatial_pool_mode="max")
    with pytest.raises(prunekit.PrunekitError, match="pools frames by MaxPool2d"):
        read(model, zoo.batch("llava_next_video", "none", variant="video").inputs)
    model, (_, _, both) = zoo.build("llava_onevision"), together("llava_onevision", "image")
    pruner = prunekit.Pruner("random", "single", "input", keep_ratio=0.5, reducer=Same())
    with torch.no_grad(), pruner(model), pytest.raises(prunekit.PrunekitError, match="one kind at a time"):
        model(**both)


@pytest.mark.parametrize("name", ["mistral3", "llava_pixtral"])
def test_images_in_one_sequence_do_not_count_for_each_other(name):
    """Pixtral's encoder: what a patch receives is a mean over its own image, whatever stands beside it."""
    model, batch = zoo.build(name), zoo.batch(name, "left")
    together = read(model, batch.inputs).attention
    for b in range(3):
        inputs = {k: v[b : b + 1] for k, v in batch.inputs.items()}
        alone = read(model, inputs).attention
        assert (together[b, : alone.shape[1]] - alone[0]).abs().max() < 1e-5


@dataclass
class Named(prunekit.Scorer):
    """Attention of the blocks that it names."""

    block: int = 0

    uses_vision = True
    sites = ("input",)

    def vision_blocks(self, blocks):
        return [self.block]

    def score(self, view):
        vars(self)["attention"] = view.vision.attention(self.block)
        return self.attention


def test_a_component_names_the_blocks_that_it_reads():
    model, batch = zoo.build("llava", "eager"), zoo.batch("llava", "none")
    tower, weights, scorer = vision_of(family_of(model)), [], Named()
    hook = tower.attentions[0].register_forward_hook(lambda m, a, output: weights.append(output[1]))
    with torch.no_grad(), prunekit.Pruner(scorer, "single", "input")(model):
        model(**batch.inputs)
    hook.remove()
    assert (scorer.attention - weights[0].mean(1)[:, 0, 1:]).abs().max() < 1e-6
    with pytest.raises(prunekit.PrunekitError, match="'Named' reads block 9 of the encoder of 'llava', which has"):
        prunekit.Pruner(Named(9), "single", "input").apply(model)
