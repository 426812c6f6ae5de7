"""Every command of the documents composes: each word is an option, and the values are what it takes."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from paths import ROOT
from prunekit.run.config import parse
from prunekit.run.config_store import register_options
from prunekit.run.objects import build_pruner
from prunekit.run.resolvers import register_resolvers
from prunekit.run.words import CONF, prepared, product, read_words, split

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "methods" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NEW_METHOD = ROOT / "docs" / "new-method.md"


def commands():
    """The words behind ``-m prunekit`` of each command in a block, once for each page."""
    for page in PAGES:
        blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for line in dict.fromkeys("\n".join(blocks).replace("\\\n", " ").splitlines()):
            if "-m prunekit " in line and "$name" not in line:
                yield pytest.param(line, id=f"{page.stem}: {line.split('-m prunekit ')[1][:60]}")


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
    flags, words = split(prepared(shlex.split(line.split("-m prunekit ")[1], comments=True)))
    if "--help" in flags or "--version" in flags or "--config-dir" in flags:
        pytest.skip("composes nothing, or needs a folder of the reader's own")
    first = next(iter(product(word for word in read_words(words) if not word.is_interval_sweep())))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"{key}={value}" for key, value in first.items()])
    build_pruner(parse(OmegaConf.to_container(config, resolve=True)))
