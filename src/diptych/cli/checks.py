"""The checks of `diptych doctor`: one function for each thing that a run depends on.

Each yields its findings and raises a DiptychError where a thing is broken; `doctor` makes a finding of that too.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diptych.config import Params
from diptych.data.captions import CAPTIONS_FILE
from diptych.errors import DiptychError, some
from diptych.orchestration import server as prefect_server
from diptych.project import dvc, pixels, proxies
from diptych.project.addresses import without_secret
from diptych.project.git import GitError, converted_files, find_repository, git, head_commit, how_to_restore
from diptych.project.packages import LOCK, foreign_code, other_than_locked
from diptych.project.prefect_settings import server_setting
from diptych.project.record import dataset_version
from diptych.project.recording import RECORDED, other_changes
from diptych.project.workspace import Workspace

State = Literal["ok", "warning", "error"]
"""State of a thing: a run does without what a warning names, and stops at an error."""

SPARE_GIB = 5.0
"""Free space, in GiB, below which a run of the presets may fill the disk."""
PATIENCE = 5.0
"""Seconds that a proxy may take to answer."""
PATIENCE_WITH_REMOTES = 60.0
"""Seconds for a DVC remote: its clients try several times."""


class Finding(NamedTuple):
    """The result of a check, and the advice where something is to be done."""

    name: str
    state: State
    result: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding by the names that it has in `diptych doctor --json`."""
        return {"name": self.name, "state": self.state, "found": self.result, "mend": self.advice}


Findings = Iterator[Finding]


def check_workspace(workspace: Workspace) -> Findings:
    """Check that no other run holds the workspace."""
    try:
        with workspace.held("diptych doctor"):
            yield Finding("workspace", "ok", "no run is at work")
    except DiptychError as error:
        yield Finding("workspace", "warning", str(error))


def check_git(workspace: Workspace) -> Findings:
    """Check that a model made now can be made again from a commit."""
    try:
        commit = head_commit(workspace.root)
        converted = [name for name in converted_files(workspace.root) if name not in RECORDED]
        changes = _edits(workspace, other_changes(workspace), converted)
    except GitError as error:
        yield _refused_by_git(workspace, error)
        return
    results, advice = [], []
    if converted:
        names = some(converted)
        results.append(f"line endings of {names} were converted, so that their bytes are not those of the commit")
        advice.append(_line_endings_advice(workspace))
    if changes:
        beyond = f"changes beyond commit {commit[:10]} and {', '.join(RECORDED)}"
        results.append(f"{beyond}, so that a model made now cannot be made again: {some(changes)}")
        advice.append("Commit them before you train what is to stay: `git status`.")
    if results:
        yield Finding("git", "warning", "\n".join(results), "\n".join(advice))
    else:
        yield Finding("git", "ok", f"at commit {commit[:10]}; nothing but {', '.join(RECORDED)} may differ")


def _edits(workspace: Workspace, changes: list[str], converted: list[str]) -> list[str]:
    """Return the changed files without those of which only the line endings differ."""
    if not converted:
        return changes
    options = ("--numstat", "-z", "--no-renames", "--relative", "--ignore-cr-at-eol")
    rows = (row.split("\t") for row in git(workspace.root, "diff", *options, "HEAD", "--", ".").split("\0") if row)
    edited = {path for added, deleted, path in rows if (added, deleted) != ("0", "0")}
    return [path for path in changes if path not in converted or path in edited]


def _refused_by_git(workspace: Workspace, error: GitError) -> Finding:
    """Return the finding of a project without a known commit; one that DVC uses without git can be run."""
    if find_repository(workspace.root) is not None:
        return Finding("git", "error", error.reason, error.advice)
    result = "not a git repository: git_sha is unknown, so that no model can be made again"
    if dvc.works_without_git(workspace):
        return Finding("git", "warning", result, error.advice)
    advice = "`git init`, then commit the project. Without git, DVC needs `dvc config core.no_scm true`."
    return Finding("git", "error", result, advice)


def _line_endings_advice(workspace: Workspace) -> str:
    """Return the commands that give files their committed line endings, and keep edits of them."""
    rewrite = r"git ls-files --eol -z | sed -zn 's/^i\/lf *w\/[cm][^\t]*\t//p' | xargs -0 sed -i 's/\r$//'; git add -u"
    if git(workspace.root, "check-attr", "text", "--", "dvc.yaml").endswith(": unset"):
        return f"`{rewrite}`."
    return f"Commit the line `* -text` in .gitattributes, then `{rewrite}`."


