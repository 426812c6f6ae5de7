"""The embedded data: scenes of emoji and signs, and one-word questions about them."""

from prunekit.data.example import Example
from prunekit.data.mini import SPLITS, load

__all__ = ["SPLITS", "Example", "load"]
