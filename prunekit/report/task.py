"""``task=report``: from a folder of runs to tables, pictures and a page; all of them, or nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.markup import escape

from prunekit.errors import PrunekitError
from prunekit.records.runs import find_runs
from prunekit.report.gallery import draw_gallery, recorded
from prunekit.report.page import page
from prunekit.report.plots import SHOWN, draw_layers, draw_overlap, draw_pareto, overlaps, save
from prunekit.report.style import pyplot
from prunekit.results import tables
from prunekit.results.compare import Comparison, compare
from prunekit.results.entries import common_questions, make_entries
from prunekit.results.screen import screen_table, show
from prunekit.results.seeds import COSTS

PICTURES = "kept.png"


def report(runs: str | None, folder: Path, reference: str | None = None) -> Comparison:
    """Read every finished run below ``runs`` and write the report to ``folder``.

    Raises:
        PrunekitError: as ``analyse`` does, and for an output folder that is a run or cannot be written. Nothing is
            written then.
    """
    check_folder(folder)
    pyplot()  # what is missing is said before any work is done
    comparison = analyse(runs, reference)
    with _drafts(folder) as drafts:
        write(comparison, Path(drafts))
        (folder / PICTURES).unlink(missing_ok=True)  # of an older report: this one may have none
        for draft in sorted(Path(drafts).iterdir()):
            draft.replace(folder / draft.name)
    return comparison


def check_folder(folder: Path) -> None:
    """Raise if a report in ``folder`` would overwrite a run's files."""
    if any((folder / name).exists() for name in ("metrics.json", "predictions.jsonl")):
        raise PrunekitError(f"'{folder}' is a run: its files would be overwritten; choose another hydra.run.dir")


def analyse(runs: str | None, reference: str | None = None) -> Comparison:
    """Read every finished run below ``runs`` and compare them; what is to be known about them stands in ``notes``.

    Raises:
        PrunekitError: for a folder without finished runs, broken files, runs that cannot be compared.
    """
    if not isinstance(runs, str):
        raise PrunekitError("task=report needs report.runs=DIR, the folder of a run or of a sweep")
    read, left_out = find_runs(Path(runs))
    questions, notes = common_questions(read)
    entries, repeated = make_entries(read, questions)
    metrics = read[0].metrics
    comparison = compare(entries, questions, reference, model=str(metrics["model"]), data=str(metrics["data"]))
    comparison.notes = [f"left out: {line}" for line in left_out] + repeated + notes
    return comparison


def _drafts(folder: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".report-", dir=folder)
    except OSError as error:
        raise PrunekitError(f"'{folder}' cannot be written: {error.strerror}") from None


def write(comparison: Comparison, folder: Path) -> None:
    """All files of a report; what cannot be drawn is noted in them."""
    entries = [row.entry for row in comparison.rows]
    pruned = [e for e in entries if e.runs]
    examples = recorded(entries, comparison.questions)
    if not draw_gallery(examples, pruned, folder / PICTURES):
        comparison.notes.append(
            f"no {PICTURES}: no run has examples on record (kept.npz) whose tokens have known places"
        )
    for name, text in {
        "table.md": tables.markdown(comparison),
        "table.tex": tables.latex(comparison),
        "table.csv": tables.comma_separated(comparison),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    figures = {cost: draw_pareto(comparison, cost) for cost in COSTS} | {"layers": draw_layers(comparison)}
    save(figures[COSTS[0]], folder / "pareto.png", folder / "pareto.pdf")
    save(figures["layers"], folder / "layers.png")
    shown, labels = pruned[:SHOWN], [e.label for e in pruned[:SHOWN]]
    overlap = overlaps(shown, [q.id for q in comparison.questions])
    note = f"the first {SHOWN} of {len(pruned)}" if len(pruned) > SHOWN else None
    draw_overlap(labels, overlap, folder / "overlap.png", note)
    (folder / "report.html").write_text(page(comparison, figures, labels, overlap, examples), encoding="utf-8")


def print_report(comparison: Comparison, folder: Path) -> None:
    """The main table on standard output, notes, and where the files are."""
    headings, rows = tables.main_table(comparison)
    title = f"{comparison.model} on {comparison.data}, {len(comparison.questions)} questions"
    cells = [[f"[bold]{escape(c.text)}[/bold]" if c.best else escape(c.text) for c in row] for row in rows]
    show(screen_table(title, headings, cells), width=190)
    for note in comparison.notes:
        print(f"note: {note}")
    names = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_file()))
    print(f"files: {folder} ({names})")
