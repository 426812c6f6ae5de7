"""Without a network: one line within seconds, and nothing is left changed."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from prunekit import network
from prunekit.models import load_model


@pytest.fixture
def hub(monkeypatch):
    """``hub(url)``: the hub is said to be there, and nobody says that we are offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    network._connects.cache_clear()
    yield lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)
    network._connects.cache_clear()


def test_a_hub_that_nobody_answers_for_is_not_asked_again(hub, monkeypatch):
    hub("http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"'nobody/nothing' not found.*http://127\.0\.0\.1:9 cannot be reached"):
        load_model("nobody/nothing", device="cpu")
    assert time.monotonic() - start < 40  # importing included; the hub's client alone tries for two minutes


def test_data_of_a_hub_that_nobody_answers_for(hub, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from prunekit.data.hub import open_hub

    hub("http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    with pytest.raises(ValueError, match=r"'nobody/nothing' not found.*http://127\.0\.0\.1:9 cannot be reached"):
        open_hub("nobody/nothing")
    assert before == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)


def test_a_hub_that_answers(hub):
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        hub(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert network.offline() == ""


def test_behind_a_proxy_the_hub_is_taken_for_reachable(hub, monkeypatch):
    hub("https://hub.invalid")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert network.offline() == ""


def test_a_machine_that_is_said_to_be_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert network.offline() == "HF_HUB_OFFLINE is set"


def test_looking_into_the_cache_alone_ends_with_the_block(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(RuntimeError), network.cache_only():
        assert constants.HF_HUB_OFFLINE
        raise RuntimeError
    assert not constants.HF_HUB_OFFLINE
