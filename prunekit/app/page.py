"""The explorer's page, with gradio: controls on the left, one question or a table of many on the right.

Gradio calls nobody: no analytics, no share link, fonts of the system, its run history off. A user's file comes as text
inside the event, so that nothing is written to a disk. The page holds each user's state in the user's own session.
"""

from __future__ import annotations

import base64
import html
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from prunekit.app.explore import OWN, Explorer, Stopped, Tick
from prunekit.app.query import CONTROLS, MOST_LETTERS, MOST_METHODS, Query, Upload
from prunekit.app.table import HEADINGS, Line, tabulate
from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.evaluation.kept import jpeg

HERE = Path(__file__).parent
PICTURES, THUMBNAIL, WAITING = 12, 112, 32
FONTS = ["system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
METHODS = ("fastv", "visionzip")
"""What is chosen when the page opens, with the configured method."""

Asked = tuple[str, str, str]
"""What a session asked last: a mark of the picture, the question, and the one before it about the same picture."""


class Stops:
    """Who wants the own work stopped, by session."""

    def __init__(self) -> None:
        self._events: dict[str, Event] = {}

    def begin(self, request: gr.Request) -> Event:
        """A fresh event for the work of a request's session."""
        self._events[str(request.session_hash)] = event = Event()
        return event

    def stop(self, request: gr.Request) -> None:
        """Stop what the session runs."""
        if (event := self._events.pop(str(request.session_hash), None)) is not None:
            event.set()


@dataclass
class Controls:
    """The components of the page that events read and write."""

    picker: gr.HTML
    question: gr.Textbox
    known: gr.Dropdown
    names: gr.Dropdown
    keep: gr.Slider
    budget: gr.Textbox
    compare: gr.CheckboxGroup
    ask: gr.Button
    halt: gr.Button

    @property
    def query(self) -> list[Any]:
        """What a query is made of, in the order of ``_query``'s parameters."""
        return [self.picker, self.question, self.names, self.keep, self.budget, self.compare]


@dataclass
class Panels:
    """The components that show results."""

    status: gr.HTML
    view: gr.HTML
    count: gr.Slider
    fill: gr.Button
    table: gr.HTML


def build(explorer: Explorer) -> gr.Blocks:
    """The page of a model."""
    with gr.Blocks(title="prunekit explorer", analytics_enabled=False, fill_width=True) as page:
        name = html.escape(explorer.loaded.name)
        gr.HTML(f"<h1>prunekit explorer</h1><p>What a pruned {name} still sees, and what it says.</p>", elem_id="head")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                controls = _controls(explorer)
            with gr.Column(scale=4, min_width=480):
                panels = _panels(len(explorer.examples))
        _connect(page, Handlers(explorer), controls, panels)
    return page


def _controls(explorer: Explorer) -> Controls:
    first = next(iter(explorer.examples.values()))
    picker = gr.HTML(
        {"example": first.id},
        html_template='<div class="picker"></div>',
        js_on_load=(HERE / "picker.js").read_text(encoding="utf-8"),
        pictures=_pictures(explorer),
        elem_id="picker",
    )
    question = gr.Textbox(first.question, label="Question", max_length=MOST_LETTERS, elem_id="question")
    known = gr.Dropdown(
        _questions(explorer, first), value=None, label="Questions the data ask about it", elem_id="known"
    )
    names = gr.Dropdown(
        explorer.names(),
        value=[OWN, *(name for name in METHODS if name in explorer.names())],
        multiselect=True,
        max_choices=MOST_METHODS,
        label=f"Methods (up to {MOST_METHODS})",
        elem_id="methods",
    )
    keep = gr.Slider(0.02, 1, 0.25, step=0.01, label="Share of visual tokens that stays", elem_id="keep")
    budget = gr.Textbox(
        label="or another budget", placeholder="64 (tokens), flops:0.5 …", lines=1, max_lines=1, elem_id="budget"
    )
    compare = gr.CheckboxGroup(list(CONTROLS), value=["random"], label="Compare with", elem_id="compare")
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="ask")
        halt = gr.Button("Stop", min_width=80, elem_id="stop")
    return Controls(picker, question, known, names, keep, budget, compare, ask, halt)


