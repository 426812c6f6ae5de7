"""What of a forward pass is prompt: answers, drafts, pieces and packed rows never choose what stays, or are refused."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import DynamicCache

import prunekit
import zoo
from reference import dense_with_hidden_keys, hidden_keys
from zoo.tiny import IMAGE, Batch, make_batch, tiny_batch, tiny_model

FAMILIES = ("llava", "qwen2_vl")
SCORERS = ("instruction", "visual", "random", "last", "divprune")
GREEDY = dict(max_new_tokens=6, do_sample=False)


def pruner(scorer: str = "instruction", **options) -> prunekit.Pruner:
    if scorer == "divprune":
        return prunekit.method("divprune", keep_ratio=0.3, positions="keep")
    if scorer == "last":
        return prunekit.method("fastv", keep_ratio=0.3)
    return prunekit.Pruner(scorer, **{"keep_ratio": 0.3, **options})


def with_answer(batch: Batch, seed: int, size: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The batch's inputs with random answers behind the prompts, and their labels."""
    answer = torch.randint(2, 80, (len(batch.ids), size), generator=torch.Generator().manual_seed(seed))
    longer = {name: torch.cat([batch.inputs[name], value], 1) for name, value in _tails(batch, answer).items()}
    labels = torch.cat([torch.full_like(batch.ids, -100), answer], 1)
    return {**batch.inputs, **longer}, labels


def _tails(batch: Batch, answer: torch.Tensor) -> dict[str, torch.Tensor]:
    tails = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    if "mm_token_type_ids" in batch.inputs:
        tails["mm_token_type_ids"] = torch.zeros_like(answer)
    return tails


def kept_sets(trace: prunekit.Trace) -> list[torch.Tensor]:
    return [cut.kept.clone() for cut in trace.cuts]


