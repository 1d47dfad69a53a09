"""The automations of a deployment, on a Prefect server of the tests' own."""

from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.actions import BlockDocumentCreate

from diptych.errors import DiptychError
from diptych.orchestration import automations
from diptych.orchestration.automations import CRASH, NOTIFY_MODELS, NOTIFY_RUNS
from diptych.orchestration.deployment import retraining


def save_block(client, kind: str, document: str, **values):
    """A block document of a type that Prefect brings along."""
    block_type = client.read_block_type_by_slug(kind)
    schema = client.get_most_recent_block_schema_for_block_type(block_type.id)
    client.create_block_document(
        BlockDocumentCreate(name=document, block_type_id=block_type.id, block_schema_id=schema.id, data=values)
    )


def test_notifications_are_made_once_and_follow_the_block(deployed):
    deployment = retraining(deployed)
    save_block(deployed, "slack-webhook", "one", url="https://hooks.example.com/1")
    save_block(deployed, "custom-webhook", "two", name="two", url="https://hooks.example.com/2")
    one, two = (automations.find_block(deployed, slug) for slug in ("slack-webhook/one", "custom-webhook/two"))

    first = automations.ensure(deployed, deployment, one)
    second = automations.ensure(deployed, deployment, two)

    assert first == dict.fromkeys((CRASH, NOTIFY_RUNS, NOTIFY_MODELS), "created")
    assert second == {CRASH: "there already", NOTIFY_RUNS: "updated", NOTIFY_MODELS: "updated"}
    present = {one.name: one for one in deployed.read_automations()}
    assert len(deployed.read_automations()) == 3
    assert {present[name].actions[0].block_document_id for name in (NOTIFY_RUNS, NOTIFY_MODELS)} == {two}


def test_an_automation_that_was_switched_off_stays_off(deployed):
    deployment = retraining(deployed)
    automations.ensure(deployed, deployment, None)
    deployed.pause_automation(deployed.read_automations()[0].id)
    replaced = deployment.model_copy(update={"id": uuid4()})

    assert automations.ensure(deployed, replaced, None) == {CRASH: "updated"}

    assert [one.enabled for one in deployed.read_automations()] == [False]


def test_a_block_that_notifies_nobody_is_refused(client):
    save_block(client, "secret", "password", value="x")

    with pytest.raises(DiptychError, match="secret/password cannot notify anybody"):
        automations.find_block(client, "secret/password")


def test_several_heartbeats_may_be_lost_before_a_run_is_crashed(workspace):
    one = yaml.safe_load((workspace.root / "prefect.yaml").read_text())["deployments"][0]

    heartbeat = int(one["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert heartbeat == 30
    assert 3 * heartbeat <= automations.SILENCE
