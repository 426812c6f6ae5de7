"""prunekit: visual-token pruning for vision-language models, as compositions of interchangeable parts."""

from prunekit.components.base import Cut, Fusion, Reducer, RowScorer, Schedule, Scorer, Selector
from prunekit.engine.state import CutRecord, Trace
from prunekit.errors import PrunekitError
from prunekit.pruning.presets import method, methods
from prunekit.pruning.pruner import Handle, Pruner, remove
from prunekit.registry import available, compose, create, register

__version__ = "0.1.0"

__all__ = [
    "Cut",
    "CutRecord",
    "Fusion",
    "Handle",
    "PrunekitError",
    "Pruner",
    "Reducer",
    "RowScorer",
    "Schedule",
    "Scorer",
    "Selector",
    "Trace",
    "available",
    "compose",
    "create",
    "method",
    "methods",
    "register",
    "remove",
]
