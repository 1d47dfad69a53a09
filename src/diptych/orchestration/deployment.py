"""`diptych deploy`: prefect.yaml's deployments on the Prefect server, with what keeps them going.

Prefect's own `prefect deploy` puts the schedules of prefect.yaml back each time, and resumes what was paused. Here they
count for a deployment that is new; afterwards its schedule belongs to `diptych schedule`.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml

from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.orchestration import server as prefect_server
from diptych.project.addresses import without_secrets
from diptych.project.git import how_to_restore
from diptych.project.processes import stream
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

logger = logging.getLogger(__name__)

WhenBusy = Literal["wait", "skip"]
PoolType = Literal["process", "docker", "kubernetes"]

STRATEGIES: dict[WhenBusy, str] = {"wait": "ENQUEUE", "skip": "CANCEL_NEW"}
"""What Prefect calls what becomes of a run that is triggered while another is at work."""
RETRAIN = "retrain/retrain"
"""The deployment that the schedule and the automations are for, as FLOW/DEPLOYMENT."""

_LEASES = "prefect.server.concurrency.lease_storage"
_STEP = "prefect.deployments.steps.set_working_directory"


@dataclass(frozen=True)
class Choices:
    """What may be said when deploying, beyond what stands in prefect.yaml."""

    pool_type: PoolType = "process"
    folder: str | None = None
    """Where workers find the project; None: where it lies here."""
    when_busy: WhenBusy | None = None
    """None: what prefect.yaml says."""
    notify: str | None = None
    """A notification block as TYPE/NAME."""


@dataclass(frozen=True)
class Deployed:
    """What is on the server now."""

    server: str
    pools: dict[str, str]
    """By name: "created", or "there already"."""
    deployments: dict[str, str]
    """By FLOW/DEPLOYMENT: what became of the schedule."""
    automations: dict[str, str]
    """By name: "created" or "updated"."""


def deploy(workspace: Workspace, choices: Choices) -> Deployed:
    """Makes the server that Prefect's settings name have the work pools, deployments and automations of the project.

    Doing it again changes only what differs.

    Raises:
        DiptychError: there is no such server; prefect.yaml, a work pool's template or the notification block is not as
            it should be; Prefect refuses.
    """
    from diptych.orchestration import automations

    content = _read_definition(workspace)
    with prefect_server.client() as client:
        block = automations.find_block(client, choices.notify) if choices.notify else None
        _look_at_leases(client)
        names = sorted({one["work_pool"]["name"] for one in content["deployments"]})
        pools = {name: _ensure_pool(client, workspace, name, choices.pool_type) for name in names}
        present = {name: found for name in _names(content) if (found := find_deployment(client, name))}
        _apply(workspace, _rendered(workspace, content, present, choices))
        made = automations.ensure(client, retraining(client), block)
        schedules = {name: "kept as it was" if name in present else "from prefect.yaml" for name in _names(content)}
        return Deployed(address(client), pools, schedules, made)


def address(client: SyncPrefectClient) -> str:
    """Of its server, for people: without a user and password that it may hold."""
    return without_secrets(str(client.api_url))


def find_deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    """The deployment of that name, FLOW/DEPLOYMENT, if the server has it."""
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def retraining(client: SyncPrefectClient) -> DeploymentResponse:
    """The deployment of the retrain flow.

    Raises:
        DiptychError: the server does not have it.
    """
    found = find_deployment(client, RETRAIN)
    if found is None:
        raise DiptychError(f"{address(client)} has no deployment {RETRAIN}: run `diptych deploy`.")
    return found


def worker_command(pool: str) -> str:
    """What starts a worker.

    Of the two runs that it takes at a time one works, and the others come one by one to be told that they wait or end.
    All at once they would lock a server on SQLite for minutes; with one alone, they would not come before it ends.
    """
    return f"prefect worker start --pool {pool} --limit 2"


def _look_at_leases(client: SyncPrefectClient) -> None:
    """Warns of a server that forgets in a restart which run has the place: it would end that run minutes later."""
    from httpx import HTTPStatusError

    try:
        found = client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"]
    except (HTTPStatusError, ValueError, LookupError, TypeError):
        # A server of another kind or age does not tell, and is as good a server.
        return
    if found == f"{_LEASES}.memory":
        logger.warning(
            "%s keeps the leases of runs in memory: a restart of it ends the run that is at work. Start it with "
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=%s.filesystem.",
            address(client),
            _LEASES,
        )


def _read_definition(workspace: Workspace) -> dict[str, Any]:
    """prefect.yaml, of which each deployment has what is needed here."""
    path = workspace.root / "prefect.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for one in content["deployments"]:
            for value in (one["name"], one["entrypoint"], one["work_pool"]["name"]):
                if not isinstance(value, str):
                    raise TypeError(f"{value!r} is not a text")
    except FileNotFoundError:
        raise DiptychError(f"{path} is missing; it is part of the project. {how_to_restore(path)}") from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DiptychError(
            f"{path}: each of its deployments needs name, entrypoint and work_pool.name ({error!r})."
        ) from None
    return dict(content)


def _names(content: dict[str, Any]) -> list[str]:
    """Of the deployments, as FLOW/DEPLOYMENT; a flow has the name of its function."""
    flows = (one["entrypoint"].rpartition(":")[2].replace("_", "-") for one in content["deployments"])
    return [f"{flow}/{one['name']}" for flow, one in zip(flows, content["deployments"], strict=True)]


def _ensure_pool(client: SyncPrefectClient, workspace: Workspace, name: str, pool_type: PoolType) -> str:
    """The work pool is there, with docker/pools/TYPE.json as its template where there is one."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = _template(workspace, pool_type) or _own_template(client, pool_type)
        client.create_work_pool(WorkPoolCreate(name=name, type=pool_type, base_job_template=template))
        return "created"
    if pool.type != pool_type:
        raise DiptychError(
            f"The work pool {name} is there already, of the type {pool.type}, not {pool_type}: give "
            f"`--pool-type {pool.type}`, or remove it first with `prefect work-pool delete {name}`."
        )
    return "there already"


