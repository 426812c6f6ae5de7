"""Models inside wrappers are found and pruned as they are alone; copies of a pruned model are plain models."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

import prunekit
from prunekit.families import unwrap
from prunekit.views.trace import TraceRecord
from zoo.tiny import make_batch, tiny_model

PRUNER = prunekit.Pruner(keep_ratio=0.3)
OTHER = prunekit.Pruner("random", keep_ratio=0.6)
batch_of = functools.cache(make_batch)


def logits(model, family="llava"):
    with torch.no_grad():
        return model(**batch_of(family, "left").inputs).logits


def pruned(model, family="llava", pruner=PRUNER):
    with pruner(model) as trace:
        found = logits(model, family)
    assert len(trace.cuts) == 2
    return found


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fsdp(model, **options):
    """FSDP around the whole and around each decoder layer and encoder block."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    kinds = {type(model.get_decoder().layers[0]), type(model.model.vision_tower.encoder.layers[0])}
    device = torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy(kinds), device_id=device, **options)


def fully_shard(model):
    """FSDP 2, which changes modules in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard as shard

    mesh = init_device_mesh("cpu", (1,))
    for layer in model.get_decoder().layers:
        shard(layer, mesh=mesh)
    return shard(model, mesh=mesh)


def checkpointed(model):
    """Activation checkpointing of torch around each layer (as FSDP users have it)."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    layers = model.get_decoder().layers
    for number, layer in enumerate(layers):
        layers[number] = checkpoint_wrapper(layer)
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "FSDP": fsdp,
    "FSDP, original parameters": functools.partial(fsdp, use_orig_params=True),
    "FSDP 2": fully_shard,
    "checkpoint_wrapper": checkpointed,
    "of wrappers": lambda model: nn.DataParallel(nn.parallel.DistributedDataParallel(model)),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_wrapped_model_is_pruned_as_it_is_alone(one_process, family, name):
    if family == "qwen2_vl" and name.startswith("FSDP") and name != "FSDP 2":
        pytest.skip("the policy of this test is LLaVA's")
    model = tiny_model(family)
    dense, want = logits(model, family), pruned(model, family)
    wrapped = WRAPPERS[name](model)
    assert torch.equal(pruned(wrapped, family), want)
    assert torch.equal(logits(wrapped, family), dense)


@pytest.mark.parametrize("name", ["DataParallel", "DistributedDataParallel", "FSDP 2"])
def test_a_pruned_model_may_be_wrapped(one_process, name):
    model = tiny_model("llava")
    want = pruned(model)
    with PRUNER(model) as trace:
        wrapped = WRAPPERS[name](model)
        assert torch.equal(logits(wrapped), want) and len(trace.cuts) == 2


@pytest.mark.parametrize("name", ["DataParallel", "DistributedDataParallel", "FSDP 2"])
def test_a_pruner_on_the_wrapper_is_one_on_the_model(one_process, name):
    model = tiny_model("llava")
    wrapped = WRAPPERS[name](model)
    handle = PRUNER.apply(wrapped)
    with pytest.raises(ValueError, match="pruned already"):
        PRUNER.apply(model)
    handle.remove()
    PRUNER.apply(model).remove()


def test_lora_inside_data_parallel_inside_a_module_of_the_users(one_process):
    peft = pytest.importorskip("peft")
    model = tiny_model("llava")
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    wrapped = nn.Sequential(nn.parallel.DistributedDataParallel(lora))
    assert unwrap(wrapped) is model
    with PRUNER(wrapped) as trace:
        logits(lora)
    assert len(trace.cuts) == 2


def test_an_error_names_the_model_and_not_its_wrapper():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, vocab_size=32, num_attention_heads=2)
    with pytest.raises(ValueError, match="'llama' has no image tokens"):
        PRUNER.apply(nn.DataParallel(LlamaForCausalLM(LlamaConfig(**sizes))))
    with pytest.raises(ValueError, match="'Sequential' has no image tokens"):
        PRUNER.apply(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FSDP 2"])
def test_gradients_of_a_wrapped_pruned_model(one_process, name):
    def slopes(model, called):
        with PRUNER(called):
            found = called(**batch_of("llava", "left").inputs, use_cache=False).logits
            found[batch_of("llava", "left").mask].square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in gradients.items()}

    plain, inner = tiny_model("llava").train(), tiny_model("llava").train()
    if name == "DistributedDataParallel":
        wrapped = nn.parallel.DistributedDataParallel(inner, find_unused_parameters=True)
    else:
        wrapped = fully_shard(inner)
    want, found = slopes(plain, plain), slopes(inner, wrapped)
    assert want.keys() == {n for n, g in found.items() if g.abs().sum() > 0} | (want.keys() & found.keys())
    assert all(torch.allclose(found[n], want[n], atol=1e-6) for n in want)


