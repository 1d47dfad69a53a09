"""Reproduction: a version is made again from its tags alone, and compared with what was registered.

It works in a folder of its own and needs no lock: the project may be at work meanwhile, and so may other reproductions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diptych.config import Params
from diptych.data.workers import worker_count
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.dataset import dataset_version, fetch_dataset, folder_md5
from diptych.project.packages import LOCK, other_than_locked
from diptych.project.processes import HOLDER
from diptych.project.workspace import Workspace
from diptych.registry.checkout import checked_out
from diptych.registry.origin import Origin, origin_of, require_commit
from diptych.registry.registered_model import RegisteredModel, Version, model_folder
from diptych.registry.verdict import (
    NOTHING,
    Finding,
    compare,
    compare_file,
    compare_metrics,
    compare_weights,
)

_UNSET = (HOLDER, "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
"""Environment variables that would have the stages work for another project, or report elsewhere."""


@dataclass(frozen=True)
class Reproduction:
    """What came out."""

    name: str
    version: str
    git_sha: str
    from_cache: bool
    """Nothing was trained: what is kept was compared."""
    findings: list[Finding]
    packages: list[str]
    """Those installed that are others than in the commit's lock."""
    threads: tuple[int, int] | None
    """CPU threads that computed it, and those that could not but compute it now; None where they are as many."""
    folder: str | None
    """Where it was kept."""

    @property
    def identical(self) -> bool:
        """Whether everything that was registered is there again, to the bit."""
        return all(finding.identical for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        findings = [{**one._asdict(), "differences": dict(one.differences)} for one in self.findings]
        return {**vars(self), "identical": self.identical, "findings": findings}


def reproduce(
    workspace: Workspace,
    params: Params,
    which: str,
    *,
    from_cache: bool = False,
    keep: bool = False,
    on_line: Callable[[str], None],
) -> Reproduction:
    """Makes `which` (a number or an alias, of the registered model of params.yaml, or NAME/ and one of these) again.

    Where the data or the parameters of its commit are not those of its tags, that is the verdict, and nothing is
    trained.

    Args:
        workspace: the project, which stays as it is.
        params: where the registry is.
        which: the version.
        from_cache: train nothing; compare what git, DVC and MLflow have kept with the tags.
        keep: leave the folder in which it was made.
        on_line: takes what DVC and the stages say.

    Raises:
        DiptychError: there is no such version, it cannot be made again, or a stage fails.
    """
    if os.pathsep in str(workspace.root):
        # The stages find the commit's code by PYTHONPATH, and would find this one.
        raise DiptychError(
            f"The project's path, {workspace.root}, holds {os.pathsep!r}: move the project, then run again."
        )
    name, _, number = which.rpartition("/")
    model = RegisteredModel.of(workspace, params, name or None)
    version = model.find(number)
    origin = origin_of(version)
    require_commit(workspace, version, origin.git_sha)
    with checked_out(workspace, origin.git_sha, f"{version.name}-{version.version}", keep=keep) as project:
        findings = _sources(project, origin)
        if all(finding.identical for finding in findings):
            on_line(f"data/ is {fetch_dataset(project)}")
            findings[0] = compare("data", origin.data_md5, folder_md5(project.data), "DVC's cache is damaged")
        if all(finding.identical for finding in findings):
            compared = _compare_kept if from_cache else _make_again
            findings += compared(project, model, version, origin, on_line)
        else:
            findings += [Finding(what, None) for what in ("dvc.lock", "package", "weights", "metrics")]
        lock = project.root / LOCK
        packages = other_than_locked(lock) if lock.is_file() else []
        threads = None if from_cache else _other_threads(project, origin)
        folder = str(project.root) if keep else None
    return Reproduction(version.name, version.version, origin.git_sha, from_cache, findings, packages, threads, folder)


def _sources(project: Workspace, origin: Origin) -> list[Finding]:
    """Whether the commit has the data and the parameters of the tags."""
    there = dataset_version(project) or NOTHING
    return [
        compare("data", origin.data_md5, there, "the commit's data.dvc records another version"),
        compare_file("params", origin.params_sha256, project.params),
    ]


def _make_again(
    project: Workspace, model: RegisteredModel, version: Version, origin: Origin, on_line: Callable[[str], None]
) -> list[Finding]:
    """All stages anew, and what they made."""
    with _limited_to_cores(origin.threads if _leaves_threads_open(project) else None):
        dvc.repeat(project, _environment(project), on_line)
    return [_compare_lock(project, origin), *_compare_model(project, model, version, origin)]


def _compare_kept(
    project: Workspace, model: RegisteredModel, version: Version, origin: Origin, on_line: Callable[[str], None]
) -> list[Finding]:
    """What the commit's dvc.lock names, from the cache or the remote."""
    lock = _compare_lock(project, origin)
    if lock.found == NOTHING:
        return [lock, *(Finding(what, None) for what in ("outputs", "package", "weights", "metrics"))]
    missing = dvc.fetch_outputs(project)
    detail = f"neither the cache nor a remote has {', '.join(missing)}" if missing else ""
    outputs = Finding("outputs", not missing, detail=detail)
    return [lock, outputs, *_compare_model(project, model, version, origin)]


def _compare_lock(project: Workspace, origin: Origin) -> Finding:
    return compare_file("dvc.lock", origin.dvc_lock_sha256, project.root / "dvc.lock")


def _compare_model(project: Workspace, model: RegisteredModel, version: Version, origin: Origin) -> list[Finding]:
    """The package that is registered, the weights and the figures."""
    package, registered = Finding("package", True, origin.model_sha256, origin.model_sha256), None
    try:
        folder = model.download(version, project.root.parent / f"package-{version.version}")
        registered = model_folder(folder) / "model.safetensors"
    except DiptychError as error:
        package = Finding("package", False, origin.model_sha256, detail=str(error))
    weights = compare_weights(origin.weights_sha256, project.model / "model.safetensors", registered)
    return [package, weights, compare_metrics(version.metrics, project.reports / "metrics.json")]


def _leaves_threads_open(project: Workspace) -> bool:
    """Whether the stages take a thread a core; the commit's parameters may have fields that are not today's."""
    content = yaml.safe_load(project.params.read_text(encoding="utf-8"))
    return isinstance(content, Mapping) and content.get("threads") is None


@contextmanager
def _limited_to_cores(count: int | None) -> Iterator[None]:
    """This process and what it starts may use so many of the cores, if there are more; Linux only."""
    if count is None or count >= worker_count(None) or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _other_threads(project: Workspace, origin: Origin) -> tuple[int, int] | None:
    if origin.threads is None or not _leaves_threads_open(project):
        return None
    with _limited_to_cores(origin.threads):
        here = worker_count(None)
    return None if here == origin.threads else (origin.threads, here)


def _environment(project: Workspace) -> dict[str, str]:
    """Of the stages: they import the commit's code, and report to a store that goes when the folder goes."""
    inherited = {name: value for name, value in os.environ.items() if name not in _UNSET}
    paths = [str(project.root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    project.local.mkdir(exist_ok=True)
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{project.local.resolve()}/mlflow.db",
    }
    return inherited | own
