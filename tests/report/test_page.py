"""The report's page in headless Chromium: sorting, hover, the slider over cuts; no error and no request on the way."""

from __future__ import annotations

import pytest

from driving import drive
from fabricated import EVIL, make_run, questions
from prunekit.report.task import report
from prunekit.results import compare


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 500)
    asked = questions(6, EVIL)
    for keep in (0.5, 0.25):
        make_run(tmp_path / f"runs/a{keep}", EVIL, 0.8, keep=keep, asked=asked, pictures=6)
        make_run(tmp_path / f"runs/b{keep}", "fastv", 0.6, keep=keep, asked=asked, layer=2, pictures=6)
    report(str(tmp_path / "runs"), tmp_path / "out")
    return tmp_path / "out" / "report.html"


LABELS = "[...document.querySelectorAll('#table tbody tr')].map(r => r.cells[2].textContent)"
SORTED = "document.querySelector('#table th:nth-child(3)').getAttribute('aria-sort')"
TIP = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
CANVAS = (
    "document.querySelector('#panels canvas').toDataURL().length + document.querySelector('#panels canvas').toDataURL()"
)
CUT = "[document.getElementById('cut').value, document.getElementById('cut-label').textContent]"
KEPT = "document.querySelector('#panels canvas').getAttribute('aria-label').match(/(\\d+) tokens/)[1]"
SHOWN = "[...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden).length"


def test_clicking_through_the_page(page):
    heading = "#table th:nth-child(3) button"
    steps = [
        ["js", LABELS], ["click", heading], ["js", SORTED], ["js", LABELS], ["click", heading], ["js", SORTED],
        ["js", LABELS],
        ["js", TIP], ["hover", "#pareto g[data-row='1'] circle"], ["js", TIP],
        ["js", "[...document.querySelectorAll('#table tr.on')].map(r => r.dataset.row)"],
        ["js", CUT], ["js", KEPT], ["js", CANVAS], ["focus", "#cut"], ["key", "Left"], ["js", CUT], ["js", KEPT],
        ["js", CANVAS],
        ["key", "Left"], ["js", CUT], ["js", KEPT], ["key", "Right"],
        ["click", "#scores"], ["js", CANVAS],
        ["js", "document.getElementById('question').textContent"],
        ["focus", "#example"], ["key", "Down"], ["js", "document.getElementById('question').textContent"],
        ["focus", "#budget"], ["key", "Down"], ["js", SHOWN],
        ["hover", "#overlap tbody td"], ["js", TIP],
        ["js", "window.harm || 0"], ["js", "document.querySelectorAll('main img, main script').length"],
        ["js", "document.querySelectorAll('#pareto circle').length"], ["shot", str(page.parent / "page.png")],
    ]  # fmt: skip
    visit = drive(str(page), steps, page.parent)
    assert visit["console"] == [] and all(u.startswith(("file:", "data:", "blob:")) for u in visit["requests"])
    values = iter([v for step, v in zip(steps, visit["values"], strict=True) if step[0] == "js"])
    before, down, falling, up, rising = (next(values) for _ in range(5))
    numbers = [float(text.split()[0]) for text in before]
    assert (down, up) == ("descending", "ascending")
    assert [float(t.split()[0]) for t in falling] == sorted(numbers, reverse=True)
    assert [float(t.split()[0]) for t in rising] == sorted(numbers)
    assert next(values) == "" and "FLOPs" in next(values) and next(values) == ["1"]
    last, fewest, drawn = next(values), int(next(values)), next(values)
    assert last == ["2", "after cut 2 of 2"]
    middle, more, redrawn = next(values), int(next(values)), next(values)
    assert middle == ["1", "after cut 1 of 2"] and more > fewest and redrawn != drawn
    assert next(values) == ["0", "before any cut"] and next(values) == "16"
    assert next(values) != redrawn  # scores instead of dropped patches
    assert EVIL.split()[0] in next(values) and "(1)" in next(values)
    assert next(values) == 3  # dense and one budget
    assert "1.000" in next(values)
    assert next(values) == 0 and next(values) == 0 and next(values) == 5
    assert (page.parent / "page.png").stat().st_size > 50_000
