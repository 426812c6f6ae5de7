"""The command line: Hydra composes, the tasks run, and whatever goes wrong ends in one clear line."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from prunekit import ranks
from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.jobs import ERROR, failure, outcomes, reporting, unwritable
from prunekit.presets import methods
from prunekit.registry import KINDS, registry, source_folder
from prunekit.store import register_options

if TYPE_CHECKING:
    from prunekit.evaluation.results import Settings

CONF = source_folder("conf")
_failed_jobs: list[str] = []
_errors: list[Exception] = []
_folders: list[str] = []
"""What ``resume=true`` needs to find the latest job again."""
_unfinished_sweeps: list[tuple[SweepSummary, DictConfig]] = []


class SweepSummary(Callback):
    """After a sweep: which jobs failed, and the table of a sweep over rows. Jobs leave files, so that this holds for
    launchers with processes as well."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.start = time.time()
        try:
            check_sweep(config)
        except PrunekitError as error:  # of an exception Hydra would make a warning, and go on
            sys.exit(f"prunekit: error: {error}")
        _unfinished_sweeps.append((self, config))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        _unfinished_sweeps.clear()
        folder = Path(config.hydra.sweep.dir)
        errors = self.errors(folder, planned=bool(config.rows))
        failed = {name: error for name, error in errors.items() if error is not None}
        print(f"{len(errors) - len(failed)} of {len(errors)} jobs finished: {folder}")
        for name in sorted(failed, key=lambda name: (len(name), name)):
            _failed_jobs.append(name)
            print(f"failed: job {name}: {failed[name]}", file=sys.stderr)
        if config.rows and config.table.name is not None:
            _write_table(config, folder)

    def errors(self, folder: Path, planned: bool) -> dict[str, str | None]:
        """Why each job has no result, by its folder's name; None for one that has. Jobs are those of the plan, or those
        that wrote their configuration just now, for a folder that was swept before holds older ones too."""
        if planned:
            return {str(o.folder.relative_to(folder)): o.error for o in outcomes(folder)}
        written = [p for p in folder.rglob(".hydra/hydra.yaml") if p.stat().st_mtime >= self.start - 1]
        return {str(p.parent.parent.relative_to(folder)): failure(p.parent.parent) for p in written}


def check_sweep(config: DictConfig) -> None:
    """What can be said of a sweep before its first job."""
    if ranks.world() > 1:
        raise PrunekitError(f"a sweep: {ranks.world()} processes share one run; give its jobs to a launcher instead")
    settings = table_settings(config)
    if settings.file is not None and (reason := unwritable(Path(settings.file))):
        raise PrunekitError(f"table.file={settings.file} cannot be written: {reason}")
    if config.rows and not str(config.hydra.sweeper._target_).endswith(".RowSweeper"):
        raise PrunekitError("rows are swept by hydra/sweeper=rows alone")
    for word in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
        if word.key_or_group != "experiment" or not isinstance(sweep := word.value(), ChoiceSweep):
            continue
        for choice in sweep.list:
            path = CONF / "experiment" / f"{choice}.yaml"
            if path.exists() and "rows" in OmegaConf.load(path):
                raise PrunekitError(f"experiment={choice} is a sweep of its own: run it by itself")


def _write_table(config: DictConfig, folder: Path) -> None:
    """The table of a sweep over rows; what is wrong with it becomes the program's error, as callbacks may not raise."""
    from prunekit.evaluation.results import write_results

    try:
        print(f"files: {', '.join(write_results(folder, table_settings(config)))}")
    except Exception as error:
        _errors.append(error)


