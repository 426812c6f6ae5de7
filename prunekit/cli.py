"""The command line: Hydra composes, the tasks run, and whatever goes wrong ends in one clear line."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from prunekit import __version__, ranks
from prunekit.errors import FolderError, PrunekitError, UnknownNameError
from prunekit.files import unwritable, written
from prunekit.records.folder import check_flags, check_replaceable, check_resumable, clear_results, holds_results
from prunekit.records.lock import LOCK, check_free, claimed
from prunekit.records.sweep import ERROR, failure, outcomes, reporting
from prunekit.registry import registry
from prunekit.store import register_options
from prunekit.words import CONF, prepared, quoted

if TYPE_CHECKING:
    from prunekit.results.settings import TableSettings

_failed_jobs: list[str] = []
_errors: list[Exception] = []
_place: dict[str, str] = {}
"""What ``resume=true`` needs to find the latest run, or sweep, again: the option, and the folder."""
_claims = ExitStack()
"""The folders that the latest run, or sweep, writes."""
_unfinished_sweeps: list[tuple[SweepSummary, DictConfig]] = []


def option_groups() -> str:
    """The groups of the configuration and their options, for ``--help``; those that begin with "_" are internal."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    lines = hydra.format_config_groups(lambda name: not name.startswith("hydra")).splitlines()
    split = [line.partition(": ") for line in lines]
    shown = {group: [o for o in options.split(", ") if not o.startswith("_")] for group, _, options in split}
    return "\n".join(f"{group}: {', '.join(options)}" for group, options in shown.items())


def sweep_over(values: Sequence[Any]) -> str:
    """A list of the configuration as a sweep of the command line: [0.25, 1.0] is "choice(0.25,1)"."""
    return f"choice({','.join(f'{value:g}' if isinstance(value, float) else str(value) for value in values)})"


# Part of the default folders' names: runs that start at the same time have folders of their own.
OmegaConf.register_new_resolver("prunekit_unique", lambda: secrets.token_hex(4), use_cache=True, replace=True)
OmegaConf.register_new_resolver("prunekit_groups", option_groups, replace=True)
OmegaConf.register_new_resolver("prunekit_sweep", sweep_over, replace=True)


class SweepSummary(Callback):
    """Before a run or a sweep: whether its folders may be written. After a sweep: which jobs failed, and the table of a
    sweep over rows. Jobs leave files, so that this holds for launchers with processes as well."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra writes anything to the run folder: it must be free, and nothing finished be lost in it."""
        with ending():
            HydraConfig.instance().set_config(config)
            folder = Path(ranks.share(os.path.abspath(config.hydra.run.dir)))
            _place["hydra.run.dir"] = str(folder)
            check_flags(config)
            if config.task == "report":
                from prunekit.report.task import check_folder

                check_folder(folder)
            _claims.enter_context(claimed(folder))
            ranks.by_first(lambda: check_resumable(folder, plain(config)))
            ranks.by_first(lambda: check_replaceable(folder, plain(config)))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.start = time.time()
        with ending():
            check_sweep(config)
            folder = Path(config.hydra.sweep.dir)
            check_flags(config)
            _place["hydra.sweep.dir"] = str(folder)
            _claims.enter_context(claimed(folder))
            check_jobs(config, folder)
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


@contextmanager
def ending() -> Iterator[None]:
    """An error ends the program: Hydra would make a warning of what its callbacks raise, and go on."""
    try:
        yield
    except Exception as error:
        if os.environ.get("PRUNEKIT_DEBUG"):
            traceback.print_exc()
        leave(error)


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration without Hydra's own part, as it is written to ``.hydra/config.yaml``."""
    found: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in found.items() if key != "hydra"}


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


def check_jobs(config: DictConfig, sweep: Path) -> None:
    """What can be said of a sweep's folders before its first job.

    Raises:
        FolderError: if jobs share a folder, another process writes in one, or one holds a finished run that would be
            replaced.
    """
    for lock in sweep.rglob(LOCK):
        check_free(lock.parent)
    kept = config.resume or config.overwrite or not holds_results(sweep)
    parts: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    template = str(parts["subdir"])
    if kept and re.search(r"hydra[.:]job\.(num|id)", template):
        return
    if (jobs := planned(config)) is None:
        if not kept:
            raise FolderError(f"'{sweep}' holds finished runs: resume=true goes on, overwrite=true begins anew")
        raise FolderError(
            f"hydra.sweep.subdir={template}: this sweeper's jobs may share it; put ${{hydra.job.num}} in it"
        )
    shared = [folder for folder, count in Counter(folder for folder, _ in jobs).items() if count > 1]
    if shared:
        number = sum(folder == shared[0] for folder, _ in jobs)
        raise FolderError(
            f"hydra.sweep.subdir={template} does not tell the jobs apart: {number} of {len(jobs)} would write "
            f"'{sweep / shared[0]}'; put ${{hydra.job.num}} or what is swept in it"
        )
    for folder, job in jobs:
        check_replaceable(sweep / folder, job)


