"""Where tokens claim to stand, against painting: what one cell of one frame shows reaches only the token of that place.

Patches of an encoder see each other, so its attention is silenced here; what is left maps each patch by itself.
"""

from __future__ import annotations

import copy
import random
import threading
from dataclasses import dataclass

import pytest
import torch

import prunekit
import zoo
from painting import PAINTERS, silent, variants
from prunekit.families import family_of
from prunekit.families.geometry import MediaCall, tiles_in_text
from prunekit.tensors.sequences import PromptLayout
from prunekit.views.media import MediaRecord
from zoo.base import layout


@dataclass
class Witness(prunekit.Scorer):
    """Keeps what it sees of the last prefill."""

    uses_places = True
    sites = ("input", "decoder")

    def score(self, view):
        vars(self)["places"] = view.places
        index = view.layout.visual_index
        vars(self)["tokens"] = prunekit.ops.gather_tokens(view.inputs_embeds, index)
        return view.alive.float()


def witness(model, inputs, generate: bool = False, **options):
    """Places and embeddings of the visual tokens of one prefill."""
    scorer = Witness()
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    with torch.no_grad(), prunekit.Pruner(scorer, "single", schedule)(model):
        if generate:
            model.generate(**inputs, max_new_tokens=1, do_sample=False, **options)
        else:
            model(**inputs)
    return scorer.places, scorer.tokens


CASES = [(name, kind, variant) for name, kind in PAINTERS for variant in variants(name, kind)]


@pytest.mark.parametrize(("name", "kind", "variant"), CASES)
def test_only_the_token_that_claims_a_painted_cell_changes(name, kind, variant):
    model, draw = silent(name), random.Random(f"{name} {variant}")
    batch = zoo.batch(name, "left", variant=variant)
    media = [(b, n) for b, sample in enumerate(layout("left", variant)) for n in range(len(sample))]
    places, tokens = witness(model, batch.inputs)
    for number, (sample, medium) in enumerate(media):
        inputs = {k: v.clone() if torch.is_tensor(v) else v for k, v in batch.inputs.items()}
        size, place = PAINTERS[name, kind](inputs, number, draw)
        _, painted = witness(model, inputs)
        changed = (painted - tokens).abs().amax(-1) > 1e-6
        claimed = (places.medium == medium) & (places.frame == place[0])
        claimed &= (places.row == place[1]) & (places.column == place[2]) & ~places.thumbnail
        claimed &= (torch.arange(len(tokens)) == sample)[:, None]
        assert int(claimed.sum()) == 1 and torch.equal(changed, claimed)
        assert bool((places.video[claimed] == (kind == "video")).all())
        assert (places.frames[claimed], places.rows[claimed], places.columns[claimed]) == size
    counts = batch.visual.sum(1)
    own = torch.arange(tokens.shape[1])[None] < counts[:, None]
    assert torch.equal(places.medium >= 0, own) and not bool(places.exists[~own].any())


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_a_thumbnail_has_the_places_of_what_it_shows(name):
    """2 × 2 patches over 4 × 4 cells: each stands at the cell behind its middle."""
    batch = zoo.batch(name, "none")
    model = silent(name)
    places, tokens = witness(model, batch.inputs)
    inputs = {**batch.inputs, "pixel_values": batch.inputs["pixel_values"].clone()}
    inputs["pixel_values"][1, 0, :, 4:, :4] += 3.0  # lower left
    changed = (witness(model, inputs)[1] - tokens).abs().amax(-1) > 1e-6
    assert int(changed.sum()) == 1 and bool(changed[1].any()) and bool(places.thumbnail[changed].all())
    assert (int(places.row[changed]), int(places.column[changed])) == (3, 1)