def same(sets: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(sets) == len(others) and all(torch.equal(a, b) for a, b in zip(sets, others, strict=True))


class TestAnswers:
    @pytest.mark.parametrize("scorer", SCORERS)
    @pytest.mark.parametrize("padding", ["none", "left"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_labels_end_the_prompt(self, family, padding, scorer):
        model, batch = tiny_model(family), make_batch(family, padding)
        with torch.no_grad(), pruner(scorer)(model) as trace:
            model(**batch.inputs)
            alone, moved = kept_sets(trace), []
            for seed in range(4):
                inputs, labels = with_answer(batch, seed)
                model(**inputs, labels=labels)
                assert same(alone, kept_sets(trace))
                trained_past = model.forward(**inputs, labels=labels)  # past the hooks, as PEFT calls it
                assert same(alone, kept_sets(trace)) and trained_past.loss.isfinite()
        if scorer in ("instruction", "last"):  # without labels the answers do choose, else nothing is shown
            for seed in range(4):
                with torch.no_grad(), pruner(scorer)(model) as trace:
                    model(**with_answer(batch, seed)[0])
                    moved.append(not same(alone, kept_sets(trace)))
            assert any(moved)

    def test_the_loss_is_that_of_the_masked_model(self):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        inputs, labels = with_answer(batch, 0)
        with torch.no_grad(), pruner()(model) as trace:
            loss = model(**inputs, labels=labels).loss
        whole = tiny_batch(inputs)
        expected, _, _ = dense_with_hidden_keys(tiny_model("llava", "eager"), whole, hidden_keys(whole, trace.cuts))
        wanted = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        assert abs(loss - wanted) < 1e-4

    @pytest.mark.parametrize("scorer", SCORERS)
    def test_candidate_answers_have_one_prompt_by_its_mask(self, scorer):
        model, batch = tiny_model("llava"), make_batch("llava")
        kept = []
        for seed in range(3):
            inputs, labels = with_answer(batch, seed)
            with torch.no_grad(), pruner(scorer)(model, prompt=labels == -100) as trace:
                model(**inputs)
            kept.append(kept_sets(trace))
        assert same(kept[0], kept[1]) and same(kept[0], kept[2])

    def test_later_turns_of_a_dialogue_do_not_count(self):
        """They have seen the first answer; what is dropped for the first question is gone for the second."""
        model, batch = tiny_model("llava"), make_batch("llava")
        inputs, labels = with_answer(batch, 0, size=6)
        labels[:, -3:] = -100
        with torch.no_grad(), pruner()(model) as trace:
            model(**batch.inputs)
            alone = kept_sets(trace)
            model(**inputs, labels=labels)
        assert same(alone, kept_sets(trace))

    def test_a_budget_of_flops_counts_the_prompt_alone(self):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        used = prunekit.Pruner(schedule=prunekit.create("schedule", "one_shot", layer=2), budget="flops:0.6")
        inputs, labels = with_answer(batch, 0, size=9)
        with torch.no_grad(), used(model) as trace:
            model(**batch.inputs)
            alone = kept_sets(trace)
            model(**inputs, labels=labels)
        assert same(alone, kept_sets(trace))

    def test_what_does_not_fit_is_refused_in_one_line(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        size = batch.ids.shape
        cases = {
            "prompt must be a bool mask": torch.ones(size),
            "prompt has shape": torch.ones(3, 5, dtype=torch.bool),
            "hides whole samples": torch.zeros(size, dtype=torch.bool),
            "behind the end of their prompt": torch.arange(size[1]).expand(size) < 5,
            "'all'": "everything",
        }
        for words, marks in cases.items():
            with (
                torch.no_grad(),
                pruner()(model, prompt=marks),
                pytest.raises(prunekit.PrunekitError, match=words) as e,
            ):
                model(**batch.inputs)
            assert "\n" not in str(e.value)
        with torch.no_grad(), pruner()(model):
            with pytest.raises(prunekit.PrunekitError, match="labels have shape"):
                model(**batch.inputs, labels=batch.ids[:, :-1])
            with pytest.raises(prunekit.PrunekitError, match="have no prompt"):
                model(**batch.inputs, labels=batch.ids)
        with torch.no_grad(), pruner("visual")(model) as trace:  # looks at no words, so none are missed
            model(**batch.inputs)
            alone = kept_sets(trace)
            model(**batch.inputs, labels=batch.ids)
        assert same(alone, kept_sets(trace))


class TestWithoutCache:
    @pytest.mark.parametrize("scorer", SCORERS)
    @pytest.mark.parametrize("padding", ["none", "left"])
    def test_generation_without_a_cache_keeps_the_first_choice(self, padding, scorer):
        model, batch = tiny_model("llava"), make_batch("llava", padding)
        options = dict(**GREEDY, output_logits=True, return_dict_in_generate=True)
        with torch.no_grad(), pruner(scorer)(model) as trace:
            cached = model.generate(**batch.inputs, **options)
            chosen = kept_sets(trace)
            whole = model.generate(**batch.inputs, **options, use_cache=False)
        assert same(chosen, kept_sets(trace))
        assert (torch.stack(cached.logits) - torch.stack(whole.logits)).abs().max() < 1e-4

    def test_a_loop_without_a_cache_is_refused(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad(), pruner()(model):
            model(**batch.inputs)
            longer, _ = with_answer(batch, 0, size=1)
            with pytest.raises(prunekit.PrunekitError, match="keep the cache, or mark the prompt"):
                model(**longer, past_key_values=None)
        with torch.no_grad(), pruner()(model, prompt=torch.ones_like(batch.ids, dtype=torch.bool)) as trace:
            model(**batch.inputs)
        handle = pruner().apply(model)
        handle.prompt = torch.cat([torch.ones_like(batch.ids), torch.zeros(3, 1)], 1).bool()
        with torch.no_grad():
            model(**longer)
        assert same(kept_sets(trace), kept_sets(handle.trace))
        handle.remove()


class TestPieces:
    def test_a_prompt_in_pieces_is_refused(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        pieces = {name: value[:, :-3] for name, value in batch.inputs.items() if name != "pixel_values"}
        rest = batch.ids[:, -3:]
        with torch.no_grad(), pruner()(model):
            cache = DynamicCache()
            model(**pieces, pixel_values=batch.inputs["pixel_values"], past_key_values=cache)
            with pytest.raises(prunekit.PrunekitError, match="in one go"):
                model(input_ids=rest, attention_mask=batch.inputs["attention_mask"], past_key_values=cache)
        with torch.no_grad(), pruner()(model), pytest.raises(ValueError, match=r"in pieces|Chunked prefill"):
            model.generate(**batch.inputs, **GREEDY, prefill_chunk_size=18)

    def test_a_text_prefix_and_then_an_image_is_refused(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad(), pruner()(model):
            cache = model(input_ids=batch.ids[:, :3]).past_key_values
            with pytest.raises(prunekit.PrunekitError, match="new images on top of a KV cache"):
                model(input_ids=batch.ids[:, 3:], pixel_values=batch.inputs["pixel_values"], past_key_values=cache)

    def test_a_prefix_with_an_image_is_used_again_only_if_it_was_the_prompt(self):
        """A cache that was filled by hand: the words behind it could be the question, which the cut has not heard."""
        model, batch = tiny_model("llava"), make_batch("llava")
        prefix = {
            **batch.inputs,
            "input_ids": batch.ids[:, :-3],
            "attention_mask": batch.inputs["attention_mask"][:, :-3],
        }
        whole = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), pruner()(model):
            cache = model(**prefix, past_key_values=DynamicCache()).past_key_values
            with pytest.raises(prunekit.PrunekitError, match="prefill a prompt in one go"):
                model.generate(**whole, past_key_values=cache, **GREEDY)
        with torch.no_grad(), pruner()(model, prompt="all"):
            cache = model(**prefix, past_key_values=DynamicCache()).past_key_values
            assert model.generate(**whole, past_key_values=cache, **GREEDY).shape[1] == batch.ids.shape[1] + 6

    def test_a_second_turn_by_generate_goes_on(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad(), pruner()(model) as trace:
            first = model.generate(**batch.inputs, **GREEDY, return_dict_in_generate=True)
            more = torch.cat([first.sequences, torch.full((3, 4), 7)], 1)
            chosen = kept_sets(trace)
            second = model.generate(
                input_ids=more, attention_mask=torch.ones_like(more), past_key_values=first.past_key_values, **GREEDY
            )
        assert second.shape[1] == more.shape[1] + 6 and same(chosen, kept_sets(trace))


@pytest.mark.parametrize("how", ["positions", "cu_seq_lens_q"])
def test_packed_rows_are_refused(how):
    model, batch = tiny_model("llava"), make_batch("llava")
    size = batch.ids.shape[1]
    packed = {"input_ids": batch.ids[:2].flatten()[None], "pixel_values": batch.inputs["pixel_values"][:2]}
    if how == "positions":
        packed["position_ids"] = torch.arange(size).repeat(2)[None]
    else:
        packed["cu_seq_lens_q"] = torch.tensor([0, size, 2 * size], dtype=torch.int32)
    with torch.no_grad(), pruner()(model), pytest.raises(prunekit.PrunekitError, match="packed into one row"):
        model(**packed)


class TestTextAlone:
    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "gemma3"])
    def test_a_batch_without_images_is_dense(self, family, recwarn):
        model = zoo.build(family)
        ids = torch.randint(4, 80, (2, 9), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        inputs = dict(input_ids=ids, attention_mask=mask)
        if family == "gemma3":
            inputs["token_type_ids"] = torch.zeros_like(ids)
        with torch.no_grad():
            expected, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
            with pruner()(model) as trace:
                recwarn.clear()
                assert torch.equal(model(**inputs).logits, expected)
                assert not trace.cuts and trace.tokens_per_layer[0].tolist() == [6, 9]
                assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        assert not [w for w in recwarn if "prunekit" in str(w.filename)]

    def test_the_trace_of_an_earlier_batch_is_cleared(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad(), pruner()(model) as trace:
            model(**batch.inputs)
            assert trace.cuts
            model(input_ids=batch.ids[:, -5:])
            assert not trace.cuts

    def test_guidance_runs_its_unconditional_pass(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        one = {name: value[:1] for name, value in batch.inputs.items()}
        with torch.no_grad(), prunekit.Pruner(keep_ratio=1.0)(model):
            guided = model.generate(**one, **GREEDY, guidance_scale=1.5)
        with torch.no_grad():
            assert torch.equal(guided, model.generate(**one, **GREEDY, guidance_scale=1.5))

    def test_hidden_placeholders_are_named(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        mask = (batch.ids != IMAGE).long()
        with torch.no_grad(), pruner()(model), pytest.raises(prunekit.PrunekitError, match="hides every placeholder"):
            model(**batch.inputs | {"attention_mask": mask})


class TestEmbeddings:
    @pytest.mark.parametrize("scorer", ["instruction", "random"])
    def test_embeddings_with_marks_equal_token_ids(self, scorer):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        with torch.no_grad():
            embeds = model.get_input_embeddings()(batch.ids)
            features = model.get_image_features(batch.inputs["pixel_values"])
            features = torch.cat(tuple(getattr(features, "pooler_output", features)))
            embeds = embeds.masked_scatter((batch.ids == IMAGE)[..., None], features.to(embeds))
            inputs = dict(inputs_embeds=embeds, attention_mask=batch.inputs["attention_mask"])
            with pruner(scorer)(model, visual=batch.visual) as trace:
                by_embeds = model(**inputs).logits
                tokens = model.generate(**inputs, **GREEDY)
                embedded = kept_sets(trace)
            with pruner(scorer)(model) as trace:
                by_ids = model(**batch.inputs).logits
                expected = model.generate(**batch.inputs, **GREEDY)[:, batch.ids.shape[1] :]
        if scorer == "random":  # seeded by the embeddings, for there are no ids: another draw of as many
            assert [k.sum(1).tolist() for k in embedded] == [k.sum(1).tolist() for k in kept_sets(trace)]
            return
        real = batch.mask[..., None]
        assert same(embedded, kept_sets(trace)) and ((by_embeds - by_ids) * real).abs().max() < 1e-5
        assert torch.equal(tokens, expected)

    def test_marks_of_the_handle_and_marks_that_do_not_fit(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        embeds = torch.randn(3, batch.ids.shape[1], 32, generator=torch.Generator().manual_seed(0))
        handle = pruner().apply(model)
        cases = {
            r"visual=mask": None,
            r"visual must be a bool mask": batch.visual.long(),
            r"visual has shape \(2, ": batch.visual[:2],
            r"visual marks no token": torch.zeros_like(batch.visual),
        }
        for words, marks in cases.items():
            handle.visual = marks
            with torch.no_grad(), pytest.raises(prunekit.PrunekitError, match=words):
                model(inputs_embeds=embeds)
        handle.visual = batch.visual
        with torch.no_grad():
            model(inputs_embeds=embeds)
        assert handle.trace.cuts[-1].kept.sum(1).tolist() == [5, 5, 5]
        handle.remove()

    def test_the_language_model_called_by_itself_is_refused(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        inner = model.model.language_model
        with torch.no_grad(), pruner()(model):
            with pytest.raises(prunekit.PrunekitError, match="called by itself"):
                inner(inputs_embeds=torch.randn(1, 5, 32))
            inner(input_ids=batch.ids[:, -5:])
            model(**batch.inputs)


class TestDrafts:
    @pytest.mark.parametrize("scorer", ["instruction", "random", "last"])
    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "gemma3"])
    def test_drafts_from_the_prompt(self, family, scorer):
        """The last word stands earlier in the prompt, so that the first round drafts what followed it there."""
        model, batch = zoo.build(family), zoo.batch(family)
        one = {name: value[: len(value) // len(batch.visual)] for name, value in batch.inputs.items()}
        one["input_ids"] = one["input_ids"].clone()
        one["input_ids"][:, -1] = one["input_ids"][:, 0]
        with torch.no_grad(), pruner(scorer)(model) as trace:
            greedy, chosen = model.generate(**one, max_new_tokens=12, do_sample=False), kept_sets(trace)
            drafted = model.generate(**one, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
        assert same(chosen, kept_sets(trace)) and torch.equal(greedy, drafted)

    @pytest.mark.parametrize("accepts", [True, False], ids=["accepted", "rejected"])
    @pytest.mark.parametrize("scorer", ["instruction", "random"])
    def test_drafts_of_an_assistant(self, scorer, accepts):
        from transformers import LlamaConfig, LlamaForCausalLM

        model = tiny_model("llava")
        one = {name: value[:1] for name, value in make_batch("llava").inputs.items()}
        torch.manual_seed(0)
        text = LlamaForCausalLM(LlamaConfig(**model.config.text_config.to_dict())).eval()
        if accepts:  # the dense decoder of the same weights: often right
            text.load_state_dict({**{f"model.{k}": v for k, v in model.model.language_model.state_dict().items()},
                                  "lm_head.weight": model.lm_head.weight})  # fmt: skip
        text.generation_config.eos_token_id = None
        with torch.no_grad(), pruner(scorer)(model) as trace:
            greedy, chosen = model.generate(**one, **GREEDY), kept_sets(trace)
            drafted = model.generate(**one, **GREEDY, assistant_model=text)
        assert same(chosen, kept_sets(trace)) and torch.equal(greedy, drafted)

    def test_a_cache_is_cropped_into_the_tail_of_its_prompt(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        tail, mask = batch.ids[:, -3:], batch.inputs["attention_mask"]
        with torch.no_grad(), pruner("random")(model, prompt="all"):
            out = model(**batch.inputs, use_cache=True)
            out.past_key_values.crop(-3)
            again = model(input_ids=tail, attention_mask=mask, past_key_values=out.past_key_values).logits
            assert (again - out.logits[:, -3:]).abs().max() < 1e-5
            with pytest.raises(prunekit.PrunekitError, match="before the last token that was removed"):
                out.past_key_values.crop(-20)


def test_a_mask_of_ones_own_hides_padding_from_the_instruction():
    """A 4-D mask with padding on the right: what it closes is no instruction, as with the 2-D mask."""
    model, batch = tiny_model("llava"), make_batch("llava", "right")
    real = batch.mask
    size = real.shape[1]
    seen = torch.ones(size, size, dtype=torch.bool).tril() & real[:, None, :]
    with torch.no_grad(), pruner()(model) as trace:
        expected = model(**batch.inputs).logits
        chosen = kept_sets(trace)
        for mask in (
            seen[:, None],
            torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None],
        ):
            logits = model(**batch.inputs | {"attention_mask": mask}).logits
            assert same(chosen, kept_sets(trace))
            assert ((logits - expected) * real[..., None]).abs().max() < 1e-4


def test_threads_that_share_a_model_have_a_trace_each():
    model = tiny_model("llava")
    batches = [make_batch("llava", seed=seed, batch=seed + 1) for seed in range(3)]
    handle, rows, ready = pruner().apply(model), {}, threading.Barrier(3)

    def work(number: int) -> None:
        with torch.no_grad():
            model(**batches[number].inputs)
        ready.wait()
        rows[number] = handle.trace.cuts[-1].kept.shape[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows == {0: 1, 1: 2, 2: 3}
    assert handle.trace.cuts  # a thread that ran nothing sees the latest of all
    handle.remove()


def test_a_lost_handle_says_how_to_remove_the_pruner():
    model, batch = tiny_model("llava"), make_batch("llava")
    with torch.no_grad():
        dense = model(**batch.inputs).logits
        pruner().apply(model)
        with pytest.raises(prunekit.PrunekitError, match=r"prunekit.remove\(model\)"):
            pruner().apply(model)
        prunekit.remove(model)
        assert torch.equal(model(**batch.inputs).logits, dense) and "generate" not in vars(model)
    prunekit.remove(model)


@pytest.mark.full
@pytest.mark.parametrize("family", zoo.NAMES)
def test_drafts_on_every_family(family):
    """Drafts give the greedy tokens and kept sets, or one line says why not; where dense drafts do not, nothing is
    asked of pruned ones."""
    model, batch = zoo.build(family, zoo.SUPPORTS.get(family, ("sdpa",))[0]), zoo.batch(family)
    one = {name: value[: len(value) // len(batch.visual)] for name, value in batch.inputs.items()}
    one["input_ids"] = one["input_ids"].clone()
    one["input_ids"][:, -1] = one["input_ids"][:, 0]
    options = dict(max_new_tokens=8, do_sample=False)
    with torch.no_grad():
        try:
            dense = model.generate(**one, **options), model.generate(**one, **options, prompt_lookup_num_tokens=3)
        except Exception as error:
            pytest.skip(f"transformers itself: {type(error).__name__} {str(error)[:80]}")
        if not torch.equal(*dense):
            pytest.skip("transformers' own drafts do not give its greedy tokens here")
        with pruner(schedule=prunekit.create("schedule", "one_shot", layer=2))(model) as trace:
            greedy, chosen = model.generate(**one, **options), kept_sets(trace)
            try:
                drafted = model.generate(**one, **options, prompt_lookup_num_tokens=3)
            except prunekit.PrunekitError as error:
                assert "wound back" in str(error) or "cropped" in str(error)
                return
    assert torch.equal(greedy, drafted) and same(chosen, kept_sets(trace))
