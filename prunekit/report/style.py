"""How the plots look: the colours of Okabe and Ito, told apart by colour-blind readers too, and a marker for each."""

from __future__ import annotations

from typing import Any

from prunekit.errors import PrunekitError
from prunekit.results.entries import Entry

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = "osD^vP*Xph<>"
GREY = "#595959"


def pyplot() -> Any:
    """matplotlib without a screen.

    Raises:
        PrunekitError: if it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise PrunekitError("task=report draws with matplotlib: pip install 'prunekit[report]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module


def styles(entries: list[Entry]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, by its name; no two methods share both."""
    names = list(dict.fromkeys(e.method for e in entries if e.runs))
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]) for i, name in
            enumerate(names)}  # fmt: skip


def shorten(text: str, size: int = 34) -> str:
    """Text of at most ``size`` letters; ``$`` does not start a formula."""
    text = text if len(text) <= size else f"{text[: size - 1]}…"
    return text.replace("$", r"\$")