class TestCompiled:
    """torch.compile of the whole, of parts, in place: hooks act, whatever was compiled before."""

    @pytest.fixture(autouse=True)
    def fresh_graphs(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @staticmethod
    def shallow():
        """Three decoder layers and two encoder blocks: graphs are made for each of them."""
        model = tiny_model("llava")
        for part, config, depth in (
            (model.get_decoder(), model.config.text_config, 3),
            (model.model.vision_tower.encoder, model.config.vision_config, 2),
        ):
            part.layers, config.num_hidden_layers = part.layers[:depth], depth
        return model

    @staticmethod
    def compiled(model, how):
        if how == "wrapped":
            return torch.compile(model, backend="eager")
        if how == "layers in place":
            for layer in model.get_decoder().layers:
                layer.compile(backend="eager")
        else:
            model.model.language_model = torch.compile(model.model.language_model, backend="eager")
        return model

    @pytest.mark.parametrize("how", ["wrapped", "layers in place", "decoder"])
    def test_a_compiled_model_gives_what_the_pruned_one_gives(self, how):
        """Graphs without hooks are there before the pruner is. This one taps no attention, so that hooks alone act."""
        model = self.shallow()
        dense, want = logits(model), pruned(model, pruner=OTHER)
        called = self.compiled(model, how)
        assert torch.equal(logits(called), dense)
        assert torch.equal(pruned(called, pruner=OTHER), want)
        assert torch.equal(logits(called), dense)
        assert torch.equal(pruned(called, pruner=OTHER), want)

    def test_a_graph_made_under_one_pruner_is_not_run_under_another(self):
        model = self.shallow()
        pruners = [prunekit.method("visionzip", keep_tokens=8), PRUNER, OTHER]
        wanted = []
        for pruner in pruners:
            with pruner(model):
                wanted.append(logits(model))
        compiled = torch.compile(model, backend="eager")
        for pruner, want in zip(pruners, wanted, strict=True):
            with pruner(compiled) as trace:
                assert torch.equal(logits(compiled), want) and trace.cuts

    def test_generation_of_a_compiled_model(self):
        model, batch = self.shallow(), batch_of("llava", "left")
        compiled = torch.compile(model, backend="eager")
        with torch.no_grad(), PRUNER(compiled) as trace:
            want = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
            trace.publish(TraceRecord())
            assert torch.equal(compiled.generate(**batch.inputs, max_new_tokens=3, do_sample=False), want)
            assert len(trace.cuts) == 2


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepares_a_pruned_model_and_a_pruner_finds_a_prepared_one(monkeypatch, precision):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    AcceleratorState._reset_state(True)
    try:
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
        model = tiny_model("llava")
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            want = pruned(model)
        handle = PRUNER.apply(model)
        prepared = accelerator.prepare(model)
        assert (logits(prepared) - want.float()).abs().max() < 1e-6 and len(handle.trace.cuts) == 2
        handle.remove()
        assert (pruned(prepared) - want.float()).abs().max() < 1e-6
        assert (pruned(accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)) - want).abs().max() < 0.1
    finally:
        AcceleratorState._reset_state(True)


def replica(module: nn.Module) -> nn.Module:
    """A replica as DataParallel makes one for a second device, with the weights of the first."""
    copied = module._replicate_for_data_parallel()
    copied._parameters = dict(module._parameters)
    copied._modules = {name: part if part is None else replica(part) for name, part in module._modules.items()}
    return copied


def test_a_replica_of_data_parallel_is_refused_in_one_line_and_the_model_goes_on():
    model = tiny_model("llava")
    dense, want = logits(model), pruned(model)
    assert torch.equal(logits(replica(model)), dense)
    with PRUNER(model):
        with pytest.raises(ValueError, match="use DistributedDataParallel") as caught:
            logits(replica(model))
        assert "\n" not in str(caught.value)
        assert torch.equal(logits(model), want)


# -- copies ------------------------------------------------------------------------------------------------------------