def check_dataset(workspace: Workspace) -> Findings:
    """Check that there is a dataset version, and that it is here."""
    version = dataset_version(workspace)
    if workspace.was_interrupted():
        advice = "`diptych run`, or the next import, goes back to the version before."
        yield Finding("dataset", "warning", "a change of it was interrupted", advice)
    elif version is None:
        yield Finding("dataset", "error", "there is none", "`diptych data import`, or `diptych data scenes`.")
    elif pixels.lacks_images(workspace):
        dvc.require_remote(workspace)
        yield Finding("dataset", "ok", f"version {version[:10]} stays in the DVC remote")
    elif not workspace.data.exists():
        result = f"version {version[:10]} is recorded, but not here"
        yield Finding("dataset", "warning", result, "`diptych run` fetches it.")
    elif workspace.data.is_symlink():
        result = "data is a link, so that no change of it can be recorded"
        yield Finding("dataset", "warning", result, "Make it a folder.")
    else:
        yield Finding("dataset", "ok", f"version {version[:10]} in data/")


def check_remote(workspace: Workspace) -> Findings:
    """Check that data and models have a copy elsewhere: a DVC remote that answers."""
    yield _remote(workspace)._replace(name="dvc remote")


def _remote(workspace: Workspace) -> Finding:
    remotes = dvc.remotes(workspace)
    if not remotes:
        advice = "`dvc remote add --default NAME URL`, then `dvc push`."
        return Finding("", "warning", "none: data and models are on this machine alone", advice)
    missing = [f"{name} ({url})" for name, url in remotes.items() if url.startswith("/") and not Path(url).is_dir()]
    if missing:
        advice = "Mount it, or `dvc remote modify NAME url URL`."
        return Finding("", "error", f"no such folder: {', '.join(missing)}", advice)
    name = dvc.default_remote(workspace)
    if name is None:
        return Finding("", "warning", f"none of {', '.join(remotes)} is the default", "`dvc remote default NAME`.")
    if reason := dvc.unreachable(workspace, PATIENCE_WITH_REMOTES):
        return Finding("", "error", f"{name} does not answer: {reason}", "Its address and keys: `dvc config --list`.")
    return Finding("", "ok", name)


def check_towers(params: Params) -> Findings:
    """Check that pretrained towers are on this machine."""
    from diptych.data.pretrained import locate_towers

    locate_towers(params.model)
    image, text = (tower.pretrained or "from scratch" for tower in (params.model.image_tower, params.model.text_tower))
    yield Finding("towers", "ok", f"image: {image}; text: {text}")


def check_mlflow(workspace: Workspace, params: Params) -> Findings:
    """Check that MLflow answers, and that the champion's package is there."""
    from diptych.registry.address import store_file, tracking_uri

    uri = tracking_uri(workspace, params)
    store = store_file(uri)
    if store is not None and not store.exists():
        yield Finding("mlflow", "ok", "a store of the project's own, which the first training makes")
        yield Finding("champion", "ok", "no model yet")
        return
    from mlflow import MlflowClient

    from diptych.registry.answering import require_answer
    from diptych.registry.connection import find_experiment
    from diptych.registry.errors import mlflow_errors_explained
    from diptych.registry.registered_model import RegisteredModel

    with mlflow_errors_explained(uri):
        require_answer(uri)
        find_experiment(MlflowClient(tracking_uri=uri), params.register_.experiment, uri)
    yield Finding("mlflow", "ok", without_secret(uri))
    yield _champion(RegisteredModel.of(workspace, params))


def _champion(model: Any) -> Finding:
    versions = model.numbers() if model.exists() else []
    number = model.aliases().get("champion") if versions else None
    if not versions:
        return Finding("champion", "ok", "no model yet")
    if number is None:
        return Finding("champion", "warning", f"no version of {model.name} is in use", "`diptych promote`.")
    advice = "`diptych rollback --reason TEXT`."
    if number not in versions:
        return Finding("champion", "error", f"the alias champion points to version {number}, which is gone", advice)
    if folder := model.missing_folder(number):
        result = f"the package of {model.name} version {number}, the champion, is gone: there is no {folder}"
        return Finding("champion", "error", result, f"Bring that folder back, or {advice}")
    return Finding("champion", "ok", f"{model.name} version {number}")


