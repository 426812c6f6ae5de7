"""prunekit: visual-token pruning for vision-language models, as compositions of interchangeable parts."""

from prunekit import ops
from prunekit.components.base import Cut, Fusion, Reduced, Reducer, RowScorer, Schedule, Scorer, Selector
from prunekit.components.calibrated import CalibratedSchedule
from prunekit.components.scorers import ReceivedAttention
from prunekit.components.video import Video, VideoReducer, VideoScorer, VideoSelector
from prunekit.errors import PrunekitError, check_choice, check_interval
from prunekit.pruning.calibration import calibrate
from prunekit.pruning.presets import method, methods
from prunekit.pruning.pruner import Handle, Pruner, remove
from prunekit.registry import available, compose, create, register
from prunekit.views.trace import CutRecord, Trace

__version__ = "0.2.0"

__all__ = [
    "CalibratedSchedule",
    "Cut",
    "CutRecord",
    "Fusion",
    "Handle",
    "PrunekitError",
    "Pruner",
    "ReceivedAttention",
    "Reduced",
    "Reducer",
    "RowScorer",
    "Schedule",
    "Scorer",
    "Selector",
    "Trace",
    "Video",
    "VideoReducer",
    "VideoScorer",
    "VideoSelector",
    "available",
    "calibrate",
    "check_choice",
    "check_interval",
    "compose",
    "create",
    "method",
    "methods",
    "ops",
    "register",
    "remove",
]
