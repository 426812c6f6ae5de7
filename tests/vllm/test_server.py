"""``task=serve`` in processes of its own, asked over HTTP. Skipped without vLLM."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

import prunekit
import serving
from prunekit.data.source import open_source
from prunekit.models import EMBEDDED

pytestmark = serving.NEEDS_VLLM


def ask(address, example, **more):
    """The answer to an OpenAI chat request, or the status and the message of an error."""
    picture = io.BytesIO()
    example.image().save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": example.question}]
    body = {"model": "mini", "max_tokens": 6, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body | more).encode(), {"Content-Type": "application/json"}
    )
    try:
        answer = json.load(urllib.request.urlopen(request))
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]
    return answer["choices"][0]["message"]["content"].strip(), answer["usage"]["prompt_tokens"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    environment = {**os.environ, **serving.ENVIRONMENT}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    words = ["task=serve", "method=fastervlm", "keep_ratio=0.25", "dtype=float32", f"serve.port={port}",
             "serve.arguments='--enforce-eager --max-model-len 512'", f"hydra.run.dir={folder}"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "prunekit", *words], env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("curl "):
            break
    assert lines and lines[-1].startswith("curl "), lines
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 0
    with pytest.raises(OSError):
        time.sleep(0.5)
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)


def test_answers_are_those_of_transformers(address):
    reference = serving.Reference(EMBEDDED["mini"])
    examples = open_source({"name": "mini", "split": "test", "limit": 12, "max_new_tokens": 6})
    settings = {
        "server": ({}, prunekit.method("fastervlm", keep_ratio=0.25)),
        "request": ({"prunekit": {"method": "cdpruner", "keep_ratio": 0.5}}, prunekit.method("cdpruner")),
        "dense": ({"prunekit": None}, None),
    }
    for words, pruner in settings.values():
        more = {"mm_processor_kwargs": words} if words else {}
        for example in examples:
            content = [{"type": "image"}, {"type": "text", "text": example.question}]
            text = reference.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            expected = reference.answer(serving.Request(text, [example.image()]), pruner)
            said = reference.processor.tokenizer.decode(expected.ids, skip_special_tokens=True).strip()
            assert ask(address, example, **more)[0] == said


@pytest.mark.parametrize(
    "options, word",
    [({"method": "divprun"}, "divprune"), ({"keep_ratio": 2}, "keep_ratio"), ({"method": "fastv"}, "cdpruner"),
     (3, "mapping"), ({"keep_ratio": "much"}, "keep_ratio")],
)  # fmt: skip
def test_a_wrong_request_is_a_400_and_the_server_lives(address, options, word):
    (example,) = open_source({"name": "mini", "split": "test", "limit": 1, "max_new_tokens": 6})
    code, message = ask(address, example, mm_processor_kwargs={"prunekit": options})
    assert code == 400 and word in message and "\n" not in message
    assert ask(address, example)[1] < 100
