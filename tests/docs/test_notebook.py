"""The notebook runs from the first cell to the last."""

from __future__ import annotations

import nbclient
import nbformat

from paths import ROOT

NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two kernels' worth of threads wait for each other on two busy cores
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the committed notebook has no outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = printed(notebook)
    assert "cut before layer 6: 36 of 144 visual tokens stay" in text
    assert all(f"{name:12}" in text for name in ("instruction", "unusual", "random"))
