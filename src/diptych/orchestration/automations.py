"""Automations of the Prefect server: free the slot of a run that died unseen, and notify people.

A worker reports its run as crashed when the run's process ends. Where the worker has gone too, as in a power failure,
no report comes: only missing heartbeats show that the run is dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from diptych.errors import DiptychError
from diptych.orchestration import server as prefect_server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore

SILENCE = 120
"""Seconds without a heartbeat after which a run counts as crashed.

prefect.yaml sets one heartbeat in 30 s, the minimum that Prefect allows. Three may be lost, as in a short restart of
the server. A much longer time would be too late: Prefect's own lease on the slot ends 75 to 300 s after the run, and a
slot that both release is given away twice.
"""

Outcome = Literal["rejected", "promoted"]

CRASH = "diptych: crash a run that gives no sign of life"
NOTIFY_RUNS = "diptych: tell of runs that failed or crashed"
NOTIFY_MODELS = "diptych: tell of models that were rejected or promoted"

_HEARTBEAT_EVENT = "prefect.flow-run.heartbeat"
_FAILURES = [f"prefect.flow-run.{state}" for state in ("Failed", "TimedOut", "Crashed")]
_ENDS = ["prefect.flow-run.Completed", *_FAILURES, "prefect.flow-run.Cancelled"]
"""Events after which a run sends no more heartbeats."""


def announce(outcome: Outcome, name: str, version: str, reason: str) -> None:
    """Emit the event `diptych.model.OUTCOME`, which sends a notification that gives `reason`."""
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"diptych.model.{name}", "prefect.resource.name": f"{name} {version}"}
    emit_event(f"diptych.model.{outcome}", resource, payload={"reason": reason})


def find_block(client: SyncPrefectClient, slug: str) -> UUID:
    """Return the id of the notification block `slug`, which is TYPE/NAME.

    Raises:
        DiptychError: there is no such block, or it cannot send notifications.
    """
    from prefect.exceptions import ObjectNotFound

    kind, _, name = slug.partition("/")
    remedy = "`prefect block ls` lists them; `prefect block create slack-webhook` tells where one is made."
    try:
        block = client.read_block_document_by_name(name, kind, include_secrets=False) if name else None
    except ObjectNotFound:
        block = None
    if block is None:
        raise DiptychError(f"{prefect_server.address()} has no block {slug!r}; it is named by TYPE/NAME. {remedy}")
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise DiptychError(f"The block {slug} cannot notify anybody. {remedy}")
    return block.id


def ensure(client: SyncPrefectClient, deployment: DeploymentResponse, block: UUID | None) -> dict[str, str]:
    """Create or update the automations of `deployment`; without a block, those for notifications stay as they are.

    Return "created", "updated" or "there already" by the automation's name.
    """
    from prefect.events.schemas.automations import AutomationCore

    definitions = [_crash_silent_runs(deployment.id)]
    if block is not None:
        definitions += [_notify_of_runs(deployment.id, block), _notify_of_models(block)]
    automations = [AutomationCore.model_validate(definition) for definition in definitions]
    return {automation.name: _ensure(client, automation) for automation in automations}


def _ensure(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    present = client.read_automations_by_name(wanted.name)
    if not present:
        client.create_automation(wanted)
        return "created"
    first, *duplicates = present
    for duplicate in duplicates:
        client.delete_automation(duplicate.id)
    # An automation that a person has disabled stays disabled.
    wanted = wanted.model_copy(update={"enabled": first.enabled})
    if _content(first) == _content(wanted):
        # An update would restart the wait for a run that has just died.
        return "there already"
    client.update_automation(first.id, wanted)
    return "updated"


def _content(automation: AutomationCore) -> dict[str, Any]:
    """Return the fields of an automation, minus those that the server adds."""
    return automation.model_dump(exclude={"id": True, "trigger": {"id"}})


def _crash_silent_runs(deployment: UUID) -> dict[str, Any]:
    return {
        "name": CRASH,
        "description": "Frees the slot of a dead run for the next run. Made by `diptych deploy`.",
        "trigger": {
            **_runs_of(deployment),
            "after": [_HEARTBEAT_EVENT],
            "expect": [_HEARTBEAT_EVENT, *_ENDS],
            "posture": "Proactive",
            "within": SILENCE,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": "Crashed",
                "message": f"No sign of life for {SILENCE} s: the run and its worker are gone. Run again.",
            }
        ],
    }


def _notify_of_runs(deployment: UUID, block: UUID) -> dict[str, Any]:
    subject = "diptych: the run {{ flow_run.name }} has ended as {{ flow_run.state.name }}"
    return {
        "name": NOTIFY_RUNS,
        "description": "Made by `diptych deploy --notify`.",
        "trigger": {**_runs_of(deployment), "expect": _FAILURES, "posture": "Reactive"},
        "actions": [_notification(block, subject, "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}")],
    }


def _notify_of_models(block: UUID) -> dict[str, Any]:
    subject = "diptych: {{ event.resource.name }} was {{ event.event.split('.')[-1] }}"
    return {
        "name": NOTIFY_MODELS,
        "description": "Made by `diptych deploy --notify`.",
        "trigger": {
            "match": {"prefect.resource.id": "diptych.model.*"},
            "expect": ["diptych.model.rejected", "diptych.model.promoted"],
            "posture": "Reactive",
            "threshold": 1,
        },
        "actions": [_notification(block, subject, "{{ event.payload.reason }}")],
    }


def _runs_of(deployment: UUID) -> dict[str, Any]:
    """Return the part of a trigger that selects the events of the deployment's runs, each run by itself."""
    related = {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{deployment}"}
    return {
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": related,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
    }


def _notification(block: UUID, subject: str, body: str) -> dict[str, Any]:
    return {"type": "send-notification", "block_document_id": block, "subject": subject, "body": body}
