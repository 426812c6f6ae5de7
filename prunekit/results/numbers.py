"""Numbers as the tables write them."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "–"


def with_interval(
    value: float,
    interval: Sequence[float] | None,
    *,
    signed: bool = False,
    scale: float = 100,
    digits: int = 1,
    unit: str = "",
) -> str:
    """A value and its 95 % interval, "12.3 [11.0, 13.5]" or "12.3 [–]"; in percent unless ``scale`` says otherwise."""
    number, *ends = (f"{scale * x:{'+' if signed else ''}.{digits}f}" for x in (value, *(interval or ())))
    return f"{number}{unit} [{', '.join(ends) or NONE}]"


def ratio(value: float | None) -> str:
    """A share of the dense model's cost."""
    return NONE if value is None else f"{value:.3f}"
