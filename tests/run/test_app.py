"""``task=app`` on the command line: ready, stopped, one line for what goes wrong; the welcome, the pages of errors."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest
import torch

from commands import run_main
from paths import ROOT
from prunekit.model_errors import loading_failed
from prunekit.run import cli, messages


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_gradio_one_line_says_what_to_install(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else real(name))
    code, _, error = run_main(monkeypatch, "task=app", f"hydra.run.dir={tmp_path}")
    assert code == 1 and "\n" not in error.strip() and "pip install 'prunekit[app]'" in error
    assert error.strip().endswith("(see docs/explore.md)")


@pytest.mark.parametrize(
    "words, part",
    [
        (("app.port=none",), "app.port must be a whole number"),
        (("app.port=99999",), "app.port=99999"),
        (("app.host=no.such.host.invalid",), "app.host=no.such.host.invalid"),
        (("model=hf", "model.name=nowhere/at-all"), "model 'nowhere/at-all' not found"),
        (("data=jsonl", "data.path=nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_shown_is_one_line(monkeypatch, tmp_path, words, part):
    pytest.importorskip("gradio")
    port = () if any("port" in word for word in words) else (f"app.port={free_port()}",)
    code, _, error = run_main(monkeypatch, "task=app", *words, *port, f"hydra.run.dir={tmp_path}", "device=cpu")
    assert code == 1 and "\n" not in error.strip() and part in error


def test_a_port_in_use_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, error = run_main(monkeypatch, "task=app", f"app.port={port}", f"hydra.run.dir={tmp_path}")
    assert code == 1 and "\n" not in error.strip() and f"app.port={port}: Address already in use" in error


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_interrupted(model_folder, tmp_path, end):
    pytest.importorskip("gradio")
    port = free_port()
    words = ["task=app", f"app.port={port}", "model=hf", f"model.name={model_folder}", f"hydra.run.dir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "prunekit", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )  # fmt: skip
    try:
        lines = []
        while not any(line.startswith("ready: ") for line in lines):
            lines.append(server.stdout.readline())
            assert server.poll() is None, lines
        assert lines[-1].startswith(f"ready: http://127.0.0.1:{port} ")
        page = urlopen(f"http://127.0.0.1:{port}/", timeout=60).read().decode()
        assert "prunekit explorer" in page and '"analytics_enabled":false' in page.replace(" ", "")
        addresses = {entry.laddr.ip for entry in _listening(server.pid) if entry.laddr.port == port}
        assert addresses == {"127.0.0.1"}
        server.send_signal(end)
        rest, _ = server.communicate(timeout=60)
        assert server.returncode == 0 and rest.strip().splitlines()[-1] == "stopped"
    finally:
        server.kill()


def _listening(process: int) -> list:
    import psutil

    return [entry for entry in psutil.Process(process).net_connections() if entry.status == psutil.CONN_LISTEN]


def test_a_model_that_does_not_fit_is_one_line():
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), MemoryError()):
        line = loading_failed("big/model", error, "sdpa", None, "")
        assert line.startswith("model 'big/model' does not fit in memory") and "\n" not in line


def test_the_command_alone_says_what_to_try(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prunekit"])
    cli.console()
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("  python -m prunekit")]) == 3
    assert len(out.splitlines()) <= 10 and max(map(len, out.splitlines())) <= 120


def test_help_begins_with_the_welcome(monkeypatch):
    code, out, _ = run_main(monkeypatch, "--help")
    assert code == 0 and out.startswith(cli.WELCOME) and "app.port: 7860" in out


@pytest.mark.parametrize(
    "words, page",
    [
        (("method=fastw",), "methods/README.md"),
        (("scorer=nothing",), "methods/README.md"),
        (("data=nothing",), "docs/benchmarks.md"),
        (("task=report",), "docs/report.md"),
        (("task=serve", "serve.port=none"), "docs/serving.md"),
        (("model=hf", "model.name=nowhere/at-all"), "docs/families.md"),
    ],
)
def test_errors_end_with_the_page_that_helps(monkeypatch, tmp_path, words, page):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "vllm" else real(name))
    code, _, error = run_main(monkeypatch, *words, f"hydra.run.dir={tmp_path}", "logger.mode=disabled")
    assert code == 1 and error.strip().endswith(f"(see {page})"), error


def test_the_errors_pages_exist():
    assert all((ROOT / page).is_file() for page in messages.PAGES.values())
    assert messages.page_of("keep_ratio must lie in (0, 1], not 2") == ""
