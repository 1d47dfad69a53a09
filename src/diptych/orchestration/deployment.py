"""`diptych deploy`: the deployments of prefect.yaml on the Prefect server, with their work pools and automations.

`prefect deploy --all` does the work. By itself it would put the schedules of prefect.yaml back each time, and resume
what was paused. Here they count for a new deployment only; afterwards `diptych schedule` sets its schedule.
docs/decisions/deploying.md gives the evidence.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.orchestration import automations
from diptych.orchestration import server as prefect_server
from diptych.project.git import how_to_restore
from diptych.project.processes import stream
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

logger = logging.getLogger(__name__)

STRATEGIES = {"wait": "ENQUEUE", "skip": "CANCEL_NEW"}
"""Prefect's names for the treatment of a run that is triggered while another run works."""
RETRAIN = "retrain/retrain"
"""The deployment that the schedule and the automations are for, as FLOW/DEPLOYMENT."""

_LEASES = "prefect.server.concurrency.lease_storage"
_STEP = "prefect.deployments.steps.set_working_directory"


@dataclass(frozen=True)
class Deployed:
    """The state of the server after a deployment."""

    server: str
    pools: dict[str, str]
    """The outcome by name: "created" or "there already"."""
    deployments: dict[str, str]
    """The origin of the schedule by FLOW/DEPLOYMENT: "from prefect.yaml" or "kept as it was"."""
    automations: dict[str, str]
    """The outcome by name: "created", "updated" or "there already"."""


def deploy(
    workspace: Workspace,
    *,
    pool_type: str = "process",
    folder: str | None = None,
    when_busy: str | None = None,
    notify: str | None = None,
) -> Deployed:
    """Create or update the project's work pools, deployments and automations on the server of Prefect's settings.

    A repetition changes only what differs.

    Args:
        workspace: the project.
        pool_type: process, docker or kubernetes.
        folder: the project's folder on the workers' machines; None: the same as here.
        when_busy: a key of `STRATEGIES`; None: as prefect.yaml says.
        notify: a notification block as TYPE/NAME.

    Raises:
        DiptychError: there is no such server; prefect.yaml, a work pool's template or the notification block is not as
            it should be; Prefect refuses.
    """
    content = _read_definition(workspace)
    definitions = {_full_name(item): item for item in content["deployments"]}
    with prefect_server.client() as client:
        block = automations.find_block(client, notify) if notify else None
        _warn_of_leases_in_memory(client)
        names = sorted({item["work_pool"]["name"] for item in definitions.values()})
        pools = {name: _ensure_pool(client, workspace, name, pool_type) for name in names}
        present = {name: match for name in definitions if (match := find_deployment(client, name))}
        folder = folder or str(workspace.root)
        rendered = [_render(item, present.get(name), folder, when_busy) for name, item in definitions.items()]
        _apply(workspace, {**content, "deployments": rendered})
        outcomes = automations.ensure(client, retraining(client), block)
        schedules = {name: "kept as it was" if name in present else "from prefect.yaml" for name in definitions}
        return Deployed(prefect_server.address(), pools, schedules, outcomes)


def find_deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    """Return the deployment FLOW/DEPLOYMENT; None where the server does not have it."""
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def retraining(client: SyncPrefectClient) -> DeploymentResponse:
    """Return the deployment of the retrain flow; raise DiptychError where the server does not have it."""
    deployment = find_deployment(client, RETRAIN)
    if deployment is None:
        raise DiptychError(f"{prefect_server.address()} has no deployment {RETRAIN}: run `diptych deploy`.")
    return deployment


def worker_command(pool: str) -> str:
    """Return the command that starts a worker.

    The worker takes two runs at a time. One works; the other learns that it has to wait or to end, and makes room for
    the next. With more than two, the waiting runs would lock a server on SQLite for minutes. With one, they would learn
    it only when the first run ends.
    """
    return f"prefect worker start --pool {pool} --limit 2"