@pytest.mark.parametrize(("name", "kind", "variant"), [c for c in CASES if c[2] != "text_only_row"])
def test_generate_and_beams_see_the_same(name, kind, variant):
    """``generate`` encodes before the forward pass, and repeats samples for beams; a picture is drawn by the
    processor's output alone."""
    model, batch = zoo.build(name), zoo.batch(name, "left", variant=variant)
    places, _ = witness(model, batch.inputs)
    visual = family_of(model).find_visual(batch.inputs["input_ids"], batch.inputs)
    prompt = PromptLayout.build(batch.inputs["input_ids"], batch.inputs["attention_mask"], visual)
    alone = MediaRecord.of_inputs(family_of(model), batch.inputs).places(prompt)
    beams = 1 if (name, kind) == ("glm4v", "video") else 2  # transformers itself fails at its videos with beams
    again, _ = witness(model, batch.inputs, generate=True, num_beams=beams)
    for field in ("medium", "frame", "row", "column", "frames", "rows", "columns", "thumbnail", "video"):
        assert torch.equal(getattr(again, field), getattr(places, field).repeat_interleave(beams, 0))
        assert torch.equal(getattr(alone, field), getattr(places, field))


def test_images_and_videos_in_one_sample():
    """Qwen2.5-VL: an image, then a video, whose frames have a time."""
    model = silent("qwen2_5_vl")
    images, videos = zoo.batch("qwen2_5_vl", "none"), zoo.batch("qwen2_5_vl", "none", variant="video")
    one = {"image_grid_thw": images.inputs["image_grid_thw"][:1], "video_grid_thw": videos.inputs["video_grid_thw"][:1]}
    pixels = {"pixel_values": images.inputs["pixel_values"][: int(one["image_grid_thw"].prod())]}
    pixels["pixel_values_videos"] = videos.inputs["pixel_values_videos"][: int(one["video_grid_thw"].prod())]
    ids = torch.cat([images.inputs["input_ids"][:1], videos.inputs["input_ids"][:1]], 1)
    types = torch.cat([images.inputs["mm_token_type_ids"][:1], videos.inputs["mm_token_type_ids"][:1]], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **one, **pixels}
    for more in ({}, {"second_per_grid_ts": torch.tensor([0.5])}):
        places, _ = witness(model, {**inputs, **more})
        assert places.medium[0].tolist() == [0] * 12 + [1] * 8
        assert places.video[0].tolist() == [False] * 12 + [True] * 8
        assert places.frame[0, 12:].tolist() == [0] * 4 + [1] * 4
        seconds = places.seconds[0, 12:].tolist()
        assert seconds == [0.0] * 4 + [0.5] * 4 if more else all(s != s for s in seconds)


class TestTilesInText:
    """Idefics 3 and SmolVLM: prompts as their processors write them, ``<fence><row_1_col_2>`` before a tile, a newline
    behind a row, ``<fence><global>`` before the thumbnail, a fence behind it."""

    FENCE, NEWLINE, WHOLE, ROWS = 70, 71, 72, 73

    def prompt(self, *pictures: tuple[int, int]) -> list[int]:
        ids = [1, 5]
        for rows, columns in pictures:
            for row in range(rows):
                for column in range(columns):
                    ids += [self.FENCE, self.ROWS + row * 6 + column, *[90] * 9]
                ids.append(self.NEWLINE)
            ids += [self.NEWLINE] * bool(rows) + [self.FENCE, self.WHOLE, *[90] * 9, self.FENCE, 6]
        return [*ids, 7]

    def media(self, *pictures):
        core = family_of(zoo.build("idefics3")).core
        ids = torch.tensor([self.prompt(*pictures)])
        return tiles_in_text(core, MediaCall("image", {}, ids == 90, ids))

    @pytest.mark.parametrize("grid", [(2, 3), (1, 4), (4, 1), (3, 3), (0, 0)])
    def test_grids_of_tiles(self, grid):
        rows, columns = grid
        first, second = self.media(grid, (2, 2))
        assert (first.rows, first.columns) == ((3 * rows, 3 * columns) if rows else (3, 3))
        assert (second.rows, second.columns) == (6, 6)
        expected = [
            [0, 3 * row + r, 3 * column + c, 0]
            for row in range(rows)
            for column in range(columns)
            for r in range(3)
            for c in range(3)
        ]
        whole = first.tokens.tolist()
        assert whole[: len(expected)] == expected and len(whole) == len(expected) + 9
        assert {token[3] for token in whole[len(expected) :]} == ({1} if rows else {0})

    def test_other_words_are_refused(self):
        core, ids = family_of(zoo.build("idefics3")).core, torch.tensor([[1, 5, *[90] * 9, 6, 7, *[90] * 9, 8]])
        with pytest.raises(prunekit.PrunekitError, match="other words than its processor writes"):
            tiles_in_text(core, MediaCall("image", {}, ids == 90, ids))


