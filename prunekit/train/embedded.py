"""``task=train train=embedded``: the embedded model from scratch, its stages in the loop that all training runs in."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar

from pydantic import Field

from prunekit.errors import PrunekitError, check_choice
from prunekit.options import Count, Options, Takes, Text

STAGES, MODEL = "stages", "model"
SOURCE = Path(__file__).resolve().parents[2]
"""The checkout: ``tools/`` stands there beside the package. A wheel leaves it out."""
SCRIPT = Path("tools", "embedded", "train.py")


class EmbeddedOptions(Options):
    """Options of ``train=embedded``."""

    group: ClassVar[str] = "train"
    owner: ClassVar[str] = "train=embedded"

    stages: Annotated[list[Text], Takes("be a list")] = Field(description="stages to run, in order")
    max_steps: Count | None = Field(None, description="no stage longer than this: a trial")
    threads: Count = Field(2, description="of the CPU")
    notes: Annotated[list[Text], Takes("be a list")] = Field(
        default_factory=list, description="what the record of the training says besides"
    )


def run_embedded(options: EmbeddedOptions, folder: Path, resume: bool) -> None:
    """Run the stages; checkpoints go to ``folder/stages``, the model as transformers loads it to ``folder/model``.

    Raises:
        PrunekitError: for unknown stages, checkpoints of an earlier run that is not to be resumed, and an
            installation without the training script.
    """
    script = training_script()
    for stage in options.stages:
        check_choice("train.stages", stage, script.STAGES)
    out = folder / STAGES
    if out.exists() and not resume:
        raise PrunekitError(f"'{out}' holds stages of an earlier run: resume=true goes on, or name a new folder")
    script.train(
        script.Options(
            out=out,
            model=folder / MODEL,
            most=options.max_steps,
            stages=options.stages,
            notes=options.notes,
            threads=options.threads,
        )
    )


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
