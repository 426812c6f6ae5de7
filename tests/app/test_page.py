"""The explorer in headless Chromium, as a user would: load, ask, change, slide, err, stop, save; two users at once."""

from __future__ import annotations

import json
import socket
import threading
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import prunekit
from driving import drive
from prunekit.app import explore
from prunekit.app.explore import OWN, Explorer
from prunekit.app.query import Query
from prunekit.data.mini import load

pytest.importorskip("gradio")

FIGURES = "[...document.querySelectorAll('#view figure')]"
CANVAS = "document.querySelector('#view figure:nth-child(2) canvas').toDataURL()"
LABELS = f"{FIGURES}.map((f) => f.querySelector('canvas')?.getAttribute('aria-label') ?? f.innerText)"
TIP = "document.querySelector('#view .tip').textContent"
CUT = "document.querySelector('.cut-label').textContent"
STATUS = "document.querySelector('#status .problem')?.textContent"


def answered(question: str, sides: int) -> list[str]:
    """The step that waits for the view of a question."""
    heading = f"document.querySelector('#view h2')?.textContent === {json.dumps(question)}"
    return ["until", f"{heading} && {FIGURES}.length === {sides}"]


def problem(part: str) -> list[str]:
    return ["until", f"({STATUS} || '').includes({json.dumps(part)}) && {STATUS}"]


@pytest.fixture(scope="module")
def explorer(loaded):
    return Explorer(loaded, prunekit.Pruner(), load("test", 40), max_new_tokens=3)


