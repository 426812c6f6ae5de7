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
OPTIONS = ("stages", "tower_steps", "align_steps", "drawn_steps", "joint_steps", "max_steps", "threads", "notes")


def run_embedded(options: dict[str, Any], folder: Path, resume: bool) -> None:
    """Run the stages; checkpoints go to ``folder/stages``, the model as transformers loads it to ``folder/model``.

    Raises:
        PrunekitError: for unknown options and stages, checkpoints of an earlier run that is not to be resumed, and an
            installation without the training script.
    """
    train = training_script()
    for name in options:
        if name not in OPTIONS:
            raise UnknownNameError("option of train=embedded:", name, OPTIONS)
    for stage in options["stages"]:
        check_choice("train.stages", stage, train.STAGES)
    out = folder / STAGES
    if out.exists() and not resume:
        raise PrunekitError(f"'{out}' holds stages of an earlier run: resume=true goes on, or name a new folder")
    arguments = ["--out", str(out), "--model", str(folder / MODEL), "--threads", str(_count(options, "threads"))]
    arguments += ["--stages", *options["stages"], "--notes", *options["notes"], *(["--resume"] if resume else [])]
    for name in ("tower", "align", "drawn", "joint"):
        arguments += [f"--{name}-steps", str(_count(options, f"{name}_steps"))]
    if options["max_steps"] is not None:
        arguments += ["--most", str(_count(options, "max_steps"))]
    train.main(arguments)


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