class TestUnknown:
    def test_a_family_whose_geometry_is_not_known_is_refused_at_apply(self):
        with pytest.raises(prunekit.PrunekitError, match=r"needs view\.places: .* of 'aya_vision' stand is not known"):
            prunekit.Pruner(Witness(), "single", "one_shot").apply(zoo.build("aya_vision"))

    def test_tiles_whose_arrangement_no_input_says(self):
        model, batch = zoo.build("internvl"), zoo.batch("internvl", "none", variant="two_images")
        ids = batch.inputs["input_ids"]
        visual = batch.visual[0]  # the second picture stands directly behind the first: two tiles of one
        ids[0] = torch.cat([ids[0][~visual][:1], ids[0][visual], ids[0][~visual][1:]])
        with pytest.raises(prunekit.PrunekitError, match="images of several tiles"):
            witness(model, batch.inputs)

    def test_a_component_that_did_not_ask(self):
        @dataclass
        class Silent(prunekit.Scorer):
            def score(self, view):
                return view.places.row.float()

        model, batch = zoo.build("llava"), zoo.batch("llava", "none")
        pruner = prunekit.Pruner(Silent(), "single", "one_shot")
        with torch.no_grad(), pruner(model), pytest.raises(prunekit.PrunekitError, match="uses_places = True"):
            model(**batch.inputs)

    def test_features_made_before_say_nothing(self):
        model, batch = zoo.build("qwen2_vl"), zoo.batch("qwen2_vl", "none")
        inputs = dict(batch.inputs)
        with torch.no_grad():
            features = family_of(model).core.get_image_features(
                inputs.pop("pixel_values"), inputs["image_grid_thw"], return_dict=True
            )
            with pytest.raises(prunekit.PrunekitError, match="give it pixels, not features"):
                witness(model, {**inputs, "mm_encoder_outputs": {"image": features}})


def test_the_model_is_itself_again():
    model = zoo.build("llava_onevision")
    core = family_of(model).core
    with prunekit.Pruner(Witness(), "single", "one_shot")(model):
        assert "get_image_features" in vars(core)
        copied = family_of(copy.deepcopy(model)).core  # a copy is the model without its pruner
        assert "get_image_features" not in vars(copied)
    assert "get_image_features" not in vars(core) and "get_video_features" not in vars(core)


def test_threads_note_their_own_media():
    """Two prompts of other pictures at a time on one pruned model: each prefill sees its own."""
    model = zoo.build("qwen2_vl")
    batches = [zoo.batch("qwen2_vl", "left", variant=variant) for variant in ("two_images", "video")]
    alone = [witness(model, batch.inputs)[0] for batch in batches]
    seen: dict[int, list] = {0: [], 1: []}

    @dataclass
    class Both(Witness):
        def score(self, view):
            kind = int(bool(view.places.video.any()))
            seen[kind].append(view.places.rows.tolist())
            return view.alive.float()

    def run(number):
        with torch.no_grad():
            for _ in range(5):
                model(**batches[number].inputs)

    with prunekit.Pruner(Both(), "single", "one_shot")(model):
        threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {number: [alone[number].rows.tolist()] * 5 for number in (0, 1)}


def test_patches_of_a_block_have_places_too():
    @dataclass
    class Column(prunekit.Scorer):
        sites = ("vision",)
        uses_places = True

        def score(self, view):
            return view.places.column.float()

    model, batch = zoo.build("llava"), zoo.batch("llava", "none")
    schedule = prunekit.create("schedule", "encoder", layers=[0])
    with torch.no_grad(), prunekit.Pruner(Column(), "single", schedule, keep_ratio=0.5)(model) as trace:
        model(**batch.inputs)
    assert trace.cuts[0].kept[0].view(4, 4).int().tolist() == [[0, 0, 1, 1]] * 4
