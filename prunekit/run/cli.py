"""The entry point: Hydra composes, a task runs, and whatever goes wrong ends in one clear line."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import warnings

from prunekit import __version__, ranks
from prunekit.registry import registry
from prunekit.run import job
from prunekit.run.config_store import register_options
from prunekit.run.invocation import Invocation, begin
from prunekit.run.messages import leave
from prunekit.run.words import prepared, quoted

WELCOME = """\
prunekit: which visual tokens a vision-language model needs, and what it costs to keep the others.

Three first things to try; the embedded model needs no download:
  python -m prunekit                                     dense against pruned on its own data, in a minute
  python -m prunekit task=app                            the same by eye, in a browser (pip install 'prunekit[app]')
  python -m prunekit model=hf model.name=FOLDER_OR_ID    your own model: accuracy and cost at half of its visual tokens

Any method: method=fastv keep_ratio=0.25. All options: prunekit --help. What there is to read: README.md, docs/"""


def console() -> None:
    """Entry point of the command ``prunekit``: the same as ``python -m prunekit``, but alone it says what to try."""
    if len(sys.argv) > 1:
        main()
    else:
        print(WELCOME)


def aside(arguments: list[str]) -> list[str]:
    """Of several processes that share a run the first prints and leaves Hydra's files; the others' go nowhere."""
    if ranks.is_first():
        return arguments
    folder = tempfile.mkdtemp(prefix="prunekit-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for good)
    return [*arguments, f"hydra.run.dir={folder}", "hydra.output_subdir=null"]


def run_all(invocation: Invocation) -> None:
    """Run the job, or the sweep, and raise its error. A sweep that is cut short because a worker's process died is
    summed up as far as it got."""
    try:
        job.run()
    except Exception:
        if invocation.sum_up is not None:
            invocation.sum_up()
        raise
    if invocation.error is not None:
        raise invocation.error


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
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(WELCOME)
    invocation = begin()
    try:
        sys.argv[1:] = aside(prepared(sys.argv[1:]))
        register_options()
        for path in registry.user_files():
            print(f"loaded {path}")
        run_all(invocation)
    except KeyboardInterrupt:
        if ranks.is_first():
            folder = " ".join(quoted(*option) for option in invocation.place.items())
            fresh = "overwrite=false " if "overwrite=true" in map(str.lower, sys.argv) else ""
            where = f"; what is done stands, to go on repeat it with: resume=true {fresh}{folder}"
            print(f"prunekit: interrupted{where if folder else ''}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the last line of defence: one line, the traceback on request
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        leave(error)
    finally:
        invocation.claims.close()
    if invocation.failed_jobs:
        sys.exit(1)
