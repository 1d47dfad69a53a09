"""What the Prefect server does by itself: free the place of a run that died unseen, and tell people.

A worker reports its run as crashed when the run's process ends. Where the worker has gone too (the machine lost power),
only the silence of the run tells.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from diptych.errors import DiptychError
from diptych.project.addresses import without_secrets

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore

HEARTBEAT = 30
"""Seconds between two signs of life of a run: the least that Prefect allows, set in prefect.yaml."""
SILENCE = 120
"""Seconds after which a run that gave no sign of life is crashed.

Three of them may be lost, as in a short restart of the server. Much longer would be too late: Prefect's own lease on
the place ends 75 to 300 s after the run, and a place that both set free is given away twice.
"""

Outcome = Literal["rejected", "promoted"]

CRASH = "diptych: crash a run that gives no sign of life"
NOTIFY_RUNS = "diptych: tell of runs that failed or crashed"
NOTIFY_MODELS = "diptych: tell of models that were rejected or promoted"

_ENDS = ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled")
"""Names of the states after which a run gives no more signs of life."""


def announce(outcome: Outcome, name: str, version: str, reason: str) -> None:
    """Emits the event `diptych.model.OUTCOME`, of which people are told; `reason` is what they read."""
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"diptych.model.{name}", "prefect.resource.name": f"{name} {version}"}
    emit_event(f"diptych.model.{outcome}", resource, payload={"reason": reason})


def find_block(client: SyncPrefectClient, slug: str) -> UUID:
    """The id of the notification block `slug`, which is TYPE/NAME.

    Raises:
        DiptychError: there is none, or nobody can be told by it.
    """
    from prefect.exceptions import ObjectNotFound

    kind, _, name = slug.partition("/")
    mend = "`prefect block ls` lists them; `prefect block create slack-webhook` tells where one is made."
    try:
        block = client.read_block_document_by_name(name, kind, include_secrets=False) if name else None
    except ObjectNotFound:
        block = None
    if block is None:
        raise DiptychError(
            f"{without_secrets(str(client.api_url))} has no block {slug!r}; it is named by TYPE/NAME. {mend}"
        )
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise DiptychError(f"The block {slug} cannot notify anybody. {mend}")
    return block.id


def ensure(client: SyncPrefectClient, deployment: DeploymentResponse, block: UUID | None) -> dict[str, str]:
    """The server has the automations of this deployment; returns by name what became of each.

    Without a block, notifications stay as they are.
    """
    wanted = [_crash_the_silent(deployment.id)]
    if block is not None:
        wanted += [_tell_of_runs(deployment.id, block), _tell_of_models(block)]
    return {one.name: _ensure(client, one) for one in wanted}


def _ensure(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    present = client.read_automations_by_name(wanted.name)
    if not present:
        client.create_automation(wanted)
        return "created"
    first, *others = present
    for one in others:
        client.delete_automation(one.id)
    # Whoever has switched it off keeps it so.
    wanted = wanted.model_copy(update={"enabled": first.enabled})
    if _content(first) == _content(wanted):
        # An update would begin anew the wait for a run that has just died.
        return "there already"
    client.update_automation(first.id, wanted)
    return "updated"


def _content(automation: AutomationCore) -> dict[str, Any]:
    """Without what the server adds."""
    from prefect.events.schemas.automations import AutomationCore

    return automation.model_dump(include=set(AutomationCore.model_fields), exclude={"trigger": {"id"}})


def _crash_the_silent(deployment: UUID) -> AutomationCore:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    trigger = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=_of(deployment),
        after={heartbeat},
        expect={heartbeat, *_events(*_ENDS)},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE),
    )
    message = f"No sign of life for {SILENCE} s: the run and its worker are gone. Run again."
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)
    description = "So that it frees its place for the next one. Made by `diptych deploy`."
    return AutomationCore(name=CRASH, description=description, trigger=trigger, actions=[action])


def _tell_of_runs(deployment: UUID, block: UUID) -> AutomationCore:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    trigger = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=_of(deployment),
        expect=_events("Failed", "TimedOut", "Crashed"),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )
    action = SendNotification(
        block_document_id=block,
        subject="diptych: the run {{ flow_run.name }} has ended as {{ flow_run.state.name }}",
        body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
    )
    return AutomationCore(
        name=NOTIFY_RUNS, description="Made by `diptych deploy --notify`.", trigger=trigger, actions=[action]
    )


def _tell_of_models(block: UUID) -> AutomationCore:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    trigger = EventTrigger(
        match={"prefect.resource.id": "diptych.model.*"},
        expect={"diptych.model.rejected", "diptych.model.promoted"},
        posture=Posture.Reactive,
        threshold=1,
    )
    action = SendNotification(
        block_document_id=block,
        subject="diptych: {{ event.resource.name }} was {{ event.event.split('.')[-1] }}",
        body="{{ event.payload.reason }}",
    )
    return AutomationCore(
        name=NOTIFY_MODELS, description="Made by `diptych deploy --notify`.", trigger=trigger, actions=[action]
    )


def _of(deployment: UUID) -> dict[str, str]:
    """What an event of one of its runs is related to."""
    return {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{deployment}"}


def _events(*states: str) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}
