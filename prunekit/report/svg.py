"""A matplotlib figure as SVG that may stand inside the report's page.

The page's policy runs no style and loads nothing, so what matplotlib writes is reduced to shapes: text becomes the
outlines of its letters, style attributes become attributes of their own, links lead to definitions of the same picture.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

TAGS = ("svg", "g", "defs", "path", "use")
GEOMETRY = ("d", "transform", "x", "y", "viewBox")
PAINT = ("fill", "opacity", "stroke")
TARGET = 6.0
"""Radius in points of the invisible circle over a point of data: what the pointer has to meet."""


def mark(artist: Artist, rows: list[int], *, point: bool = False) -> None:
    """Say to which rows of the table a drawn thing belongs; ``point`` gives each of its markers a target as well."""
    artist.set_gid(f"{'point' if point else 'rows'}:{' '.join(str(row) for row in rows)}")


def markup(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element; ``data-row`` holds the rows that ``mark`` named.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        name: a prefix that tells the figure's definitions from those of other figures on the page.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    targets: list[ElementTree.Element] = []
    shapes = _shapes(root, name, targets)
    shapes.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # matplotlib's own style sheet
    shapes.extend(targets)  # last, so that they lie on top
    return ElementTree.tostring(shapes, encoding="unicode")


def _shapes(element: ElementTree.Element, name: str, targets: list[ElementTree.Element]) -> ElementTree.Element:
    """A copy of the element with shapes only; circles over its points are added to ``targets``."""
    copy = ElementTree.Element(_local(element.tag))
    gid = element.get("id", "")
    if gid.startswith(("rows:", "point:")):
        copy.set("data-row", gid.partition(":")[2])
    elif gid and copy.tag != "g":  # a definition that others use
        copy.set("id", f"{name}-{gid}")
    for key, value in element.attrib.items():
        if _local(key) == "href" and value.startswith("#"):
            copy.set("href", f"#{name}-{value[1:]}")
        elif key in GEOMETRY:
            copy.set(key, " ".join(value.split()))
    for key, value in re.findall(r"([\w-]+):\s*([^;]+)", element.get("style", "")):
        if key.startswith(PAINT) and "(" not in value:
            copy.set(key, value)
    copy.extend(_shapes(child, name, targets) for child in element if _local(child.tag) in TAGS)
    if gid.startswith("point:"):
        for marker in copy.iter("use"):
            where = {"cx": marker.get("x", "0"), "cy": marker.get("y", "0"), "r": f"{TARGET:g}"}
            group = ElementTree.Element("g", {"data-row": copy.get("data-row", "")})
            group.append(ElementTree.Element("circle", {**where, "fill": "transparent"}))
            targets.append(group)
    return copy


def _local(name: object) -> str:
    """A tag or attribute without its namespace; comments have a function for a tag."""
    return name.rpartition("}")[2] if isinstance(name, str) else ""
