"""The commands of the documents: each composes, and page by page a reader who types them gets to their end."""

from __future__ import annotations

import json
import os
import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from commands import run_main
from paths import ROOT
from prunekit.data import load
from prunekit.run.config import parse
from prunekit.run.config_store import register_options
from prunekit.run.objects import build_pruner
from prunekit.run.resolvers import register_resolvers
from prunekit.run.words import CONF, prepared, product, read_words, split

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "methods" / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]
NEW_METHOD = ROOT / "docs" / "new-method.md"
ELSEWHERE = {
    "task=app": "tests/run/test_app.py",
    "task=serve": "tests/run/test_serve.py, make test-vllm",
    "bench.engine=vllm": "make test-vllm",
    "accelerate launch": "tests/run/test_ranks.py",
    "torchrun": "tests/run/test_ranks.py",
    "experiment=published": "tests/results/test_published.py",
    "data.videos": "tests/data/test_video_benchmarks.py",
    "data=videomme": "tests/data/test_video_benchmarks.py",
    "data.frames": "tests/data/test_videos.py",
    "model=qwen2.5-vl-7b bench.frames": "tests/bench/test_video_bench.py",
}
"""Commands that are not run here, by what stands in them, and who runs such ones."""
SMALL = {
    "data.limit": "2", "data.max_new_tokens": "2", "hydra.sweeper.n_trials": "2", "train.max_steps": "2",
    "bench.shape": "small", "bench.rounds": "1", "bench.new_tokens": "2", "bench.visual_tokens": "[64]",
    "bench.frames": "2", "shape": "small-video", "device": "cpu",
}  # fmt: skip
"""What a reader without a GPU or hours writes in the place of a value."""
LEAVES_OUT = {"experiment=equal_cost": "out of reach"}
"""Commands that end with 1 because some of their jobs, by their nature, have no result; and why those have none."""
ALWAYS = {
    "task=bench": ("bench.rounds", "bench.new_tokens", "device"),
    "task=train": ("train.max_steps", "data.limit", "data.max_new_tokens"),
    "task=report": (), "task=families": (),
}  # fmt: skip
FROM_THE_HUB = re.compile(r"model=(?!mini)|model\.(name|device_map|checkpointing)=|data=(?!mini|jsonl)")


def lines(page):
    """The commands of a page that call prunekit, in their order."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line) for line in dict.fromkeys(joined) if "-m prunekit " in f"{line} "]


def words_of(line):
    return shlex.split(line.split("-m prunekit")[1], comments=True)


def commands():
    """Each command, once for each page."""
    for page in PAGES:
        for line in lines(page):
            yield pytest.param(line, id=f"{page.stem}: {' '.join(words_of(line))[:60]}")


def at_home(line):
    """The words of a command as somebody types them who has the embedded model and little time."""
    words = [word for word in map(os.path.expandvars, words_of(line)) if not FROM_THE_HUB.match(word)]
    pairs = [word.partition("=") for word in words]
    words = [f"{key}={SMALL[key]}" if equals and key in SMALL else word
             for word, (key, equals, _) in zip(words, pairs, strict=True)]  # fmt: skip
    task = next((word for word in words if word in ALWAYS), None)
    wanted = ALWAYS[task] if task else ("data.limit", "data.max_new_tokens")
    if {"experiment=methods", "experiment=equal_cost"} & {*words}:
        words.append("sweep.only=[fastv,visionzip]")  # of some fifty
    if {"experiment=sparse_finetune", "experiment=penalties", "experiment=late_fusion"} & {*words}:
        wanted += ("train.max_steps",)
    missing = [key for key in wanted if key not in {key for key, _, _ in pairs}]
    return [*words, *(f"{key}={SMALL[key]}" for key in missing), "logger.mode=disabled"]


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    """A folder with the components that the page about them writes."""
    folder = tmp_path_factory.mktemp("methods")
    blocks = re.findall(r"```python\n(.*?)```", NEW_METHOD.read_text(), flags=re.DOTALL)
    (folder / "mine.py").write_text("\n".join(block for block in blocks if "prunekit.compose(" not in block))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_METHODS", str(folder))
        register_options()
        register_resolvers()
    return folder


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_composes(line, methods, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_METHODS", str(methods))
    flags, words = split(prepared(words_of(line)))
    if "--help" in flags or "--version" in flags or "--config-dir" in flags:
        pytest.skip("composes nothing, or needs a folder of the reader's own")
    first = next(iter(product(word for word in read_words(words) if not word.is_interval_sweep())))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"{key}={value}" for key, value in first.items()])
    build_pruner(parse(OmegaConf.to_container(config, resolve=True)))


@pytest.fixture
def desk(methods, monkeypatch, tmp_path):
    """The folder of a reader who has typed the components of the page about them, and has some questions."""
    monkeypatch.setenv("PRUNEKIT_METHODS", str(methods))
    monkeypatch.setenv("PRUNEKIT_CACHE", str(methods.parent / "cache"))  # one dense run for all pages
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "internal").mkdir(parents=True)
    examples = list(load(limit=24))
    rows = []
    for number, example in enumerate(examples):
        example.image().save(tmp_path / f"{number}.png")
        rows.append(
            json.dumps({"image": f"{number}.png", "question": example.question, "answers": list(example.answers)})
        )
    for name, chosen in (("questions", rows[:8]), ("test", rows[:8]), ("train", rows[8:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(chosen))
    return tmp_path


@pytest.mark.full
@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)], ids=lambda page: page.stem)
def test_a_reader_gets_to_the_end_of_a_page(page, desk, monkeypatch):
    """Command by command in one folder, on the embedded model with two questions, two steps, one round."""
    if "DATE/TIME" in page.read_text():
        sweep = ["-m", "method=fastv,random", "hydra.sweep.dir=runs/sweeps/DATE/TIME", "data.limit=2"]
        assert run_main(monkeypatch, *sweep, "logger.mode=disabled")[0] == 0
    for line in lines(page):
        if any(part in line for part in ELSEWHERE):
            continue
        words = at_home(line)
        code, out, err = run_main(monkeypatch, *words)
        left_out = next((why for word, why in LEAVES_OUT.items() if word in words), None)
        if code == 1 and left_out and re.search(r"\d+ of \d+ jobs finished", out):
            assert all(left_out in said for said in err.splitlines() if said.startswith("failed: job")), err
            continue
        assert code == 0 and "Traceback" not in err, f"{line}\nas {' '.join(words)}\n{out[-500:]}\n{err[-3000:]}"