def saved(model):
    content = io.BytesIO()
    torch.save(model, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": saved}

COPIED = {
    "attention": ("llava", PRUNER),
    "m-rope": ("qwen2_vl", PRUNER),
    "renumbered": ("llava", prunekit.Pruner(keep_ratio=0.3, positions="renumber")),
    "encoder": ("llava", prunekit.method("visionzip", keep_tokens=8)),
    "tiles": ("llava_next", prunekit.method("fastervlm")),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("what", COPIED)
def test_a_copy_of_a_pruned_model_is_a_plain_model(what, how):
    """Its outputs are the dense ones bit for bit, the original is pruned on, and either takes a pruner of its own."""
    family, pruner = COPIED[what]
    dense = logits(tiny_model(family), family)
    with pruner(reference := tiny_model(family)):
        want = logits(reference, family)
    model = tiny_model(family)  # transformers' own hooks, there from the first forward pass on, cannot be pickled
    handle = pruner.apply(model)
    twin = COPIES[how](model)
    assert b"prunekit" not in pickle.dumps(twin)
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in twin.modules()) == 0
    assert torch.equal(logits(twin, family), dense)
    assert torch.equal(logits(model, family), want) and handle.trace.cuts
    layer = twin.get_decoder().layers[0].self_attn
    assert layer.config is twin.config.get_text_config()  # shared, as in the original
    with pruner(twin) as trace:
        assert torch.equal(logits(twin, family), want) and trace.cuts
    twin.set_attn_implementation("eager")
    assert torch.equal(logits(twin, family), logits(tiny_model(family, "eager"), family))
    handle.remove()
    assert torch.equal(logits(model, family), dense)
    assert not any("__getstate__" in vars(module) for module in model.modules())


def test_a_copy_after_a_forward_pass_and_of_a_part():
    model = tiny_model("llava")
    dense = logits(model)
    with PRUNER(model):
        want = logits(model)
        assert torch.equal(logits(copy.deepcopy(model)), dense)
        part = copy.deepcopy(model.model.language_model)
        assert torch.equal(logits(model), want)
    assert sum(len(module._forward_pre_hooks) for module in part.modules()) == 0


def test_a_copy_of_a_wrapped_and_of_a_timm_model():
    with PRUNER(model := tiny_model("llava")):
        twin = copy.deepcopy(nn.DataParallel(model))
    assert torch.equal(logits(twin), logits(tiny_model("llava")))
    timm = pytest.importorskip("timm")
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2
    ).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = vit(pixels)
        with prunekit.method("tome", keep_ratio=0.5)(nn.DataParallel(vit)) as trace:
            shorter = vit(pixels)
            assert torch.equal(copy.deepcopy(vit)(pixels), dense) and not torch.equal(shorter, dense)
    assert trace.cuts


def test_hooks_of_others_are_copied():
    model = tiny_model("llava")
    model.get_decoder().layers[0].register_forward_hook(print, always_call=True)
    with PRUNER(model):
        twin = copy.deepcopy(model)
    layer = twin.get_decoder().layers[0]
    assert list(layer._forward_hooks.values()) == [print]
    assert set(layer._forward_hooks_always_called) == set(layer._forward_hooks)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_handle_is_not_copied_and_says_so(how):
    handle = PRUNER.apply(tiny_model("llava"))
    with pytest.raises(ValueError, match="copy the Pruner") as caught:
        COPIES[how](handle)
    assert "\n" not in str(caught.value)
    assert copy.deepcopy(PRUNER).keep_ratio == pickle.loads(pickle.dumps(PRUNER)).keep_ratio == 0.3


def test_hooked_modules_show_the_signatures_and_forwards_that_they_have():
    """``generate`` reads which arguments a model takes; accelerate puts a ``forward`` of its own on a module."""
    import inspect

    model = tiny_model("llava")
    layer = model.get_decoder().layers[0]
    layer.forward = functools.partial(type(layer).forward, layer)
    given, signature, dense = layer.forward, inspect.signature(model.model.forward), logits(model)
    with PRUNER(model):
        assert inspect.signature(model.model.forward) == signature
        assert torch.equal(logits(twin := copy.deepcopy(model)), dense)
        assert isinstance(vars(twin.get_decoder().layers[0])["forward"], functools.partial)
    assert layer.forward is given and "forward" not in vars(model.model)
    assert torch.equal(logits(model), dense)
