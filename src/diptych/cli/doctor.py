"""`diptych doctor`: whether all that a run depends on is there, and how to mend what is not."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Literal, NamedTuple

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.addresses import without_secret, without_secrets
from diptych.project.git import GitError, converted_files, find_repository, git, head, how_to_restore
from diptych.project.packages import LOCK, foreign_code, other_than_locked
from diptych.project.params import read_params
from diptych.project.workspace import Workspace

log = logging.getLogger(__name__)

State = Literal["ok", "warning", "error"]
"""A warning is of what runs do without; an error stops them."""

SPARE_GIB = 5.0
"""Below so much free space a run of the presets may fill the disk."""
_WITHOUT_PARAMS = ("workspace", "git", "dataset", "dvc remote", "proxy", "prefect", "schedule", "packages")
PATIENCE = 5.0
"""Seconds that a proxy may take to answer."""
PATIENCE_WITH_REMOTES = 60.0
"""Seconds for a DVC remote: its clients try several times."""


class Finding(NamedTuple):
    """What one check found."""

    name: str
    state: State
    found: str
    mend: str = ""
    """What to do, where something is to be done."""


Check = Callable[[Workspace, Params], Finding]


def examine(workspace: Workspace) -> list[Finding]:
    """Make every check, in order; one that cannot be made is an error that says why, and the others are made."""
    checks: dict[str, Check] = {
        "workspace": _in_use,
        "git": _git,
        "dataset": _dataset,
        "dvc remote": _remote,
        "towers": _towers,
        "mlflow": _mlflow,
        "champion": _champion,
        "proxy": _proxy,
        "prefect": _prefect,
        "schedule": _schedule,
        "device": _device,
        "disk": _disk,
        "packages": _packages,
    }
    found = []
    with chdir(workspace.root):
        try:
            params = read_params(workspace)
            found.append(Finding("params", "ok", "params.yaml is as it should be"))
        except DiptychError as error:
            mend = f"Correct it. {how_to_restore(workspace.params)} What depends on it was not looked at."
            found.append(Finding("params", "error", str(error), mend))
            params = Params()
            checks = {name: checks[name] for name in _WITHOUT_PARAMS}
        found += [_made(name, check, workspace, params) for name, check in checks.items()]
    return found


def _made(name: str, check: Check, workspace: Workspace, params: Params) -> Finding:
    try:
        return check(workspace, params)._replace(name=name)
    except DiptychError as error:
        return Finding(name, "error", str(error))
    except Exception as error:
        # Whatever is wrong there, it must not hide what the other checks find.
        log.debug("the check of %s failed", name, exc_info=True)
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(name, "error", without_secrets(told)[:500], "`diptych --debug doctor` shows the traceback.")


def _in_use(workspace: Workspace, params: Params) -> Finding:
    try:
        with workspace.held("diptych doctor"):
            return Finding("", "ok", "no run is at work")
    except DiptychError as error:
        return Finding("", "warning", str(error))


def _git(workspace: Workspace, params: Params) -> Finding:
    from diptych.project.recording import RECORDED, other_changes

    try:
        commit = head(workspace.root)
        converted = [name for name in converted_files(workspace.root) if name not in RECORDED]
        changes = other_changes(workspace)
    except GitError as error:
        return _refused_by_git(workspace, error)
    if converted:
        found = f"line endings of {_listed(converted)} were converted, so that their bytes are not those of the commit"
        return Finding("", "warning", found, _restored_line_endings(workspace))
    if changes:
        beyond = f"changes beyond commit {commit[:10]} and {', '.join(RECORDED)}"
        found = f"{beyond}, so that a model made now cannot be made again: {_listed(changes)}"
        return Finding("", "warning", found, "Commit them before you train what is to stay: `git status`.")
    return Finding("", "ok", f"at commit {commit[:10]}; nothing but {', '.join(RECORDED)} may differ")


def _refused_by_git(workspace: Workspace, error: GitError) -> Finding:
    """Return the finding of a project whose commit nobody knows; one that is meant to be without git can be run."""
    if find_repository(workspace.root) is not None:
        return Finding("", "error", error.reason, error.advice)
    found = "not a git repository: git_sha is unknown, so that no model can be made again"
    if dvc.works_without_git(workspace):
        return Finding("", "warning", found, error.advice)
    mend = "`git init`, then commit the project. Without git, DVC needs `dvc config core.no_scm true`."
    return Finding("", "error", found, mend)


def _restored_line_endings(workspace: Workspace) -> str:
    """Return the commands that give files their committed line endings, and keep edits of them."""
    rewrite = r"git ls-files --eol -z | sed -zn 's/^i\/lf *w\/[cm][^\t]*\t//p' | xargs -0 sed -i 's/\r$//'; git add -u"
    if git(workspace.root, "check-attr", "text", "--", "dvc.yaml").endswith(": unset"):
        return f"`{rewrite}`."
    return f"Commit the line `* -text` in .gitattributes, then `{rewrite}`."


def _listed(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _dataset(workspace: Workspace, params: Params) -> Finding:
    recorded = dvc.dataset_version(workspace)
    if recorded is None:
        return Finding("", "error", "there is none", "`diptych data import`, or `diptych data scenes`.")
    if not workspace.data.exists():
        return Finding("", "warning", f"version {recorded[:10]} is recorded, but not here", "`diptych run` brings it.")
    if workspace.data.is_symlink():
        return Finding("", "warning", "data is a link, so that no change of it can be recorded", "Make it a folder.")
    return Finding("", "ok", f"version {recorded[:10]} in data/")


def _remote(workspace: Workspace, params: Params) -> Finding:
    remotes = dvc.remotes(workspace)
    if not remotes:
        mend = "`dvc remote add --default NAME URL`, then `dvc push`."
        return Finding("", "warning", "none: data and models are on this machine alone", mend)
    gone = [f"{name} ({url})" for name, url in remotes.items() if url.startswith("/") and not Path(url).is_dir()]
    if gone:
        return Finding(
            "", "error", f"no such folder: {', '.join(gone)}", "Mount it, or `dvc remote modify NAME url URL`."
        )
    name = dvc.default_remote(workspace)
    if name is None:
        return Finding("", "warning", f"none of {', '.join(remotes)} is the default", "`dvc remote default NAME`.")
    if said := dvc.unreachable(workspace, PATIENCE_WITH_REMOTES):
        return Finding("", "error", f"{name} does not answer: {said}", "Its address and keys: `dvc config --list`.")
    return Finding("", "ok", name)


def _towers(workspace: Workspace, params: Params) -> Finding:
    from diptych.data.pretrained import locate_towers

    locate_towers(params.model)
    names = [tower.pretrained or "from scratch" for tower in (params.model.image_tower, params.model.text_tower)]
    return Finding("", "ok", f"image: {names[0]}; text: {names[1]}")


def _mlflow(workspace: Workspace, params: Params) -> Finding:
    from diptych.registry.address import store_file, tracking_uri

    uri = tracking_uri(workspace, params)
    store = store_file(uri)
    if store is not None and not store.exists():
        return Finding("", "ok", "a store of the project's own, which the first training makes")
    from mlflow import MlflowClient

    from diptych.registry.answering import require_answer
    from diptych.registry.connection import find_experiment
    from diptych.registry.errors import mlflow_errors_explained

    with mlflow_errors_explained(uri):
        require_answer(uri)
        find_experiment(MlflowClient(tracking_uri=uri), params.register_.experiment, uri)
    return Finding("", "ok", without_secret(uri))


def _champion(workspace: Workspace, params: Params) -> Finding:
    from diptych.registry.address import store_file, tracking_uri

    store = store_file(tracking_uri(workspace, params))
    if store is not None and not store.exists():
        return Finding("", "ok", "no model yet")
    from diptych.registry.registered_model import CHAMPION, RegisteredModel

    model = RegisteredModel.of(workspace, params)
    number = model.aliases().get(CHAMPION) if model.exists() else None
    if number is None:
        return Finding("", "warning", f"no version of {model.name} is in use", "`diptych promote`.")
    mend = "`diptych rollback --reason TEXT`."
    if number not in model.numbers():
        return Finding("", "error", f"the alias champion points to version {number}, which is gone", mend)
    if gone := model.missing_folder(number):
        found = f"the package of {model.name} version {number}, the champion, is gone: there is no {gone}"
        return Finding("", "error", found, f"Bring that folder back, or {mend}")
    return Finding("", "ok", f"{model.name} version {number}")


def _proxy(workspace: Workspace, params: Params) -> Finding:
    from diptych.project import proxies

    found = proxies.describe(proxies.set_proxies())
    if not found:
        return Finding("", "ok", "none is set")
    if gone := proxies.unreachable(PATIENCE):
        mend = "Correct these variables, or unset them. What is sent to this machine goes around them."
        return Finding("", "warning", f"nobody answers at {proxies.describe(gone)}", mend)
    if proxies.unusable():
        mend = "Correct the proxy, or NO_PROXY. Nothing is to be done where the Prefect server is on this machine."
        return Finding("", "warning", f"Prefect's client can use none of {found}, or cannot read NO_PROXY", mend)
    return Finding("", "ok", f"{found}; what is sent to this machine goes around it")


def _prefect(workspace: Workspace, params: Params) -> Finding:
    from diptych.orchestration import server as prefect_server
    from diptych.project.prefect_settings import server_setting

    if not prefect_server.load(workspace.root):
        return Finding("", "ok", "no server: each run has one of its own; schedules need one (PREFECT_API_URL)")
    with prefect_server.client():
        setting = server_setting(workspace.root)
        where = f", set in {setting.where}" if setting else ""
        return Finding("", "ok", f"{prefect_server.address()}{where}")


def _schedule(workspace: Workspace, params: Params) -> Finding:
    from diptych.orchestration import server as prefect_server
    from diptych.orchestration.deployment import RETRAIN, find_deployment, worker_command
    from diptych.orchestration.schedules import read_schedule

    try:
        if not prefect_server.load(workspace.root):
            return Finding("", "ok", "none: schedules need a Prefect server")
        with prefect_server.client() as client:
            deployment = find_deployment(client, RETRAIN)
            if deployment is None:
                return Finding("", "warning", "nothing is deployed there", "`diptych deploy`.")
            pool = deployment.work_pool_name or ""
            workers = [one.name for one in client.read_workers_for_work_pool(pool) if one.status == "ONLINE"]
        found = read_schedule().render().partition("\n")[0].removeprefix("schedule").strip()
    except DiptychError:
        return Finding("", "warning", "not looked at: Prefect's server or settings are at fault")
    if not workers:
        return Finding("", "warning", f"{found}, but no worker is there to run it", f"`{worker_command(pool)}`.")
    return Finding("", "ok", found)


def _device(workspace: Workspace, params: Params) -> Finding:
    from diptych.data.workers import worker_count
    from diptych.model.device import choose_device, choose_precision

    device = choose_device(params.device)
    precision = {"no": "float32"}.get(chosen := choose_precision(params.train.precision, device), chosen)
    return Finding("", "ok", f"{device.type}, {precision}, {worker_count(params.threads)} CPU threads")


def _disk(workspace: Workspace, params: Params) -> Finding:
    free = shutil.disk_usage(workspace.root).free / 2**30
    found = f"{free:.1f} GiB free"
    if free < SPARE_GIB:
        return Finding("", "warning", found, "`dvc gc --workspace` and removing .diptych/cache make room.")
    return Finding("", "ok", found)


def _packages(workspace: Workspace, params: Params) -> Finding:
    if running := foreign_code(workspace.root):
        found = f"the code in {running} runs, and not that of this project"
        return Finding("", "warning", found, "`rm -r .venv`, then `make setup`.")
    path = workspace.root / LOCK
    if not path.is_file():
        return Finding("", "warning", f"{LOCK} is not there to compare with", how_to_restore(path))
    others = other_than_locked(path)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return Finding("", "warning", f"other than locked: {'; '.join(others[:3])}{more}", "`make setup`.")
    python = ".".join(map(str, sys.version_info[:3]))
    return Finding("", "ok", f"as in {LOCK}, under Python {python}")


def render(findings: list[Finding]) -> str:
    """A line or two for each."""
    lines = []
    for one in findings:
        first, *rest = one.found.splitlines()
        lines.append(f"{one.state:8}{one.name:11}{first}")
        lines += [f"{'':19}{line}" for line in rest]
        if one.mend:
            lines.append(f"{'':19}→ {one.mend}")
    wrong = sum(one.state == "error" for one in findings)
    lines.append(
        f"\n{wrong} of {len(findings)} checks failed." if wrong else "\nA run has all it needs: `diptych run`."
    )
    return "\n".join(lines)
