"""Settings before the heavy libraries are imported: environment variables and garbage collection."""

from __future__ import annotations

import atexit
import gc
import getpass
import os
import sys
from pathlib import Path

from diptych.errors import DiptychError
from diptych.project.git import OF_HOOKS
from diptych.project.prefect_settings import keep_home_in
from diptych.project.proxies import spare_this_machine
from diptych.project.workspace import Workspace, find_workspace

DEFAULTS = {
    # No library reports its use to its makers, unless the user asks for it.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Runs are offline: weights come from a filled cache or a folder.
    "HF_HUB_OFFLINE": "1",
    # A file in the project's folder, such as random.py, must not hide a module of Python's from servers and launchers.
    "PYTHONSAFEPATH": "1",
    # Forked data loaders and the tokenizers' thread pool block each other.
    "TOKENIZERS_PARALLELISM": "false",
    # Waiting threads must sleep. Spinning ones hold cores that others need: on busy machines training takes four times
    # as long.
    "OMP_WAIT_POLICY": "passive",
    # CUDA matrix products give the same bits only with a fixed workspace.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Prefect's own server takes up to 50 s on busy cores; its default limit is 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # An unreachable MLflow server must cost seconds, not the minutes of seven retries.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # With a server MLflow prints the address of each run, also where stdout is for JSON.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # Arrow's own allocator keeps what is freed: a fifth of the memory of validation.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # Lance warns of each table that it makes.
    "LANCEDB_LOG": "error",
}

_USUAL_THRESHOLDS = gc.get_threshold()


def enter() -> Workspace:
    """Return the project that the current folder lies in, with the environment prepared for it."""
    workspace = find_workspace()
    prepare(workspace.root)
    return workspace


def prepare(root: Path) -> None:
    """Set the variables that are not set yet, for this process and its children; `root` is the project's folder.

    The folder of this Python goes first on PATH, so that DVC's stages find this very `diptych` even where the virtual
    environment is not activated.

    Raises:
        DiptychError: Python strips docstrings.
    """
    if sys.flags.optimize > 1:
        raise DiptychError(
            "PYTHONOPTIMIZE=2 (python -OO) strips docstrings, which Great Expectations and transformers need: unset "
            "it, or set it to 1."
        )
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Files of DVC, git and Prefect are UTF-8, whatever the locale is; DVC and Prefect read theirs by the locale.
    os.environ["PYTHONUTF8"] = "1"
    # A hook of git sets them to its own repository. Here the folder decides which repository git and DVC use.
    for name in OF_HOOKS:
        os.environ.pop(name, None)
    _name_user(root)
    spare_this_machine()
    keep_home_in(root)
    # Keep the results of torch.compile for the next run: their default folder is temporary.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / ".diptych" / "torchinductor"))
    here = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if paths[0] != here:
        os.environ["PATH"] = os.pathsep.join([here, *paths])
    _collect_rarely()


def _name_user(root: Path) -> None:
    """Give a user whom the machine does not know, as in containers, a name and a home: DVC and git need both.

    HOME may still name the home of another user, in which DVC and git fail: it is replaced.
    """
    try:
        getpass.getuser()
    except (OSError, KeyError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        is_home = not Path.home().exists() or os.access(Path.home(), os.X_OK)
    except (RuntimeError, OSError):
        is_home = False
    if not is_home:
        os.environ["HOME"] = str(root / ".diptych" / "home")


def collect_as_usual() -> None:
    """Collect garbage at the usual rate: call it once the libraries are imported. Cycles may hold tensors."""
    gc.freeze()
    gc.set_threshold(*_USUAL_THRESHOLDS)


def _collect_rarely() -> None:
    """Collect garbage rarely during imports, and not at exit.

    Imports make three million objects that live to the end, and the collector would visit them again and again: 2.6 of
    the 11.7 s that a run with nothing to do took.
    """
    gc.set_threshold(50_000, 20, 50)
    atexit.unregister(_leave_alone)
    atexit.register(_leave_alone)


def _leave_alone() -> None:
    """Keep the collector from the objects at exit, except with Triton, which reports all that was not freed."""
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()
