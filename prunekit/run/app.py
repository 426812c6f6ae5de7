"""``task=app``: the explorer, a page to look at what pruning does to one question."""

from __future__ import annotations

import importlib.util
import os
import socket
from itertools import islice
from signal import SIGTERM, signal
from threading import Event

from prunekit.errors import PrunekitError
from prunekit.run.config import AppConfig, RunConfig
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, load, load_examples

EXAMPLES = 200
"""So many of the data's first examples are there to choose from, unless data.limit says fewer."""


def run(config: RunConfig, context: Context) -> None:
    """``task=app``: load the model, open the page, and serve it until interrupted.

    Raises:
        PrunekitError: without gradio, for a port in use, and for a model or data that cannot be loaded.
    """
    assert isinstance(config, AppConfig)
    if importlib.util.find_spec("gradio") is None:
        raise PrunekitError("task=app needs gradio: pip install 'prunekit[app]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    host, port = config.app.host, config.app.port
    check_free(host, port)
    from prunekit.app.explore import Explorer
    from prunekit.app.page import serve
    from prunekit.data.videos import Sampling

    source, data = load_examples(config), config.data
    examples = [example for example in islice(source, EXAMPLES) if not example.error]
    if not examples:
        raise PrunekitError(f"data '{data.name}': no usable row to show")
    explorer = Explorer(
        load(config),
        build_pruner(config),
        examples,
        score=getattr(source, "metric", "exact"),
        max_new_tokens=data.max_new_tokens,
        max_pixels=data.max_pixels,
        sampling=Sampling(data.frames, data.fps),
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    page, before = serve(explorer, host, port), signal(SIGTERM, interrupt)
    print(f"ready: http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} (Ctrl+C stops it)", flush=True)
    try:
        Event().wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        signal(SIGTERM, before)
        page.close(verbose=False)


def check_free(host: str, port: int) -> None:
    """Raise where nothing can listen at an address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PrunekitError(f"app.host={host} app.port={port}: {reason}; another port: app.port=7861") from None
