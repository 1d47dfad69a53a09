"""Reproduction: a version is rebuilt from its tags alone, and compared with what was registered.

It works in a folder of its own and needs no lock: runs of the project and other reproductions may work meanwhile.
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
from diptych.data.cores import worker_count
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.dataset import fetch_dataset, folder_md5
from diptych.project.packages import LOCK, other_than_locked
from diptych.project.processes import HOLDER
from diptych.project.record import dataset_version
from diptych.project.workspace import Workspace
from diptych.registry.checkout import checked_out
from diptych.registry.origin import Origin, origin_of
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
"""Environment variables that would direct the stages to another project or another MLflow."""


@dataclass(frozen=True)
class Reproduction:
    """Result of a reproduction."""

    name: str
    version: str
    git_sha: str
    from_cache: bool
    """True if nothing was trained, and the stored files were compared."""
    findings: list[Finding]
    packages: list[str]
    """Installed packages that differ from the commit's lock."""
    threads: tuple[int, int] | None
    """Number of CPU threads that computed it, and of those that compute it now; None where they are equal."""
    folder: str | None
    """Path of the folder in which it was rebuilt; None where that is removed."""

    @property
    def identical(self) -> bool:
        """True if everything equals what was registered, to the bit."""
        return all(finding.identical for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        findings = [{**finding._asdict(), "differences": dict(finding.differences)} for finding in self.findings]
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
    """Rebuild `which` (a number or an alias of the registered model of params.yaml, or NAME/ and one of these).

    Where the data or the parameters of its commit differ from its tags, the findings say so, and nothing is trained.

    With `from_cache` nothing is trained, and what git, DVC and MLflow have stored is compared with the tags. With
    `keep` the folder in which it was rebuilt stays. Lines of DVC and the stages go to `on_line`. The project itself
    stays as it is.

    Raises:
        DiptychError: there is no such version, it cannot be rebuilt, or a stage fails.
    """
    _require_importable(workspace)
    name, _, number = which.rpartition("/")
    model = RegisteredModel.of(workspace, params, name or None)
    version = model.find(number)
    origin = origin_of(version, workspace)
    with checked_out(workspace, origin.git_sha, f"{version.name}-{version.version}", keep=keep) as project:
        findings = _compare_sources(project, origin, on_line)
        if all(finding.identical for finding in findings):
            if not from_cache:
                _run_stages(project, origin, on_line)
            findings += _compare_results(project, model, version, origin, fetch=from_cache)
        else:
            findings += [Finding(what, None) for what in ("dvc.lock", "package", "weights", "metrics")]
        lock = project.root / LOCK
        return Reproduction(
            name=version.name,
            version=version.version,
            git_sha=origin.git_sha,
            from_cache=from_cache,
            findings=findings,
            packages=other_than_locked(lock) if lock.is_file() else [],
            threads=None if from_cache else _other_threads(project, origin),
            folder=str(project.root) if keep else None,
        )


def _require_importable(workspace: Workspace) -> None:
    # The stages import the commit's code by PYTHONPATH, and would import the present code instead.
    if os.pathsep in str(workspace.root):
        raise DiptychError(
            f"The project's path, {workspace.root}, holds {os.pathsep!r}: move the project, then run again."
        )


def _compare_sources(project: Workspace, origin: Origin, on_line: Callable[[str], None]) -> list[Finding]:
    """Compare the data and the parameters of the commit with the tags, and fetch the data where both are identical."""
    recorded = dataset_version(project) or NOTHING
    data = compare("data", origin.data_md5, recorded, "the commit's data.dvc records another version")
    params = compare_file("params", origin.params_sha256, project.params)
    if data.identical and params.identical:
        on_line(f"data/ is {fetch_dataset(project)}")
        data = compare("data", origin.data_md5, folder_md5(project.data), "DVC's cache is damaged")
    return [data, params]


def _run_stages(project: Workspace, origin: Origin, on_line: Callable[[str], None]) -> None:
    with _limited_to_cores(origin.threads if _leaves_threads_open(project) else None):
        dvc.repeat(project, _environment(project), on_line)


def _compare_results(
    project: Workspace, model: RegisteredModel, version: Version, origin: Origin, *, fetch: bool
) -> list[Finding]:
    """Compare dvc.lock and the outputs; with `fetch`, fetch the outputs from the cache or the remote first."""
    findings = [compare_file("dvc.lock", origin.dvc_lock_sha256, project.root / "dvc.lock")]
    if fetch and findings[0].found == NOTHING:
        return findings + [Finding(what, None) for what in ("outputs", "package", "weights", "metrics")]
    if fetch:
        missing = dvc.fetch_outputs(project)
        detail = f"neither the cache nor a remote has {', '.join(missing)}" if missing else ""
        findings.append(Finding("outputs", not missing, detail=detail))
    return findings + _compare_model(project, model, version, origin)


def _compare_model(project: Workspace, model: RegisteredModel, version: Version, origin: Origin) -> list[Finding]:
    """Compare the registered package, the weights and the metrics."""
    package, registered = Finding("package", True, origin.model_sha256, origin.model_sha256), None
    try:
        folder = model.download(version, project.root.parent / f"package-{version.version}")
        registered = model_folder(folder) / "model.safetensors"
    except DiptychError as error:
        package = Finding("package", False, origin.model_sha256, detail=str(error))
    weights = compare_weights(origin.weights_sha256, project.model / "model.safetensors", registered)
    return [package, weights, compare_metrics(version.metrics, project.reports / "metrics.json")]


def _leaves_threads_open(project: Workspace) -> bool:
    """Return whether the stages take one thread for each core; another diptych may have written the parameters."""
    content = yaml.safe_load(project.params.read_text(encoding="utf-8"))
    return isinstance(content, Mapping) and content.get("threads") is None


@contextmanager
def _limited_to_cores(count: int | None) -> Iterator[None]:
    """Limit this process and its children to `count` cores, if there are more; on Linux only."""
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
    """Return the environment of the stages: the commit's code, and a store that is removed with the folder."""
    inherited = {name: value for name, value in os.environ.items() if name not in _UNSET}
    paths = [str(project.root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    project.local.mkdir(exist_ok=True)
    changed = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{project.local.resolve()}/mlflow.db",
    }
    return inherited | changed
