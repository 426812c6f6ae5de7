"""``task=train train=embedded``: the embedded model from scratch, its stages in the loop that all training runs in."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from prunekit.errors import PrunekitError, UnknownNameError, check_choice

STAGES, MODEL = "stages", "model"
SOURCE = Path(__file__).resolve().parents[2]
"""The checkout: ``tools/`` stands there beside the package. A wheel leaves it out."""
SCRIPT = Path("tools", "embedded", "train.py")
OPTIONS = ("stages", "max_steps", "threads", "notes")


def run_embedded(options: dict[str, Any], folder: Path, resume: bool) -> None:
    """Run the stages; checkpoints go to ``folder/stages``, the model as transformers loads it to ``folder/model``.

    Raises:
        PrunekitError: for unknown options and stages, checkpoints of an earlier run that is not to be resumed, and an
            installation without the training script.
    """
    script = training_script()
    for name in options:
        if name not in OPTIONS:
            raise UnknownNameError("option of train=embedded:", name, OPTIONS)
    for stage in options["stages"]:
        check_choice("train.stages", stage, script.STAGES)
    out = folder / STAGES
    if out.exists() and not resume:
        raise PrunekitError(f"'{out}' holds stages of an earlier run: resume=true goes on, or name a new folder")
    most = None if options["max_steps"] is None else _count(options, "max_steps")
    chosen = {"stages": options["stages"], "notes": options["notes"], "threads": _count(options, "threads")}
    script.train(script.Options(out=out, model=folder / MODEL, most=most, **chosen))


def training_script() -> ModuleType:
    """The module ``tools.embedded.train`` of the checkout that this package belongs to.

    Raises:
        PrunekitError: if the package is installed without its ``tools/``.
    """
    if not (SOURCE / SCRIPT).is_file():
        raise PrunekitError(
            f"train=embedded needs a checkout of prunekit: the training script, '{SCRIPT}', is not in the installed "
            f"package (there is none in '{SOURCE}')"
        )
    if str(SOURCE) not in sys.path:  # the script imports its neighbours as tools.embedded
        sys.path.insert(0, str(SOURCE))
    return importlib.import_module("tools.embedded.train")


def _count(options: dict[str, Any], name: str) -> int:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PrunekitError(f"train.{name} must be a whole number from 1 on, not {value!r}")
    return value