def _template(workspace: Workspace, pool_type: PoolType) -> dict[str, Any] | None:
    path = workspace.root / "docker" / "pools" / f"{pool_type}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DiptychError(f"{path} is no job template: {error}.") from None


def _own_template(client: SyncPrefectClient, pool_type: PoolType) -> dict[str, Any]:
    """What Prefect has for that type."""
    for collection in client.read_worker_metadata().values():
        for worker in collection.values():
            if worker["type"] == pool_type:
                return dict(worker["default_base_job_configuration"])
    raise DiptychError(f"{address(client)} knows no work pools of the type {pool_type}.")


def _rendered(
    workspace: Workspace, content: dict[str, Any], present: dict[str, DeploymentResponse], choices: Choices
) -> dict[str, Any]:
    """prefect.yaml with what was chosen, and without what is to stay as it is on the server."""
    directory = choices.folder or str(workspace.root)
    deployments = []
    for name, one in zip(_names(content), content["deployments"], strict=True):
        # Without a pull step of its own a worker would copy the whole project into a temporary folder.
        one = {"pull": [{_STEP: {"directory": directory}}], **one}
        if name in present:
            one = {key: value for key, value in one.items() if key not in ("schedules", "schedule")}
            one["paused"] = present[name].paused
        if choices.when_busy and one.get("concurrency_limit"):
            strategy = STRATEGIES[choices.when_busy]
            one["concurrency_limit"] = {"limit": 1, **_options(one), "collision_strategy": strategy}
        deployments.append(one)
    return {**content, "deployments": deployments}


def _options(deployment: dict[str, Any]) -> dict[str, Any]:
    """Its concurrency limit, which may be written as a number alone."""
    limit = deployment.get("concurrency_limit") or {}
    return limit if isinstance(limit, dict) else {"limit": limit}


def _apply(workspace: Workspace, content: dict[str, Any]) -> None:
    """`prefect deploy --all` with `content` for prefect.yaml."""
    path = workspace.local / "prefect.yaml"
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    lines: list[str] = []
    # -P: what lies in the workspace must not hide an installed package.
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    if stream(command, workspace.root, lines.append):
        raise DiptychError(f"prefect.yaml was not accepted: {' '.join(' '.join(lines[-12:]).split())}")
