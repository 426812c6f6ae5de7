"""Quantised decoders: the weights against a plain rule, removal against masking, and the command."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

import folders
import zoo
from commands import run_main
from prunekit.models import load_model
from prunekit.quantization import SCHEMES, quantise
from removal import TOLERANCE, difference
from zoo.base import FAMILIES, construct_default, draw_weights

PACKAGES = {"int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes"}
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(params=SCHEMES)
def scheme(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def wide(attn: str) -> torch.nn.Module:
    """A LLaVA whose widths are multiples of 64, as those of real models are."""
    config = FAMILIES["llava"].config()
    config["text_config"] |= WIDE
    torch.manual_seed(0)
    model = construct_default(AutoConfig.for_model("llava", **config), attn)
    draw_weights(model, 0)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def check_rounding(rounded: torch.Tensor, values: torch.Tensor, scheme: str) -> None:
    """A block with one scale: every value is the nearest that the scheme has."""
    top = values.abs().max()
    if scheme == "nf4":  # quantiles of the normal distribution, with nought among them (Dettmers et al. 2023, app. E)
        levels = torch.tensor([
            -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302,
            0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
        ])  # fmt: skip
        near, off = ((block[:, None] / top - levels).abs().amin(1) for block in (values, rounded))
        assert off.max() < 0.01 and ((rounded - values).abs() <= (near + 0.01) * top).all()  # its kernel rounds, too
        return
    bits = int(scheme[-1])
    steps, scale = rounded / (2 * top / (2**bits - 1)), 2 * top / (2**bits - 1)
    assert (steps - steps.round()).abs().max() < 1e-3
    assert -(2 ** (bits - 1)) <= steps.round().min() and steps.round().max() <= 2 ** (bits - 1) - 1
    assert (rounded - values).abs().max() <= 0.501 * scale


def test_weights_are_rounded_block_by_block_and_nothing_else_changes(scheme):
    plain, small = wide("sdpa"), quantise(wide("sdpa"), scheme)
    before, after = (m.model.language_model.layers[1].mlp.down_proj for m in (plain, small))
    with torch.no_grad():
        weight, rounded = before(torch.eye(128)).T, after(torch.eye(128)).T
    size = {"int8": 128, "int4": 32, "nf4": 64}[scheme]
    for block, values in zip(rounded.reshape(-1, size), weight.reshape(-1, size), strict=True):
        check_rounding(block, values, scheme)
    assert not torch.allclose(rounded, weight, atol=1e-3)
    outside = [n for n, p in plain.named_parameters() if ".layers." not in n or "vision" in n]
    others = dict(small.named_parameters())
    assert len(outside) > 20 and all(torch.equal(plain.get_parameter(n), others[n]) for n in outside)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_removal_equals_masking(scheme, family, padding):
    def build(name: str, attn: str) -> torch.nn.Module:
        return quantise(wide(attn) if scheme == "nf4" else zoo.build(name, attn), scheme)

    if scheme == "nf4" and family != "llava":
        pytest.skip("the zoo's widths are no multiples of 64")
    rounded = difference(family, "sdpa", padding, "progressive", build=build)
    assert rounded["moved"] > 0.05 and max(rounded["prompt"], rounded["decode"]) < TOLERANCE


@pytest.fixture
def fixed(tmp_path):
    """What all commands here are called with: the wide model, and a question about a picture."""
    folder = folders.save("llava", tmp_path / "model")
    wide("sdpa").save_pretrained(folder)
    Image.radial_gradient("L").save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "question": "what?", "answers": ["x"]}))
    data = ("data=jsonl", f"data.path={tmp_path / 'rows.jsonl'}", "data.max_new_tokens=2", "logger.mode=disabled")
    return ("model=hf", f"model.name={folder}", *data, f"hydra.run.dir={tmp_path / 'run'}", "device=cpu")


def test_through_the_command(scheme, monkeypatch, tmp_path, fixed):
    code, _, err = run_main(monkeypatch, *fixed, f"model.quantization={scheme}", "keep_ratio=0.5")
    assert code == 0, err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    plain, small = (load_model(str(tmp_path / "model"), device="cpu", quantization=q) for q in (None, scheme))
    assert small.digest == f"{plain.digest}-{scheme}" and small.digest in str(run)  # other answers are not taken
    assert ("Linear4bit" in {type(m).__name__ for m in small.model.modules()}) == (scheme == "nf4")


def refused(monkeypatch, *words: str) -> str:
    code, _, err = run_main(monkeypatch, *words)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code in (1, 2) and len(lines) == 1 and "Traceback" not in err
    return lines[0]


def test_what_cannot_be_done_is_one_line(monkeypatch, fixed):
    assert "Did you mean 'int8'" in refused(monkeypatch, *fixed, "model.quantization=int7")
    words = ("task=train", "train=fusion", "model.quantization=int8")
    assert "quantised weights are not trained" in refused(monkeypatch, *fixed, *words)
    for scheme, package in PACKAGES.items():
        for module in (package, "torchao.quantization"):
            monkeypatch.setitem(sys.modules, module, None)
        line = refused(monkeypatch, *fixed, f"model.quantization={scheme}")
        assert f"model.quantization={scheme} needs {package}: pip install 'prunekit[quantization]'" in line


def test_widths_that_do_not_fit_are_refused():
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match=r"nf4 does not fit this model: \w+ has 32 inputs, no multiple of 64"):
        quantise(zoo.build("llava"), "nf4")


def test_a_model_that_is_quantised_already(monkeypatch):
    model = zoo.build("llava")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match="are quantised already"):
        quantise(model, "int8")
