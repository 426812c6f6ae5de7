"""Errors of a run as the one line that ends it."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from prunekit import ranks
from prunekit.errors import FolderError
from prunekit.files import written
from prunekit.run.invocation import current

PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit": "hydra-submitit-launcher",
    "slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}
"""Packages of launchers and sweepers, by the first word of their names."""


PAGES = {
    r"task=app|app\.": "docs/explore.md",
    r"task=serve|serve\.|bench\.engine=vllm": "docs/serving.md",
    r"bench\.|task=bench": "docs/performance.md",
    r"report\.|task=report|runs=": "docs/report.md",
    r"train\.|Unknown train": "docs/training.md",
    r"sweep\.|hydra/(sweeper|launcher)|Unknown experiment": "docs/sweeps.md",
    r"data[.' ]|Unknown data": "docs/benchmarks.md",
    r"Unknown (method|scorer|fusion|schedule|selector|reducer)": "methods/README.md",
    r"model '": "docs/families.md",
}
"""The document that helps, by how an error's line begins."""


def page_of(line: str) -> str:
    """Where to read on, to stand behind an error's line; empty where no document is about it."""
    page = next((page for start, page in PAGES.items() if re.match(start, line)), "")
    return page and f" (see {page})"


def one_line(error: BaseException) -> str:
    """An error's message as one line; Hydra's and OmegaConf's several lines shortened to what names the cause."""
    message = str(error)
    missing = re.search(r"'(hydra/(?:launcher|sweeper)/([a-z]+)\w*)'", message)
    if isinstance(error, HydraException) and missing and (package := PLUGINS.get(missing[2])):
        return f"{missing[1]} needs a package that is not installed: pip install {package}"
    if isinstance(error, OSError) and error.strerror:
        file = error.filename or written(error) or current().folder
        return f"'{file}': {error.strerror}"
    if re.search("No space left on device|os error 28|PytorchStreamWriter failed", message):  # of torch, safetensors
        message = f"'{current().folder}' cannot be written: {message}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = f"\n{error.__cause__}" if error.__cause__ else ""
        noise = ("To append", "See https", "Set the env", "full_key", "object_type", "reference_type")
        lines = [line.strip() for line in (message + cause).splitlines()]
        message = " ".join(dict.fromkeys(line for line in lines if line and not line.startswith(noise)))
    return " ".join(message.split()) or type(error).__name__


def leave(error: Exception) -> NoReturn:
    """End the program with one line."""
    which = "" if ranks.is_first() else f"process {ranks.rank()}: "
    text = one_line(error)
    line = f"prunekit: error: {which}{text}{kind_of(error)}{page_of(text)}"
    if isinstance(error, FolderError):
        print(line, file=sys.stderr)
        sys.exit(2)
    sys.exit(line)


def kind_of(error: BaseException) -> str:
    """For an error that nobody raised on purpose: what it is, and how to see where it came from."""
    if isinstance(error, ValueError | OSError | HydraException | OmegaConfBaseException):
        return ""
    return f" ({type(error).__name__}; PRUNEKIT_DEBUG=1 shows the traceback)"


@contextmanager
def ending() -> Iterator[None]:
    """An error ends the program: Hydra would make a warning of what its callbacks raise, and go on."""
    try:
        yield
    except Exception as error:
        if os.environ.get("PRUNEKIT_DEBUG"):
            traceback.print_exc()
        leave(error)