def _panels(examples: int) -> Panels:
    status = gr.HTML("", elem_id="status")
    with gr.Tabs():
        with gr.Tab("One question"):
            view = gr.HTML(
                {},
                html_template='<div class="view"></div>',
                js_on_load=(HERE / "view.js").read_text(encoding="utf-8"),
                elem_id="view",
            )
        with gr.Tab("Table over the data", elem_id="tab-table"):
            count = gr.Slider(1, max(2, examples), min(20, examples), step=1, label="first examples", elem_id="count")
            fill = gr.Button("Fill the table", elem_id="fill")
            table = gr.HTML("", elem_id="table")
    return Panels(status, view, count, fill, table)


def _connect(page: gr.Blocks, handlers: Handlers, controls: Controls, panels: Panels) -> None:
    """Which event calls which handler."""
    asked, again, yes = gr.State(("", "", "")), gr.State(False), gr.State(True)
    query, status = controls.query, panels.status
    changed = [*query, controls.known, again, status, asked]
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress_on": status}
    answered = {"outputs": [panels.view, status, asked], **model}
    answer = handlers.answer
    events = [
        gr.on(
            [controls.ask.click, controls.question.submit], answer, [yes, *query, asked],
            trigger_mode="always_last", **answered,
        ),
        controls.picker.input(handlers.pick, controls.picker, changed, queue=False).then(
            answer, [again, *query, asked], **answered
        ),
        page.load(handlers.start, None, changed, queue=False).then(answer, [again, *query, asked], **answered),
        panels.fill.click(handlers.tabulate, [*query, panels.count], [panels.table, status], **model),
    ]  # fmt: skip
    controls.known.input(lambda text: text, controls.known, controls.question, queue=False)
    controls.halt.click(handlers.halt, None, status, cancels=events, queue=False)
    page.unload(handlers.stops.stop)


class Handlers:
    """What the page does at its events; outputs are in the order that ``_connect`` names."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.stops = explorer, Stops()

    def answer(
        self,
        go_on: bool,
        picked: dict[str, Any],
        text: str,
        chosen: list[str],
        share: float,
        other: str,
        compare: list[str],
        last: Asked,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (gradio looks for it there)
    ) -> Iterator[tuple[Any, ...]]:
        """The record of one question as it grows, the status line, and what was asked."""
        if not go_on:
            yield gr.skip(), gr.skip(), last
            return
        tick = _tick(self.stops.begin(request), progress)
        try:
            mark = str(hash(json.dumps(picked, sort_keys=True)))
            before = _before(last, mark, text.strip())
            query = _query(picked, text, chosen, share, other, compare, before)
            for record in self.explorer.explore(query, tick):
                whole = len(record.sides) > len(query.names)
                yield record.data(whole), "", (mark, query.question, before) if whole else last
        except Exception as error:
            yield gr.skip(), _problem(error), last

    def tabulate(
        self,
        picked: dict[str, Any],
        text: str,
        chosen: list[str],
        share: float,
        other: str,
        compare: list[str],
        most: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, ...]]:
        """The table as it grows, and the status line; picture and question of the controls do not matter."""
        tick = _tick(self.stops.begin(request), progress)
        first = next(iter(self.explorer.examples.values()))
        try:
            query = _query({"example": first.id}, first.question, chosen, share, other, compare, "")
            for lines in tabulate(self.explorer, query, int(most), tick):
                yield _rows(lines), ""
        except Exception as error:
            yield gr.skip(), _problem(error)

    def pick(self, picked: dict[str, Any]) -> tuple[Any, ...]:
        """What follows from a choice of the picker: an example, a file of the user's, or a saved state."""
        untouched = [gr.skip()] * 7
        try:
            if "problem" in picked:
                raise PrunekitError(str(picked["problem"]))
            if "state" in picked:
                query = Query.parse(picked["state"])
                return *_restored(self.explorer, query), _last(query)
            if "upload" in picked:
                self.explorer.shown(Upload(**picked["upload"]), "").image()
                return *untouched[:6], gr.Dropdown(choices=[], value=None), False, "", gr.skip()
            example = self.explorer.known(picked["example"])
        except Exception as error:
            return *untouched, False, _problem(error), gr.skip()
        choices = gr.Dropdown(choices=_questions(self.explorer, example), value=None)
        return gr.skip(), example.question, *untouched[:4], choices, False, "", gr.skip()

    def start(self, request: gr.Request) -> tuple[Any, ...]:
        """The state that the page's address holds, or the page as it opens."""
        state = request.query_params.get("state")
        if state is None:
            return *[gr.skip()] * 7, True, "", gr.skip()
        try:
            query = Query.parse(state)
            return *_restored(self.explorer, query), _last(query)
        except Exception as error:
            return *[gr.skip()] * 7, False, _problem(error), gr.skip()

    def halt(self, request: gr.Request) -> str:
        """Stop the session's work."""
        self.stops.stop(request)
        return "stopped"