def planned(config: DictConfig) -> list[tuple[str, dict[str, Any]]] | None:
    """The folder of each job of a sweep, below the sweep's, and its configuration; None for a sweeper that decides as
    it goes on."""
    sweeper, loader = config.hydra.sweeper, GlobalHydra.instance().config_loader()
    words, params = list(config.hydra.overrides.task), [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()]
    if sweeper._target_.endswith(".RowSweeper"):
        rows: Any = get_class(sweeper._target_)
        jobs = rows.words(config, params, words, loader)
    elif sweeper._target_.endswith(".BasicSweeper"):
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *words])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    else:
        return None
    found = []
    for number, job in enumerate(jobs):
        composed = loader.load_sweep_config(config, list(job))
        with open_dict(composed):
            composed.hydra.job.num = composed.hydra.job.id = number
        HydraConfig.instance().set_config(composed)
        found.append((os.path.normpath(str(composed.hydra.sweep.subdir)), plain(composed)))
    return found


def _write_table(config: DictConfig, folder: Path) -> None:
    """The table of a sweep over rows; what is wrong with it becomes the program's error, as callbacks may not raise."""
    from prunekit.results.sweep import write_results

    try:
        print(f"files: {', '.join(write_results(folder, table_settings(config)))}")
    except Exception as error:
        _errors.append(error)


def table_settings(config: DictConfig) -> TableSettings:
    """``table`` of the configuration, checked."""
    from prunekit.results.settings import TableSettings

    return TableSettings.of(OmegaConf.to_container(config.table, resolve=True))  # type: ignore[arg-type]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float | None:
    """One job; what it returns a sweeper may optimise. In a sweep an error is written down and the sweep goes on; alone
    it ends the program."""
    register_options()  # worker processes import this function and nothing else
    folder = Path(ranks.share(HydraConfig.get().runtime.output_dir))
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    words = " ".join(HydraConfig.get().overrides.task)
    ours = False
    try:
        with claimed(folder), reporting(folder, words) if sweeping else nullcontext():
            ours = True
            if config.overwrite and config.task != "report" and ranks.is_first():
                clear_results(folder)
            return _dispatch(config, folder)
    except Exception as error:  # Hydra would print lines of its own around it
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        if not sweeping:
            _errors.append(error)
            return None
        line = f"{words}: {one_line(error)}{kind_of(error)}"
        if ours:
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
    if isinstance(error, OSError) and error.strerror:
        file = error.filename or written(error) or next(iter(_place.values()), "?")
        return f"'{file}': {error.strerror}"
    if re.search("No space left on device|os error 28|PytorchStreamWriter failed", message):  # of torch, safetensors
        message = f"'{next(iter(_place.values()), '?')}' cannot be written: {message}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = f"\n{error.__cause__}" if error.__cause__ else ""
        noise = ("To append", "See https", "Set the env", "full_key", "object_type", "reference_type")
        lines = [line.strip() for line in (message + cause).splitlines()]
        message = " ".join(dict.fromkeys(line for line in lines if line and not line.startswith(noise)))
    return " ".join(message.split()) or type(error).__name__


def leave(error: Exception) -> NoReturn:
    """End the program with one line."""
    which = "" if ranks.is_first() else f"process {ranks.rank()}: "
    line = f"prunekit: error: {which}{one_line(error)}{kind_of(error)}"
    if isinstance(error, FolderError):
        print(line, file=sys.stderr)
        sys.exit(2)
    sys.exit(line)


def kind_of(error: BaseException) -> str:
    """For an error that nobody raised on purpose: what it is, and how to see where it came from."""
    if isinstance(error, ValueError | OSError | HydraException | OmegaConfBaseException):
        return ""
    return f" ({type(error).__name__}; PRUNEKIT_DEBUG=1 shows the traceback)"


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


def main() -> None:
    """Entry point of ``python -m prunekit``. Exit code 0; 1 after one line on standard error, 2 where the folder is not
    to be written; 130 if interrupted."""
    # Hydra then hands exceptions over instead of printing several lines, or a traceback, of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.showwarning = lambda message, *_, **__: print(f"prunekit: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if "--version" in sys.argv[1:]:
        print(f"prunekit {__version__}")
        return
    _place.clear()
    try:
        sys.argv[1:] = aside(prepared(sys.argv[1:]))
        register_options()
        for path in registry.user_files():
            print(f"loaded {path}")
        run_all()
    except KeyboardInterrupt:
        if ranks.is_first():
            folder = " ".join(quoted(*option) for option in _place.items())
            fresh = "overwrite=false " if "overwrite=true" in map(str.lower, sys.argv) else ""
            where = f"; what is done stands, to go on repeat it with: resume=true {fresh}{folder}"
            print(f"prunekit: interrupted{where if folder else ''}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the last line of defence: one line, the traceback on request
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        leave(error)
    finally:
        _claims.close()
    if _failed_jobs:
        sys.exit(1)
