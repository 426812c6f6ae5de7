"""``task=serve`` and ``bench.engine=vllm`` as far as they go without vLLM: settings, refusals, the commands."""

import importlib.util
import json
import shlex
import sys

import pytest

from commands import run_main
from prunekit.run import serve

FIXED = ("logger.mode=disabled",)


@pytest.fixture
def installed(monkeypatch):
    """As if vLLM were there."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "vllm" else real(name))


@pytest.fixture
def absent(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else real(name))


@pytest.mark.parametrize("words", [("task=serve",), ("task=bench", "bench.engine=vllm")])
def test_without_vllm_one_line_says_what_to_install(monkeypatch, absent, tmp_path, words):
    code, _, error = run_main(monkeypatch, *words, "method=divprune", f"hydra.run.dir={tmp_path}", *FIXED)
    assert code == 1 and "\n" not in error.strip() and "pip install vllm" in error


@pytest.mark.parametrize(
    "words, part",
    [
        ((), "schedule 'progressive' cuts inside the decoder"),
        (("method=evit",), "fastervlm"),
        (("method=divprune", "positions=keep"), "positions"),
        (("method=divprune", "budget=flops:0.5"), "budget"),
        (("method=divprune", "model=hf", "model.name=nowhere/at-all"), "nowhere/at-all"),
        (("method=divprune", "serve.port=none"), "serve.port"),
        (("method=divprune", "model.adapter=somewhere"), "model.adapter"),
        (("method=divprune", "model.quantization=int8"), "model.quantization"),
    ],
)
def test_what_cannot_be_served_is_one_line(monkeypatch, installed, tmp_path, words, part):
    code, _, error = run_main(monkeypatch, "task=serve", *words, f"hydra.run.dir={tmp_path}", *FIXED)
    assert code == 1 and "\n" not in error.strip() and part in error


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).handle_request()
print("handled")
"""


def test_command_and_curl_line(monkeypatch, installed, tmp_path):
    """A server of a few lines stands in for vLLM's: ready, then gone."""
    commands = []

    def stand_in(config, model, options):
        commands.append(real(config, model, options))
        return [sys.executable, "-c", SERVER, str(config.serve.port)]

    real = serve.command
    monkeypatch.setattr(serve, "command", stand_in)
    code, out, error = run_main(
        monkeypatch, "task=serve", "method=divprune", "keep_ratio=0.25", "serve.port=18765", "serve.name=small",
        "serve.arguments='--max-model-len 99'", f"hydra.run.dir={tmp_path}", *FIXED,
    )  # fmt: skip
    assert code == 0, error
    (words,) = commands
    overrides = json.loads(words[words.index("--hf-overrides") + 1])
    assert overrides["architectures"] == ["PrunekitForConditionalGeneration"]
    assert overrides["prunekit"]["selector"] == {"name": "maxmin"} and overrides["prunekit"]["keep_ratio"] == 0.25
    assert words[-2:] == ["--max-model-len", "99"]
    curl = shlex.split(next(line for line in out.splitlines() if line.startswith("curl ")))
    assert curl[1] == "http://127.0.0.1:18765/v1/chat/completions"
    assert json.loads(curl[-1])["model"] == "small"
    assert (tmp_path / "server.log").read_text().strip().endswith("handled")


def test_a_server_that_fails_is_one_line(monkeypatch, installed, tmp_path):
    fails = "raise ValueError('prunekit.errors.PrunekitError: no such thing')"
    monkeypatch.setattr(serve, "command", lambda *_: [sys.executable, "-c", fails])
    code, _, error = run_main(monkeypatch, "task=serve", "method=divprune", f"hydra.run.dir={tmp_path}", *FIXED)
    assert code == 1 and "\n" not in error.strip() and "no such thing" in error