def _tick(event: Event, progress: gr.Progress) -> Tick:
    def tick(text: str, done: float) -> None:
        if event.is_set():
            raise Stopped
        progress(done, desc=text)

    return tick


def _before(last: Asked, mark: str, question: str) -> str:
    """The earlier question about the same picture."""
    if last[0] != mark:
        return last[2] if not last[0] and last[1] == question else ""
    return last[2] if last[1] == question else last[1]


def _query(
    picked: dict[str, Any], text: str, chosen: list[str], share: float, other: str, compare: list[str], before: str
) -> Query:
    if "problem" in picked:
        raise PrunekitError(str(picked["problem"]))
    shown = {name: picked.get(name) for name in ("example", "upload")}
    upload = None if shown["upload"] is None else Upload(**shown["upload"])
    return Query(
        example=shown["example"],
        upload=upload,
        question=text,
        methods=tuple(chosen),
        keep_ratio=float(share),
        budget=other,
        compare=tuple(compare),
        before=before,
    )


def _restored(explorer: Explorer, query: Query) -> tuple[Any, ...]:
    """The controls of a saved query."""
    explorer.example(query).image()
    shown: dict[str, Any]
    if query.upload is None:
        shown, known = {"example": query.example}, _questions(explorer, explorer.known(str(query.example)))
    else:
        shown, known = {"upload": query.upload.model_dump()}, []
    values = (shown, query.question, list(query.methods), query.keep_ratio, query.budget, list(query.compare))
    return *values, gr.Dropdown(choices=known, value=None), True, ""


def _last(query: Query) -> Asked:
    """A restored session asks the saved question again: the earlier one is that of the file."""
    return "", query.question, query.before


def _problem(error: Exception) -> str:
    """The line that says what went wrong, as markup."""
    if isinstance(error, Stopped):
        return "stopped"
    text = " ".join(str(error).split())
    if not isinstance(error, PrunekitError):
        logging.getLogger(__name__).exception("explorer")
        text = f"{type(error).__name__}: {text[:300]}"
    return f'<span class="problem" role="alert">{html.escape(text)}</span>'


def _rows(lines: list[Line]) -> str:
    """The table as markup."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
    body = ""
    for line in lines:
        cells = [line.cells[0], line.error] if line.error else line.cells
        spans = ["", f' colspan="{len(HEADINGS) - 1}" class="problem"'] if line.error else [""] * len(line.cells)
        columns = zip(spans, cells, strict=True)
        body += "<tr>" + "".join(f"<td{span}>{html.escape(cell)}</td>" for span, cell in columns) + "</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _pictures(explorer: Explorer) -> list[dict[str, Any]]:
    """Small copies of the data's first pictures, each with the ids of the examples about it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for example in explorer.examples.values():
        if example.image_ids in groups or len(groups) < PICTURES:
            groups.setdefault(example.image_ids, []).append(example.id)
    small = []
    for ids in groups.values():
        image = explorer.examples[ids[0]].image()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        small.append({"ids": ids, "image": f"data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode()}"})
    return small


def _questions(explorer: Explorer, example: Example) -> list[str]:
    return [other.question for other in explorer.examples.values() if other.image_ids == example.image_ids]


def serve(explorer: Explorer, host: str, port: int) -> gr.Blocks:
    """Start the page; it runs until it is closed.

    Raises:
        PrunekitError: where it cannot listen.
    """
    page = build(explorer)
    page.queue(max_size=WAITING)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=1,
            theme=gr.themes.Base(primary_hue="blue", font=FONTS, font_mono=["ui-monospace", "monospace"]),
            css=(HERE / "page.css").read_text(encoding="utf-8"),
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PrunekitError(f"the explorer cannot listen at app.host={host} app.port={port}: {reason}") from None
    return page