def check_proxy() -> Findings:
    """Check that proxies answer, and that Prefect's client can use them."""
    described = proxies.describe(proxies.set_proxies())
    if not described:
        yield Finding("proxy", "ok", "none is set")
    elif silent := proxies.unreachable(PATIENCE):
        advice = "Correct these variables, or unset them. What is sent to this machine goes around them."
        yield Finding("proxy", "warning", f"nobody answers at {proxies.describe(silent)}", advice)
    elif proxies.unusable():
        advice = "Correct the proxy, or NO_PROXY. Nothing is to be done where the Prefect server is on this machine."
        result = f"Prefect's client can use none of {described}, or cannot read NO_PROXY"
        yield Finding("proxy", "warning", result, advice)
    else:
        yield Finding("proxy", "ok", f"{described}; what is sent to this machine goes around it")


def check_prefect(workspace: Workspace) -> Findings:
    """Check that the Prefect server answers, and that a worker is there for the schedule."""
    if not prefect_server.load(workspace.root):
        result = "no server: each run has one of its own; schedules need one (PREFECT_API_URL)"
        yield Finding("prefect", "ok", result)
        yield Finding("schedule", "ok", "none: schedules need a Prefect server")
        return
    with prefect_server.client() as client:
        setting = server_setting(workspace.root)
        where = f", set in {setting.where}" if setting else ""
        yield Finding("prefect", "ok", f"{prefect_server.address()}{where}")
        yield _schedule(client)


def _schedule(client: Any) -> Finding:
    from diptych.orchestration.deployment import RETRAIN, find_deployment, worker_command
    from diptych.orchestration.schedules import read_schedule

    deployment = find_deployment(client, RETRAIN)
    if deployment is None:
        return Finding("schedule", "warning", "nothing is deployed there", "`diptych deploy`.")
    pool = deployment.work_pool_name or ""
    online = any(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(pool))
    result = read_schedule().render().partition("\n")[0].removeprefix("schedule").strip()
    if not online:
        advice = f"`{worker_command(pool)}`."
        return Finding("schedule", "warning", f"{result}, but no worker is there to run it", advice)
    return Finding("schedule", "ok", result)


def check_device(params: Params) -> Findings:
    """Check that the device of params.yaml is here."""
    from diptych.data.cores import worker_count
    from diptych.model.device import choose_device, choose_precision

    device = choose_device(params.device)
    precision = choose_precision(params.train.precision, device)
    name = "float32" if precision == "no" else precision
    result = f"{device.type}, {name}, {worker_count(params.threads)} CPU threads"
    # Compiled towers need it, and it is left out with the other packages that are for a GPU alone.
    if device.type == "cuda" and find_spec("triton") is None:
        yield Finding("device", "warning", f"{result}; its packages are not installed", "`make setup GPU=1`.")
    else:
        yield Finding("device", "ok", result)


def check_cluster(workspace: Workspace) -> Findings:
    """Check that the nodes of the cluster that RAY_ADDRESS names can work on this project."""
    from diptych.data.cluster import describe

    yield Finding("cluster", "ok", describe([(workspace.data / CAPTIONS_FILE).absolute()]))


def check_disk(workspace: Workspace) -> Findings:
    """Check that the disk has space for a run."""
    free = shutil.disk_usage(workspace.root).free / 2**30
    result = f"{free:.1f} GiB free"
    if free < SPARE_GIB:
        yield Finding("disk", "warning", result, "`dvc gc --workspace` and removing .diptych/cache make room.")
    else:
        yield Finding("disk", "ok", result)


def check_packages(workspace: Workspace) -> Findings:
    """Check that the project's own code runs, with the packages of its lock."""
    path = workspace.root / LOCK
    if running := foreign_code(workspace.root):
        result = f"the code in {running} runs, and not that of this project"
        yield Finding("packages", "warning", result, "`rm -r .venv`, then `make setup`.")
    elif not path.is_file():
        yield Finding("packages", "warning", f"{LOCK} is not there to compare with", how_to_restore(path))
    elif others := other_than_locked(path):
        yield Finding("packages", "warning", f"other than locked: {some(others, 3, '; ')}", "`make setup`.")
    else:
        python = ".".join(map(str, sys.version_info[:3]))
        yield Finding("packages", "ok", f"as in {LOCK}, under Python {python}")
