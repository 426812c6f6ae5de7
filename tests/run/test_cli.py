"""The command line: a run's files, sweeps, users' methods, and bad input in one clear line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

import prunekit
from commands import arguments, run_main
from paths import ROOT
from prunekit.run.config import parse
from prunekit.run.config_store import register_options
from prunekit.run.words import CONF


def test_a_run_writes_what_the_contract_names(monkeypatch, tmp_path, model_folder):
    code, out, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "run"))
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {
        "schema", "method", "model", "data", "seed", "examples", "accuracy", "accuracy_ci", "dense_accuracy",
        "tokens_per_layer", "flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio",
    } <= metrics.keys()  # fmt: skip
    assert metrics["method"] == {
        "name": None, "scorer": "instruction", "fusion": "multi", "schedule": "progressive", "selector": "topk",
        "reducer": "drop", "positions": "keep", "keep_ratio": 0.5, "layers": [2, 3],
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == metrics["examples"] == 14
    for row in rows:
        assert {
            "id", "task", "question", "answers", "prediction", "dense_prediction", "correct", "dense_correct", "kept",
        } <= row.keys()  # fmt: skip
        assert len(row["kept"]) == 72
    text = rows[0]["tokens_per_layer"][0] - 144
    assert rows[0]["tokens_per_layer"][2:4] == [text + 102, text + 72]
    share = sum(sum(r["tokens_per_layer"]) for r in rows) / sum(6 * r["tokens_per_layer"][0] for r in rows)
    assert metrics["kv_ratio"] == pytest.approx(share)
    assert (tmp_path / "run" / "kept.png").stat().st_size > 10_000
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml").exists()
    for word in ("attribute", "mean", "FLOPs", "KV cache", "prefill time"):
        assert word in out


def test_resume_keeps_what_is_done_and_refuses_another_configuration(monkeypatch, tmp_path, model_folder):
    run_dir = tmp_path / "run"
    assert run_main(monkeypatch, *arguments(model_folder, run_dir, "resume=true"))[0] == 0
    path = run_dir / "predictions.jsonl"
    lines, metrics = path.read_text().splitlines(), json.loads((run_dir / "metrics.json").read_text())
    kept = [json.dumps({**json.loads(line), "prediction": "from before"}) for line in lines[:5]]
    path.write_text("\n".join([*kept, lines[5][:20]]))  # killed in the middle of a line
    assert run_main(monkeypatch, *arguments(model_folder, run_dir, "resume=true"))[0] == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 14 and [r["prediction"] for r in rows].count("from before") == 5
    assert json.loads((run_dir / "metrics.json").read_text())["accuracy"] == metrics["accuracy"]
    code, _, err = run_main(monkeypatch, *arguments(model_folder, run_dir, "resume=true", "keep_ratio=0.25"))
    assert code == 1 and "another configuration" in err


def test_a_sweep_goes_on_past_a_failed_job_and_names_it(monkeypatch, tmp_path, model_folder):
    fixed = arguments(model_folder, tmp_path / "unused")
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "schedule=one_shot", "schedule.layer=2,99,3", "keep_ratio=0.5"]
    code, out, err = run_main(monkeypatch, "-m", *fixed, *sweep)
    assert code == 1
    assert "2 of 3 jobs finished" in out and "failed: job 1" in err and "layer 99" in err
    assert (tmp_path / "sweep" / "0" / "metrics.json").exists() and (tmp_path / "sweep" / "2" / "metrics.json").exists()


def test_layer_selection(monkeypatch, tmp_path, model_folder):
    run_dir = tmp_path / "layers"
    code, out, err = run_main(monkeypatch, *arguments(model_folder, run_dir, "experiment=layer_selection"))
    assert code == 0, err
    found = json.loads((run_dir / "layer_selection.json").read_text())
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3, 4, 5]
    assert found["data"] == "mini/validation" and found["recommended_layer"] == 1  # nothing can be lost
    flops = [row["flops_ratio"] for row in found["layers"]]
    assert flops == sorted(flops) and "recommended: schedule=one_shot schedule.layer=1" in out


def test_the_table_of_families(monkeypatch, tmp_path):
    code, out, err = run_main(monkeypatch, "task=families", f"hydra.run.dir={tmp_path}")
    assert code == 0, err
    for word in ("llava_next", "qwen2_vl", "mllama", "cross-attention", "transformers 5."):
        assert word in out


def options():
    register_options()
    conf = {g: [p.stem for p in (CONF / g).glob("*.yaml")] for g in ("model", "data", "experiment")}
    groups = {kind: prunekit.available(kind) for kind in ("scorer", "fusion", "schedule", "selector", "reducer")}
    return [(g, o) for g, names in {**groups, **conf, "method": list(prunekit.methods())}.items() for o in names]


@pytest.mark.parametrize(("group", "option"), options())
def test_every_option_composes(group, option):
    from prunekit.run.objects import build_pruner

    if option == "search":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    register_options()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"{group}={option}"])
    from omegaconf import OmegaConf

    pruner = build_pruner(parse(OmegaConf.to_container(config, resolve=True)))
    if group in pruner.components:
        assert pruner.components[group].registered_name == option


def test_the_defaults_of_the_options_are_those_of_the_configuration():
    """Hydra composes from conf/, the models of ``prunekit.run.config`` check and describe."""
    from omegaconf import OmegaConf

    from prunekit.run.config import CONFIGS
    from prunekit.run.help import descriptions

    described = descriptions({})

    def check(model, settings, group=""):
        for key, value in settings.items():
            name, field = f"{group}{key}", model.model_fields.get(key)
            if isinstance(value, dict):
                check(field.annotation, value, f"{name}.")
            elif field is not None:
                null_is_usual = value is None and group == "sweep.table."
                assert name in described and (field.default == value or null_is_usual), name
            else:
                assert not group, name

    settings = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    for part, value in settings.items():
        models = [model for model in CONFIGS.values() if part in model.model_fields]
        assert models or part in ("defaults", "hydra")
        for model in models:
            check(model, {part: value})


def test_replacing_a_component_of_a_method_drops_its_settings():
    from prunekit.run.objects import build_pruner

    register_options()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", overrides=["method=fastv"])
        layer = compose("config", overrides=["method=fastv", "schedule.layer=3"])
        other = compose("config", overrides=["method=fastv", "schedule=progressive", "fusion=multi"])
    assert (whole.schedule.layer, whole.scorer.name, whole.preset) == (2, "fastv", "fastv")
    assert (layer.schedule.layer, other.schedule.layers, other.scorer.name) == (3, None, "fastv")
    from omegaconf import OmegaConf

    pruner = build_pruner(parse(OmegaConf.to_container(other, resolve=True)))
    assert [c.layer for c in pruner.schedule.cuts(32, 0.5)] == [8, 16]


BAD = [
    (["scorer=instrution"], "Did you mean 'instruction'"),
    (["fusion=multy"], "Did you mean 'multi'"),
    (["schedule=oneshot"], "Did you mean 'one_shot'"),
    (["selector=best"], "selector 'best'"),
    (["reducer=mrege"], "Did you mean 'merge'"),
    (["method=fastvv"], "Did you mean 'fastv'"),
    (["model=llava"], "model 'llava'"),
    (["data=gqaa"], "data 'gqaa'"),
    (["experiment=tables"], "experiment 'tables'"),
    (["-m", "scorer=instruction,vizual"], "Did you mean 'visual'"),
    (["keep_ratio=0"], "keep_ratio"),
    (["keep_ratio=1.5"], "1.5"),
    (["keep_ratio=half"], "'half'"),
    (["keep_tokens=0"], "keep_tokens"),
    (["keep_tokens=8", "keep_ratio=0.5"], "exclude"),
    (["budget=flops:0.5", "keep_ratio=0.5"], "excludes"),
    (["budget=flops:0.01"], "out of reach: 0."),
    (["budget=mean_tokens:145"], "to 144 for 144 visual"),
    (["budget=flop:0.5"], "Did you mean 'flops'"),
    (["budget=final:many"], "'many'"),
    (["budget=final:inf"], "must lie in (0, ...), not inf"),
    (["task=bench", "bench.shape=llava"], "shape 'llava'"),
    (["kep_ratio=0.5"], "kep_ratio"),
    (["scorer.rows=first"], "'first'"),
    (["scorer.colour=red"], "colour"),
    (["schedule=one_shot", "schedule.layer=first"], "first"),
    (["schedule=one_shot", "schedule.layer=-1"], "-1"),
    (["schedule=one_shot", "schedule.layer=6"], "layer 6"),
    (["schedule=one_shot", "schedule.depth=1.5"], "1.5"),
    (["schedule=one_shot", "schedule.depth=0.5", "schedule.layer=2"], "exclude"),
    (["schedule.layers=[3,2]"], "rising"),
    (["schedule.ratios=[0.5,0.5]", "keep_ratio=0.5"], "0.25"),
    (["fusion=learned", "fusion.weights=/no/such/file"], "/no/such/file"),
    (["scorer=tome", "fusion=rollout"], "tome"),
    (["data.limit=0"], "data.limit"),
    (["data.limit=some"], "'some'"),
    (["data.split=exam"], "'exam'"),
    (["batch_size=0"], "batch_size"),
    (["task=evaluate"], "Did you mean 'eval'"),
    (["device=tpu0x"], "tpu0x"),
    (["dtype=float8"], "float8"),
    (["attn=fast"], "fast"),
    (["positions=shuffle"], "shuffle"),
    (["logger.mode=loud"], "loud"),
    (["model.name=/no/such/model"], "/no/such/model"),
    (["method=fastv", "schedule=progressive", "schedule.layer=2"], "layer"),
    (["keep_ratio=="], "keep_ratio"),
]


@pytest.mark.parametrize(("bad", "word"), BAD, ids=[" ".join(b) for b, _ in BAD])
def test_bad_input_ends_in_one_clear_line(monkeypatch, tmp_path, model_folder, bad, word):
    named = any(b.startswith(("model=", "model.name=")) for b in bad)
    fixed = [a for a in arguments(model_folder, tmp_path) if not (named and a.startswith("model.name="))]
    if any(b.startswith("model=") for b in bad):
        fixed = [a for a in fixed if not a.startswith("model=")]
    code, _, err = run_main(monkeypatch, *[a for a in fixed if not a.startswith("data.limit")], *bad)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code in (1, 2)
    assert word in lines[-1] and lines[-1].startswith("prunekit: error: ")
    assert len(lines) == 1 and "Traceback" not in err


def test_a_model_that_is_no_lvlm(monkeypatch, tmp_path, model_folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "text" / name).write_bytes((model_folder / name).read_bytes())
    code, _, err = run_main(monkeypatch, *arguments(tmp_path / "text", tmp_path / "run"))
    assert code == 1 and len(err.strip().splitlines()) == 1
    assert str(tmp_path / "text") in err


def test_users_method_folder_in_a_process_of_its_own(tmp_path, model_folder):
    """./methods of the working directory and PRUNEKIT_METHODS, with options, in a sweep; a broken file is named."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(
        "from dataclasses import dataclass\nimport prunekit\n"
        "@prunekit.register('scorer', 'mine')\n@dataclass\nclass Mine(prunekit.Scorer):\n    alpha: float = 1.0\n"
        "    def score(self, view):\n        return self.alpha * view.visual(view.hidden_states.norm(dim=-1))\n"
    )
    (tmp_path / "methods" / "broken.py").write_text("1 / 0\n")
    command = [sys.executable, "-m", "prunekit", "-m", *arguments(model_folder, "unused")]
    command += ["scorer=mine", "scorer.alpha=1,-1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    import os

    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "broken.py" in done.stderr and "Traceback" not in done.stderr
    assert f"loaded {tmp_path / 'methods' / 'mine.py'}" in done.stdout
    kept = []
    for job in ("0", "1"):
        rows = (tmp_path / "sweep" / job / "predictions.jsonl").read_text().splitlines()
        kept.append({json.loads(r)["id"]: set(json.loads(r)["kept"]) for r in rows})
        assert json.loads((tmp_path / "sweep" / job / "metrics.json").read_text())["method"]["scorer"] == "mine"
    assert all(len(kept[0][i] & kept[1][i]) < 72 for i in kept[0])


def test_importing_prunekit_brings_neither_hydra_nor_wandb():
    code = "import sys, prunekit; assert not {'hydra', 'wandb', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("words", [["--foo"], ["model.name=5"], ["model.device_map={a:0}"], ["data.name=gqaa"]])
def test_more_bad_input(monkeypatch, tmp_path, model_folder, words):
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path), *words)
    assert code == 1 and len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert words[0].split("=")[0].lstrip("-") in err


def test_the_sweep_flag_may_stand_anywhere(monkeypatch, tmp_path, model_folder):
    words = arguments(model_folder, tmp_path / "unused", "data.limit=3")
    options = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "keep_ratio=0.5,0.25"]
    code, out, err = run_main(monkeypatch, *words, "-m", *options)
    assert code == 0, err
    assert "2 of 2 jobs finished" in out
