"""The command line: Hydra composes, the tasks run, and whatever goes wrong ends in one clear line."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Sweep
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunekit.errors import UnknownNameError
from prunekit.presets import methods
from prunekit.registry import KINDS, registry, source_folder
from prunekit.store import register_options

CONF = source_folder("conf")
ERROR_FILE = "error.txt"
_failed_jobs: list[str] = []
_errors: list[Exception] = []


class SweepSummary(Callback):
    """After a sweep: which jobs failed. They left a file, so that this holds for launchers with processes as well."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.start = time.time()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        # A folder that was swept before holds older jobs too; their configuration was not written just now.
        written = [p for p in folder.rglob(".hydra/hydra.yaml") if p.stat().st_mtime >= self.start - 1]
        jobs = {str(p.parent.parent.relative_to(folder)): p.parent.parent for p in written}
        failed = {name: job for name, job in jobs.items() if (job / ERROR_FILE).exists()}
        print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs finished: {folder}")
        for name in sorted(failed, key=lambda name: (len(name), name)):
            _failed_jobs.append(name)
            print(f"failed: job {name}: {(failed[name] / ERROR_FILE).read_text().strip()}", file=sys.stderr)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> None:
    """One job. In a sweep an error is written down and the sweep goes on; alone it ends the program."""
    register_options()  # worker processes import this function and nothing else
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        _dispatch(config, folder)
    except Exception as error:  # Hydra would print lines of its own around it
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            _errors.append(error)
            return
        line = f"{' '.join(HydraConfig.get().overrides.task)}: {one_line(error)}{kind_of(error)}"
        (folder / ERROR_FILE).write_text(line + "\n")
        print(f"failed: {line}", file=sys.stderr)
    else:
        (folder / ERROR_FILE).unlink(missing_ok=True)


def _dispatch(config: DictConfig, folder: Path) -> None:
    from prunekit import tasks

    table = {
        "eval": tasks.run_eval,
        "bench": tasks.run_bench,
        "families": tasks.run_families,
        "layers": tasks.run_layers,
        "methods": tasks.run_methods,
        "train": tasks.run_train,
        "study": tasks.run_study,
    }
    if config.task not in table:
        raise UnknownNameError("task", config.task, table)
    hydra_config = HydraConfig.get()
    context = tasks.Context(
        folder=folder,
        sweep="/".join(Path(hydra_config.sweep.dir).parts[-2:]) if hydra_config.mode == RunMode.MULTIRUN else None,
        choices={
            k: v
            for k, v in hydra_config.runtime.choices.items()
            if v and "/" not in k and (k != "train" or config.task == "train")
        },
    )
    table[config.task](OmegaConf.to_container(config, resolve=True), context)  # type: ignore[arg-type]


def one_line(error: BaseException) -> str:
    """An error's message as one line; Hydra's and OmegaConf's several lines shortened to what names the cause."""
    message = str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = f"\n{error.__cause__}" if error.__cause__ else ""
        noise = ("To append", "See https", "Set the env", "full_key", "object_type", "reference_type")
        lines = [line.strip() for line in (message + cause).splitlines()]
        message = " ".join(dict.fromkeys(line for line in lines if line and not line.startswith(noise)))
    return " ".join(message.split()) or type(error).__name__


def kind_of(error: BaseException) -> str:
    """For an error that nobody raised on purpose: what it is, and how to see where it came from."""
    if isinstance(error, ValueError | OSError | HydraException | OmegaConfBaseException):
        return ""
    return f" ({type(error).__name__}; PRUNEKIT_DEBUG=1 shows the traceback)"


def tidy(arguments: list[str]) -> list[str]:
    """The arguments with ``-m`` first, where argparse wants it; a flag that Hydra does not have is an error."""
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    for argument in arguments:
        if argument.startswith("-") and "=" not in argument and argument not in known:
            raise UnknownNameError("option", argument, known)
    sweeps = [a for a in arguments if a in ("-m", "--multirun")]
    return [*sweeps[:1], *(a for a in arguments if a not in sweeps)]


def check_choices(arguments: list[str]) -> None:
    """Before Hydra composes: a group option that does not exist is named with the nearest one that does."""
    known: dict[str, list[str]] = {kind: registry.available(kind) for kind in KINDS} | {"method": list(methods())}
    if any(a.startswith(("--config-dir", "-cd")) for a in arguments):
        known = {}  # the user's own folder may add options; Hydra knows which
    else:
        known |= {g: [p.stem for p in (CONF / g).glob("*.yaml")] for g in ("model", "data", "experiment", "train")}
    words = [a for a in arguments if not a.startswith("-") and "=" in a]
    for override in OverridesParser.create().parse_overrides(words):
        if override.key_or_group not in known or override.is_delete() or override.is_add():
            continue
        value = override.value()
        if isinstance(value, Sweep) and not isinstance(value, ChoiceSweep):
            continue  # glob(...) and the like: Hydra knows what they match
        for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
            if choice is not None and not (str(choice).startswith("_") or str(choice) in known[override.key_or_group]):
                raise UnknownNameError(override.key_or_group, choice, known[override.key_or_group])


def main() -> None:
    """Entry point of ``python -m prunekit``. Exit code 0, or 1 after one line on standard error."""
    # Hydra then hands exceptions over instead of printing several lines, or a traceback, of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.showwarning = lambda message, *_, **__: print(f"prunekit: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        sys.argv[1:] = tidy(sys.argv[1:])
        check_choices(sys.argv[1:])
        register_options()
        for path in registry.user_files():
            print(f"loaded {path}")
        run()
        if _errors:
            raise _errors.pop()
    except KeyboardInterrupt:
        sys.exit(
            "prunekit: interrupted; finished predictions stand: repeat with resume=true and the same hydra.run.dir"
        )
    except Exception as error:  # the last line of defence: one line, the traceback on request
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        sys.exit(f"prunekit: error: {one_line(error)}{kind_of(error)}")
    if _failed_jobs:
        sys.exit(1)