def _warn_of_leases_in_memory(client: SyncPrefectClient) -> None:
    """Warn of a server that forgets in a restart which run has the slot: it would end that run minutes later."""
    from httpx import HTTPStatusError

    try:
        storage = client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"]
    except (HTTPStatusError, ValueError, LookupError, TypeError):
        # A server of another kind or age does not tell its settings, and may be deployed to.
        return
    if storage == f"{_LEASES}.memory":
        logger.warning(
            "%s keeps the leases of runs in memory: a restart of it ends the run that is at work. Start it with "
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=%s.filesystem.",
            prefect_server.address(),
            _LEASES,
        )


def _read_definition(workspace: Workspace) -> dict[str, Any]:
    """Read prefect.yaml, and check that each deployment has the keys that are used here."""
    path = workspace.root / "prefect.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        used = [
            value
            for item in content["deployments"]
            for value in (item["name"], item["entrypoint"], item["work_pool"]["name"])
        ]
        if others := [value for value in used if not isinstance(value, str)]:
            raise TypeError(f"{others[0]!r} is not a text")
    except FileNotFoundError:
        raise DiptychError(f"{path} is missing; it is part of the project. {how_to_restore(path)}") from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DiptychError(
            f"{path}: each of its deployments needs name, entrypoint and work_pool.name ({error!r})."
        ) from None
    return dict(content)


def _full_name(item: dict[str, Any]) -> str:
    """Return FLOW/DEPLOYMENT; a flow is named like its function."""
    return f"{item['entrypoint'].rpartition(':')[2].replace('_', '-')}/{item['name']}"


def _ensure_pool(client: SyncPrefectClient, workspace: Workspace, name: str, pool_type: str) -> str:
    """Create the work pool if it is missing, by the template docker/pools/TYPE.json or Prefect's own."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = _template(workspace, pool_type)
        client.create_work_pool(WorkPoolCreate(name=name, type=pool_type, base_job_template=template))
        return "created"
    if pool.type != pool_type:
        raise DiptychError(
            f"The work pool {name} is there already, of the type {pool.type}, not {pool_type}: give "
            f"`--pool-type {pool.type}`, or remove it first with `prefect work-pool delete {name}`."
        )
    return "there already"


def _template(workspace: Workspace, pool_type: str) -> dict[str, Any]:
    from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type as default_template

    path = workspace.root / "docker" / "pools" / f"{pool_type}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if (template := asyncio.run(default_template(pool_type))) is None:
            raise DiptychError(f"{prefect_server.address()} knows no work pools of the type {pool_type}.") from None
        return template
    except ValueError as error:
        raise DiptychError(f"{path} is no job template: {error}.") from None


def _render(
    item: dict[str, Any], present: DeploymentResponse | None, folder: str, when_busy: str | None
) -> dict[str, Any]:
    """Return a deployment of prefect.yaml with the choices, minus what stays as it is on the server."""
    # Workers run in the project's folder. Without this step Prefect names the folder of this machine, or /opt/prefect.
    item = {"pull": [{_STEP: {"directory": folder}}], **item}
    if present:
        item = {key: value for key, value in item.items() if key not in ("schedules", "schedule")}
        item["paused"] = present.paused
    if when_busy and (limit := item.get("concurrency_limit")):
        options = limit if isinstance(limit, dict) else {"limit": limit}
        item["concurrency_limit"] = {"limit": 1, **options, "collision_strategy": STRATEGIES[when_busy]}
    return item


def _apply(workspace: Workspace, content: dict[str, Any]) -> None:
    """Run `prefect deploy --all` with `content` in place of prefect.yaml."""
    path = workspace.local / "prefect.yaml"
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    lines: list[str] = []
    command = _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(path))
    if stream(command, workspace.root, lines.append):
        raise DiptychError(f"prefect.yaml was not accepted: {' '.join(' '.join(lines[-12:]).split())}")


def _prefect(*arguments: str) -> list[str]:
    # -P: files of the workspace must not hide an installed package.
    return [sys.executable, "-P", "-m", "prefect", *arguments]
