"""The embedded model's training: its parts against plain versions, and a run that is cut and resumed."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunekit.data import load
from prunekit.data.questions import questions
from prunekit.data.render import render
from prunekit.data.scene import draw_scene
from prunekit.data.words import TASKS
from tools.embedded import decoder, joint, train
from tools.embedded.align import see
from tools.embedded.asking import ASKED, Asker, Forms, answer_right
from tools.embedded.config import Size, arrange, build_model, resized, start_words
from tools.embedded.decoder import Plan, Trainer
from tools.embedded.drawn import WEIGHTS, drawn_tokens, label_tokens, patch_words
from tools.embedded.forward import decoder_layer
from tools.embedded.lessons import LESSONS, lessons
from tools.embedded.packing import IGNORE
from tools.embedded.pool import LABELS, scene_labels, shown
from tools.embedded.probe import prepare
from tools.embedded.processor import CELL_NAMES, build_processor, build_tokenizer, piece
from tools.embedded.progress import optimisers
from tools.embedded.tower import Heads, augment, pixels

TINY = Size(layers=2, tower_layers=2)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_patches_are_labelled_by_what_covers_most_of_them():
    """Against a loop over pixels."""
    for number in range(3):
        scene = draw_scene(f"labels/{number}")
        things = shown(scene)
        labels = scene_labels([scene], 16)
        for place in range(144):
            top, left = 16 * (place // 12), 16 * (place % 12)
            cover = [0] * len(things)
            for y in range(top, top + 16):
                for x in range(left, left + 16):
                    for index, one in enumerate(things):
                        cover[index] += one.box[0] <= x < one.box[2] and one.box[1] <= y < one.box[3]
            best = max(range(len(things)), key=lambda index: (cover[index], -index))
            expected = things[best] if cover[best] > 0.2 * 256 else None
            told = [labels[name][0, place].item() for name in LABELS]
            if expected is None:
                assert told == [0] * 5
            else:
                assert told == [
                    expected.thing + 1, expected.hue + 1, expected.order, expected.twin, expected.fellow
                ]  # fmt: skip


def test_twins_and_fellows_are_counted_in_reading_order():
    scene = draw_scene("twins/0")
    things = {one.box: one for one in shown(scene)}
    for item in scene.items:
        before = [other for other in scene.items if other.cell <= item.cell]
        assert things[item.box].twin == min(3, sum(other.kind == item.kind for other in before))
        assert things[item.box].fellow == min(3, sum(other.color == item.color for other in before))


def test_drawn_tokens_without_doubt_are_the_sum_of_the_words(tokenizer):
    labels = scene_labels([draw_scene("drawn/a"), draw_scene("drawn/b")], 16)
    words, tokens = torch.randn(len(tokenizer), 8), label_tokens(tokenizer)
    found = drawn_tokens(labels, words, tokens, 0.0, torch.Generator().manual_seed(0))
    named = patch_words(labels)
    for row in range(2):
        for place in range(0, 144, 7):
            total = torch.zeros(8)
            for name, token in tokens.items():
                label = named[name][row, place].item()
                if label:
                    total += WEIGHTS[name] * words[token[label - 1]]
            torch.testing.assert_close(found[row, place], total)
    cell = tokenizer.convert_tokens_to_ids(piece(CELL_NAMES[5]))
    assert tokens["cell"][named["cell"][0, 12 * 4 + 4] - 1] == cell  # row 4 and column 4 of 12 lie in cell (1, 1)


def test_lessons_are_true(tokenizer):
    scene = draw_scene("lessons/3")
    where = {f"row {r} column {c}": (i, j) for i, r in enumerate(("one", "two", "three", "four"))
             for j, c in enumerate(("one", "two", "three", "four"))}  # fmt: skip
    for question in lessons(scene, "where", random.Random(0)):
        assert scene.at[where[question.answers[0]]].kind == question.text.split()[-1]
    for question in lessons(scene, "on", random.Random(0)):
        (item,) = scene.by_color[question.text.split()[-1]]
        assert item.kind == question.answers[0]
    steps = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
    for question in lessons(scene, "beside", random.Random(0)):
        way = next(way for way in steps if f"is {way} " in question.text)
        cell = where[question.text[question.text.index("row ") :]]
        assert scene.at[cell[0] + steps[way][0], cell[1] + steps[way][1]].kind == question.answers[0]
    for question in lessons(scene, "option", random.Random(0)):
        options, wanted = question.text.split(" which is the ")
        assert f"{question.answers[0]}) {wanted}" in options
    for question in lessons(scene, "letter", random.Random(0)):
        words = question.text.split()
        (sign,) = [sign for sign in scene.signs if sign.color == words[-2]]
        assert sign.code[("one", "two", "three").index(words[2])] == question.answers[0]
    assert all(lessons(scene, lesson, random.Random(0)) for lesson in LESSONS)


def test_rows_hold_whole_questions_and_their_answers(tokenizer):
    asker = Asker(tokenizer, Forms(long=0.3, dialogue=0.3))
    scenes = [draw_scene("rows/a"), draw_scene("rows/b")]
    packed = asker.rows([[scene] for scene in scenes], random.Random(2), dict.fromkeys(ASKED, 1.0))
    asked = packed.labels != IGNORE
    logits = torch.nn.functional.one_hot(packed.labels[asked], len(tokenizer)).float()
    assert all(right for _, right in answer_right(logits, packed))
    wrong = logits.clone()
    wrong[0] = -wrong[0]
    assert sum(not right for _, right in answer_right(wrong, packed)) == 1
    for row in range(2):
        for number in range(len(packed.tasks[row])):
            own = packed.segment[row] == number
            assert own.any(dim=1).sum() == 1, "a question lies in one chunk"
            assert packed.position[row][own].tolist() == list(range(int(own.sum())))
    pairs = asker.rows([scenes], random.Random(2), dict.fromkeys(TASKS, 1.0))
    text = tokenizer.decode(pairs.ids[0].flatten())
    assert "in the first picture" in text and "in the second picture" in text
    assert questions(scenes[0], "comparison", random.Random(0))


def test_every_parameter_has_one_optimiser():
    model = build_model(TINY)
    modules = {nn.ModuleList([model.model.language_model, model.lm_head]): 1.0, model.model.vision_tower: 0.5}
    groups = [group["params"] for optimizer in optimisers(modules, 1e-3) for group in optimizer.param_groups]
    given = [id(p) for params in groups for p in params]
    wanted = [id(p) for module in modules for p in module.parameters()]
    assert len(given) == len(set(given)) and set(given) == set(wanted)


@pytest.mark.parametrize("order", [(None, None, 0, 1, 2, 3, None), (0, 3, None, None)])
def test_layers_in_another_order_compute_what_they_did_and_new_ones_nothing(order):
    source, plain = (build_model(replace(TINY, layers=4), seed=3).eval() for _ in range(2))
    plain.model.language_model.layers = nn.ModuleList(
        source.model.language_model.layers[i] for i in order if i is not None
    )
    arranged = arrange(source, order, replace(TINY, layers=len(order))).eval()
    ids = torch.randint(10, 100, (2, 12))
    with torch.no_grad():
        wanted = plain(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(arranged(input_ids=ids, use_cache=False).logits, wanted, atol=1e-5, rtol=0)
    new = arranged.model.language_model.layers[order.index(None)]
    assert new.self_attn.q_proj.weight.abs().sum() > 0  # it can learn
    for name, value in source.model.vision_tower.state_dict().items():
        assert torch.equal(arranged.model.vision_tower.state_dict()[name], value)


@pytest.fixture(scope="module")
def pool():
    scenes = [draw_scene(f"pool/{number}") for number in range(24)]
    return scenes, np.stack([np.asarray(render(scene)) for scene in scenes])


def test_shrunk_images_give_the_tokens_of_the_tower_at_that_size(pool):
    model, heads = build_model(TINY).eval(), Heads(TINY.tower_width)
    scenes, images, index = pool[0][:2], pool[1][:2], np.array([0, 1])
    with torch.no_grad():
        visual, loss, _ = see(model, heads, images, index, scenes, scene_labels(scenes, 24))
        small = F.interpolate(pixels(images), (128, 128), mode="bicubic", antialias=True).clamp(-1, 1)
        small = augment(small, index)
        wanted = model.get_image_features(small, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(visual, torch.stack(list(wanted)), atol=0.02, rtol=0.02)  # one of them in bf16
    assert visual.shape == (2, 64, TINY.width) and loss.isfinite()


def test_the_joint_stage_trains_on_pairs_and_shrunk_images(pool, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(joint, "HELD", 4)
    plan = Plan(steps=3, batch=2, ripen_layer=1, patience=0, sighted=1.0, pairs=0.5, coarse=0.5, crowded=0.5, further=3)
    model = build_model(TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = joint.JointTrainer(model, tokenizer, tmp_path, plan, pool, Heads(TINY.tower_width))
    trainer.layer = decoder_layer  # not compiled
    shapes = []
    monkeypatch.setattr(joint, "see", lambda *args: shapes.append(args[-1]["thing"].shape) or see(*args))
    trainer.run(every=1)
    assert {shape[1] for shape in shapes} > {144}  # one size is the whole one
    assert shapes[1::2] == [(3, 144)] * 3  # further images
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("language_model.layers.1.self_attn", "vision_tower", "multi_modal_projector", "embed_tokens", "lm_head")
    assert all(any(part in name for name in moved) for part in parts)


def test_text_sees_the_image_only_in_the_layers_of_the_step(tmp_path, tokenizer, monkeypatch):
    """Blind in the front at first, at the end in no layer; glances only in the front, and their answers apart."""
    monkeypatch.setattr(decoder, "answer_right", lambda logits, packed: [("count", True)])
    seen: list[bool] = []

    def layer(layer, x, cos, sin, masks, look):
        seen.append(masks.shown == masks.image.shape[-1])
        return decoder_layer(layer, x, cos, sin, masks, look)

    plans = {"blind": Plan(blind={1: 1.0}, sighted=0.5), "glance": Plan(glance=1.0, glance_below=1, sighted=1.0)}
    wanted = {"blind": [False, True] * 2 + [True, True] * 2, "glance": [True, False] * 4}
    for name, plan in plans.items():
        plan = replace(plan, steps=4, batch=2, ripen_layer=1, patience=0)
        trainer = Trainer(build_model(TINY), tokenizer, tmp_path / name, plan, name)
        trainer.layer = layer
        trainer.run()
        assert seen == wanted[name], name
        assert (trainer.recent["count"] > 0, trainer.glanced["count"] > 0) == (name == "blind", name == "glance")
        seen.clear()


def test_what_close_hands_on_is_its_start_and_end_averaged(tmp_path, monkeypatch):
    states = {stage: build_model(Size(), seed).state_dict() for seed, stage in enumerate(("glance", "close"))}
    monkeypatch.setattr(train, "need", lambda folder, stage: {"step": 7, "model": states.get(stage)})
    name, found = "model.language_model.layers.{}.self_attn.o_proj.weight", train.end_of(tmp_path, "close").state_dict()
    for index, place in enumerate((0, *range(2, 12), None)):
        before = 0.0 if place is None else states["glance"][name.format(place)]
        wanted = 0.7 * before + 0.3 * states["close"][name.format(index)]
        torch.testing.assert_close(found[name.format(index)], wanted)
    wanted = 0.7 * states["glance"]["lm_head.weight"] + 0.3 * states["close"]["lm_head.weight"]
    torch.testing.assert_close(found["lm_head.weight"], wanted)


def test_the_widest_model_goes_on_from_the_stage_before_it(tmp_path, monkeypatch):
    told = build_model(Size(), 3).state_dict()
    monkeypatch.setattr(train, "need", lambda folder, stage: {"front": {"model": told}}[stage])
    wide, name = train.start_of(tmp_path, "enlarge"), "embeddings.position_embedding.weight"
    assert wide.config.image_seq_length == 576
    assert {key for key, value in wide.state_dict().items() if not torch.equal(value, told[key])} == {
        f"model.vision_tower.{name}"
    }


def test_a_wider_model_sees_every_place_as_it_was(tmp_path):
    """Interpolated positions are those of the nearest old place where they change evenly; pictures resized."""
    model = build_model(TINY)
    embedding = model.model.vision_tower.embeddings.position_embedding
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    with torch.no_grad():
        embedding.weight[1:, 0], embedding.weight[1:, 1] = rows.flatten(), columns.flatten()
    wide = resized(model, replace(TINY, image=384))
    found = wide.model.vision_tower.embeddings.position_embedding.weight.detach()
    assert torch.equal(found[0], embedding.weight[0])
    places = found[1:, :2].reshape(24, 24, 2)[3:-3, 3:-3]  # away from the edge, beyond which nothing goes on
    exact = (torch.arange(24.0)[3:-3] + 0.5) / 2 - 0.5  # centres of the small patches among the large ones
    torch.testing.assert_close(places[..., 0], exact[:, None].expand(18, 18), atol=0.05, rtol=0)
    torch.testing.assert_close(places[..., 1], exact[None].expand(18, 18), atol=0.05, rtol=0)
    example = load("validation", 1)[0]
    bench, processor = prepare(wide, build_tokenizer(), [example]), build_processor(384, 16)
    shown = processor.image_processor(example.image(), return_tensors="pt")["pixel_values"]
    apart = (pixels(np.asarray(example.image())[None], 384) - shown).abs()  # the processor resizes whole numbers
    assert apart.max() < 0.2 and (apart > 0.02).float().mean() < 0.001
    with torch.no_grad():
        hidden = wide.model.vision_tower(shown, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert bench.features.shape == hidden.shape == (1, 576, 192)
    torch.testing.assert_close(bench.features, hidden, atol=0.1, rtol=0)
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in example.regions)
    assert bench.regions.sum().item() * 64 == pytest.approx(covered)  # patches of eight pixels of the scene


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, tokenizer):
    def trainer(folder):
        model = build_model(TINY)
        start_words(model)
        plan = Plan(steps=4, batch=2, ripen_layer=1, patience=1)
        made = Trainer(model, tokenizer, folder, plan, "drawn")
        made.layer = decoder_layer  # not compiled
        return made

    torch.manual_seed(0)
    whole = trainer(tmp_path / "whole")
    whole.run(every=1)
    torch.manual_seed(0)
    trainer(tmp_path / "cut").run(until=2)
    again = trainer(tmp_path / "cut")
    again.restore()
    assert again.step == 2
    again.run()
    for (name, one), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert (tmp_path / "whole" / "log.jsonl").read_text().count("\n") == 4


def test_a_stage_steps_as_a_plain_loop_does(tmp_path):
    """The loop that all training shares, against its steps written out: rates, clipping, both optimisers."""
    from tools.embedded.progress import set_rate
    from tools.embedded.stage import Stage

    def made():
        torch.manual_seed(4)
        model = nn.ModuleDict({"q_proj": nn.Linear(6, 6), "head": nn.Linear(6, 3)})
        return model, optimisers({model: 1.0}, 1e-2)

    def loss_of(model, step):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        return 30 * model["head"](model["q_proj"](x)).square().mean()

    (ours, theirs), done, norms = (made(), made()), [], []
    stage = Stage(
        "tiny",
        {"model": ours[0]},
        ours[1],
        lambda step: loss_of(ours[0], step),
        lambda step: done.append((step, stage.norm)),
        steps=6,
        start=1,
        warmup=2,
        clipped=list(ours[0].parameters()),
    )
    stage.run(tmp_path)
    for step in range(1, 6):
        for optimizer in theirs[1]:
            set_rate(optimizer, step, 6, 2)
            optimizer.zero_grad()
        loss_of(theirs[0], step).backward()
        norms.append(nn.utils.clip_grad_norm_(theirs[0].parameters(), 1.0).item())
        for optimizer in theirs[1]:
            optimizer.step()
    assert [step for step, _ in done] == [2, 3, 4, 5, 6]
    assert [norm for _, norm in done] == norms and max(norms) > 1
    for a, b in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stage_whose_loss_is_not_a_number_stops_with_its_step(tmp_path):
    from tools.embedded.stage import Stage

    model = nn.Linear(2, 2)
    loss = lambda step: model.weight.sum() * (torch.nan if step == 1 else 1.0)  # noqa: E731
    stage = Stage(
        "tiny", {"model": model}, [torch.optim.SGD(model.parameters(), 0.1)], loss, lambda done: None, steps=3
    )
    stage.optimizers[0].param_groups[0]["rate"] = 0.1
    with pytest.raises(ValueError, match=r"stage tiny, step 2: the loss is nan .*no checkpoint yet"):
        stage.run(tmp_path)