@pytest.fixture
def address(explorer, tmp_path, monkeypatch):
    """The page of a running server; gradio's folder for uploads is the test's."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(explore, "ROUNDS", 1)
    yield from serving(explorer)


def serving(explorer):
    from prunekit.app.page import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = serve(explorer, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}/"
    page.close(verbose=False)


def values(visit: dict, steps: list[list[str]], action: str = "js") -> list:
    """What the steps of a kind gave."""
    return [value for step, value in zip(steps, visit["values"], strict=True) if step[0] == action]


def check_quiet(visit: dict, address: str) -> None:
    """No message on the console, and no request to anybody else."""
    assert visit["console"] == []
    assert all(request.startswith((address, "data:", "blob:")) for request in visit["requests"])


def test_ask_slide_and_change(explorer, address, tmp_path):
    first = next(iter(explorer.examples.values())).question
    other = "what is the letter on the sign"
    steps = [
        answered(first, 5), ["js", LABELS], ["js", CUT], ["js", CANVAS],
        ["hover", "#view figure:nth-child(2) canvas"], ["js", TIP],
        ["focus", "#cut"], ["key", "Left"], ["js", CUT], ["js", CANVAS], ["click", "#heat"], ["js", CANVAS],
        ["js", "document.querySelectorAll('#moved').length"],
        ["type", "#question textarea", other], ["click", "#ask"], answered(other, 5),
        ["js", "[...document.querySelectorAll('.common')].map((p) => p.textContent)"],
        ["js", "document.querySelector('#moved').checked"],
        ["type", "#methods input", "divprune"], ["key", "Return"], ["type", "#keep input[type=number]", "0.5"],
        ["key", "Tab"], ["click", "#ask"], answered(other, 6), ["js", LABELS],
        ["js", "document.querySelectorAll('.costs tbody tr').length"],
        ["js", "document.querySelectorAll('.layers polyline').length"],
        ["js", "document.querySelector('#view .link').href"],
        ["click", "#view .save"], ["file", str(tmp_path / "prunekit-explorer.json")],
    ]  # fmt: skip
    visit = drive(address, steps, tmp_path)
    check_quiet(visit, address)
    js = iter(values(visit, steps))
    labels, cut, drawn = next(js), next(js), next(js)
    assert labels[0] == "dense: all 144 tokens" and labels[2] == "fastv: 36 tokens stay, cut before layer 2"
    assert cut == "after cut 2 of 2"
    tip = next(js)
    assert "of 144\nrow " in tip and ("stays" in tip or "goes" in tip or "earlier" in tip)
    cut, redrawn, heated = next(js), next(js), next(js)
    assert cut == "after cut 1 of 2" and len({drawn, redrawn, heated}) == 3
    assert next(js) == 0  # no earlier question yet
    common = next(js)
    assert len(common) == 4 and all("stayed for the earlier question" in text for text in common) and next(js)
    labels = next(js)
    assert labels[2].startswith("fastv: 72 tokens stay") and labels[4].startswith("divprune: 72 tokens stay")
    assert next(js) == 6 and next(js) == 6
    link = next(js)
    saved = Query.parse((tmp_path / "prunekit-explorer.json").read_text())
    assert saved == Query.parse(parse_qs(urlsplit(link).query)["state"][0])
    assert (
        saved.methods == (OWN, "fastv", "visionzip", "divprune") and saved.keep_ratio == 0.5 and saved.before == first
    )

    again = [answered(other, 6), ["js", LABELS], ["js", "document.querySelector('#keep input').value"]]
    linked = drive(link, again, tmp_path)
    check_quiet(linked, address)
    assert values(linked, again) == [labels, "0.5"]
    opened = [answered(first, 5), ["upload", ".drop", str(tmp_path / "prunekit-explorer.json")], *again]
    assert values(drive(address, opened, tmp_path), opened) == [labels, "0.5"]


def test_wrong_input_and_an_own_picture(explorer, address, tmp_path):
    first = next(iter(explorer.examples.values())).question
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (10_000, 10_001)).save(tmp_path / "huge.png")
    (tmp_path / "state.json").write_text('{"example": "test-00000-0"}')
    pixels = np.random.default_rng().integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    steps = [
        answered(first, 5),
        ["upload", ".drop", str(tmp_path / "text.png")], problem("not an image"),
        ["type", "#question textarea", "  "], ["click", "#ask"], problem("the question is empty"),
        ["type", "#question textarea", "what is it"], ["click", "#ask"], problem("not an image"),
        ["upload", ".drop", str(tmp_path / "huge.png")], problem("10000 x 10001 pixels"),
        ["upload", ".drop", str(tmp_path / "state.json")], problem("question is missing"),
        ["upload", ".drop", str(tmp_path / "own.png")], ["until", f"!{STATUS}"],
        ["type", "#budget input,#budget textarea", "many"],
        ["click", "#ask"], answered("what is it", 5), ["js", f"{FIGURES}[1].querySelector('.problem').textContent"],
        ["type", "#budget input,#budget textarea", "30"], ["click", "#ask"],
        ["until", f"({LABELS}[1] ?? '').includes('30 tokens stay')"],
        ["until", "!!document.querySelector('#view .save')"],
        ["js", "document.querySelectorAll('#view .link').length"],
        ["click", "#view .save"], ["file", str(tmp_path / "prunekit-explorer.json")],
    ]  # fmt: skip
    visit = drive(address, steps, tmp_path)
    check_quiet(visit, address)
    assert "budget" in values(visit, steps)[0] and values(visit, steps)[1] == 0
    saved = Query.parse((tmp_path / "prunekit-explorer.json").read_text())
    assert saved.upload is not None and saved.upload.content() == (tmp_path / "own.png").read_bytes()
    assert [path for path in (tmp_path / "gradio").rglob("*") if path.is_file()] == []  # uploads stay in memory
    with pytest.raises(HTTPError):  # and there is no other way in
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
        urlopen(Request(f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}))


def test_a_broken_link_is_one_line(address, tmp_path):
    visit = drive(f"{address}?state=nonsense", [problem("no state that the explorer saved")], tmp_path)
    check_quiet(visit, address)


def test_two_users_at_once(explorer, address, tmp_path):
    """Two browsers at a time; each sees its own question, budget and earlier question alone."""
    first = next(iter(explorer.examples.values())).question
    seen: dict[int, list] = {}
    steps = {}
    for number, keep in enumerate((0.25, 0.5)):
        questions = [f"user {number} asks question {place}" for place in range(3)]
        steps[number] = [answered(first, 5), ["type", "#keep input[type=number]", str(keep)], ["key", "Tab"]]
        for question in questions:
            steps[number] += [["type", "#question textarea", question], ["click", "#ask"], answered(question, 5),
                              ["js", LABELS], ["js", "document.querySelector('#view .about').textContent"]]  # fmt: skip

    def user(number: int) -> None:
        home = tmp_path / str(number)
        home.mkdir()
        seen[number] = values(drive(address, steps[number], home), steps[number])

    threads = [threading.Thread(target=user, args=(number,)) for number in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, kept in enumerate((36, 72)):
        for place in range(3):
            labels, before = seen[number][2 * place : 2 * place + 2]
            earlier = first if place == 0 else f"user {number} asks question {place - 1}"
            assert before == f"earlier question: {earlier}"
            assert all(f"{kept} tokens stay" in label for label in labels[1:])


def test_long_work_can_be_stopped(loaded, tmp_path, monkeypatch):
    loaded.model.generation_config.eos_token_id, ends = None, loaded.model.generation_config.eos_token_id
    endless = Explorer(loaded, prunekit.Pruner(), load("test", 8), max_new_tokens=100_000)
    server = serving(endless)
    address = next(server)
    status = "(document.querySelector('#status')?.innerText ?? '')"
    steps = [
        ["until", f"{status}.includes('token ')"], ["click", "#stop"], ["until", f"{status}.trim() === 'stopped'"],
        ["click", "#ask"], ["until", f"{status}.includes('token ')"], ["click", "#stop"],
        ["until", f"{status}.trim() === 'stopped'"],
    ]  # fmt: skip
    try:
        check_quiet(drive(address, steps, tmp_path), address)
        assert endless.lock.acquire(timeout=30)  # the model is free again
        endless.lock.release()
    finally:
        next(server, None)
        loaded.model.generation_config.eos_token_id = ends


def test_a_table_over_the_data(explorer, address, tmp_path):
    first = next(iter(explorer.examples.values())).question
    rows = "[...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[0].textContent)"
    steps = [
        answered(first, 5), ["click", "button[role=tab]:nth-of-type(2)"],
        ["until", "!!document.querySelector('#fill')"], ["type", "#count input[type=number]", "6"], ["key", "Tab"],
        ["click", "#fill"], ["until", f"{rows}.length === 5"], ["js", rows],
        ["js", "document.querySelector('#table tbody').innerText"],
    ]  # fmt: skip
    visit = drive(address, steps, tmp_path)
    check_quiet(visit, address)
    names, text = values(visit, steps)
    assert names == ["dense", OWN, "fastv", "visionzip", "random"] and "1.000" in text
