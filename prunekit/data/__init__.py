"""Data: the embedded scenes of emoji and signs (``load``), files, data sets and benchmarks (``source.open_source``)."""

from prunekit.data.example import Example
from prunekit.data.mini import SPLITS, load

__all__ = ["SPLITS", "Example", "load"]