def table_settings(config: DictConfig) -> Settings:
    """``table`` of the configuration, checked."""
    from prunekit.evaluation.results import Settings

    return Settings.of(OmegaConf.to_container(config.table, resolve=True))  # type: ignore[arg-type]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float | None:
    """One job; what it returns a sweeper may optimise. In a sweep an error is written down and the sweep goes on; alone
    it ends the program."""
    register_options()  # worker processes import this function and nothing else
    folder = Path(ranks.share(HydraConfig.get().runtime.output_dir))
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    words = " ".join(HydraConfig.get().overrides.task)
    _folders[:] = [f"hydra.sweep.dir={HydraConfig.get().sweep.dir}" if sweeping else f"hydra.run.dir={folder}"]
    try:
        with reporting(folder, words) if sweeping else nullcontext():
            return _dispatch(config, folder)
    except Exception as error:  # Hydra would print lines of its own around it
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        if not sweeping:
            _errors.append(error)
            return None
        line = f"{words}: {one_line(error)}{kind_of(error)}"
        (folder / ERROR).write_text(line + "\n")
        print(f"failed: {line}", file=sys.stderr)
        return None


def _dispatch(config: DictConfig, folder: Path) -> float | None:
    from prunekit import tasks

    table: dict[str, Callable[[dict[str, Any], tasks.Context], float | None]] = {
        "eval": tasks.run_eval,
        "bench": tasks.run_bench,
        "families": tasks.run_families,
        "layers": tasks.run_layers,
        "report": tasks.run_report,
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
    return table[config.task](OmegaConf.to_container(config, resolve=True), context)  # type: ignore[arg-type]


PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit": "hydra-submitit-launcher",
    "slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}
"""Packages of launchers and sweepers, by the first word of their names."""


def one_line(error: BaseException) -> str:
    """An error's message as one line; Hydra's and OmegaConf's several lines shortened to what names the cause."""
    message = str(error)
    missing = re.search(r"'(hydra/(?:launcher|sweeper)/([a-z]+)\w*)'", message)
    if isinstance(error, HydraException) and missing and (package := PLUGINS.get(missing[2])):
        return f"{missing[1]} needs a package that is not installed: pip install {package}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{error.filename}': {error.strerror}"
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


def aside(arguments: list[str]) -> list[str]:
    """Of several processes that share a run the first prints and leaves Hydra's files; the others' go nowhere."""
    if ranks.is_first():
        return arguments
    folder = tempfile.mkdtemp(prefix="prunekit-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for good)
    return [*arguments, f"hydra.run.dir={folder}", "hydra.output_subdir=null"]


def run_all() -> None:
    """The job, or the sweep; one that is cut short because a worker's process died is summed up as far as it got."""
    _unfinished_sweeps.clear()
    _errors.clear()
    try:
        run()
    except Exception:
        for summary, config in list(_unfinished_sweeps):
            summary.on_multirun_end(config)
        raise
    if _errors:
        raise _errors.pop()


def check_report(arguments: list[str]) -> None:
    """A report's folder is no run's: Hydra would write into it before the task could refuse."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if given.get("task") == "report" and "hydra.run.dir" in given:
        from prunekit.report.task import check_folder

        check_folder(Path(given["hydra.run.dir"]))


def main() -> None:
    """Entry point of ``python -m prunekit``. Exit code 0; 1 after one line on standard error; 130 if interrupted."""
    # Hydra then hands exceptions over instead of printing several lines, or a traceback, of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.showwarning = lambda message, *_, **__: print(f"prunekit: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        sys.argv[1:] = aside(tidy(sys.argv[1:]))
        check_choices(sys.argv[1:])
        check_report(sys.argv[1:])
        register_options()
        for path in registry.user_files():
            print(f"loaded {path}")
        run_all()
    except KeyboardInterrupt:
        if ranks.is_first():
            where = f"; what is done stands, to go on repeat it with: resume=true {' '.join(_folders)}"
            print(f"prunekit: interrupted{where if _folders else ''}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the last line of defence: one line, the traceback on request
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        which = "" if ranks.is_first() else f"process {ranks.rank()}: "
        sys.exit(f"prunekit: error: {which}{one_line(error)}{kind_of(error)}")
    if _failed_jobs:
        sys.exit(1)
