"""`diptych deploy`, on a Prefect server of the tests' own."""

import json

import httpx
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from diptych.cli import doctor
from diptych.cli.checks import Finding
from diptych.cli.main import main
from diptych.errors import DiptychError
from diptych.orchestration import schedules
from diptych.orchestration.automations import CRASH
from diptych.orchestration.deployment import RETRAIN, deploy

ALL = (RETRAIN, "promote/promote", "rollback/rollback")


def diagnose(workspace, name: str) -> Finding:
    """What `diptych doctor` finds in one check; a damaged params.yaml leaves out the slow ones."""
    workspace.params.write_text("sede: 1")
    return next(finding for finding in doctor.examine(workspace) if finding.name == name)


def change_definition(workspace, **values):
    """Of the only deployment in prefect.yaml."""
    path = workspace.root / "prefect.yaml"
    content = yaml.safe_load(path.read_text())
    content["deployments"][0].update(values)
    path.write_text(yaml.safe_dump(content))


def test_a_deployment_comes_with_pool_schedule_limit_and_automation(client, workspace):
    found = deploy(workspace)

    assert found.pools == {"diptych": "created"}
    assert found.deployments == dict.fromkeys(ALL, "from prefect.yaml")
    assert found.automations == {CRASH: "created"}
    deployment = client.read_deployment_by_name(RETRAIN)
    assert [one.schedule.cron for one in deployment.schedules] == ["0 3 * * *"]
    assert deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options.collision_strategy == "ENQUEUE"
    assert client.read_work_pool("diptych").type == "process"


def test_of_a_server_that_forgets_who_has_the_place_is_warned(client, workspace, monkeypatch, caplog):
    monkeypatch.setattr("diptych.orchestration.deployment.stream", lambda *arguments: 0)

    # It stops behind the warning: nothing was applied.
    with pytest.raises(DiptychError, match="has no deployment"):
        deploy(workspace)

    assert "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server" in caplog.text


@pytest.mark.parametrize("answer", [{"server": {}}, None])
def test_a_server_that_does_not_tell_its_settings_is_deployed_to(client, workspace, monkeypatch, answer):
    request = type(client).request

    def other(self, method, path, *rest, **options):
        if path != "/admin/settings":
            return request(self, method, path, *rest, **options)
        asked = httpx.Request(method, f"http://server{path}")
        if answer is None:
            raise httpx.HTTPStatusError("404", request=asked, response=httpx.Response(404, request=asked))
        return httpx.Response(200, json=answer, request=asked)

    monkeypatch.setattr(type(client), "request", other)
    monkeypatch.setattr("diptych.orchestration.deployment.stream", lambda *arguments: 0)

    # It stops only where nothing was applied: the pool is made.
    with pytest.raises(DiptychError, match="has no deployment"):
        deploy(workspace)

    assert [pool.name for pool in client.read_work_pools()] == ["diptych"]


def test_a_worker_anywhere_finds_the_project(client, workspace):
    deploy(workspace)

    (step,) = client.read_deployment_by_name(RETRAIN).pull_steps
    assert step == {"prefect.deployments.steps.set_working_directory": {"directory": str(workspace.root)}}


def test_deploying_again_keeps_the_schedule_and_makes_nothing_twice(client, workspace):
    deploy(workspace)
    schedules.set_schedule("0 5 * * 1", "Europe/Berlin")
    schedules.pause_schedule()
    before = client.read_deployment_by_name(RETRAIN)

    found = deploy(workspace, when_busy="skip", folder="/srv/diptych")

    assert (found.pools, found.deployments) == ({"diptych": "there already"}, dict.fromkeys(ALL, "kept as it was"))
    assert client.read_deployment_by_name("promote/promote").global_concurrency_limit is None
    assert found.automations == {CRASH: "there already"}
    after = client.read_deployment_by_name(RETRAIN)
    assert (after.id, after.paused, after.schedules) == (before.id, True, before.schedules)
    assert after.concurrency_options.collision_strategy == "CANCEL_NEW"
    assert list(after.pull_steps[0].values()) == [{"directory": "/srv/diptych"}]
    assert len(client.read_automations()) == 1


def test_what_prefect_refuses_is_told_in_its_words(client, workspace):
    change_definition(workspace, entrypoint="flows/retrain.py:retrian")

    with pytest.raises(DiptychError, match=r"prefect\.yaml was not accepted: .*retrian"):
        deploy(workspace)


@pytest.mark.parametrize("content", ["deployments: [", "deployments: [{name: x}]", "[]"])
def test_a_damaged_definition_is_named(client, workspace, content):
    (workspace.root / "prefect.yaml").write_text(content)

    with pytest.raises(DiptychError, match=r"prefect\.yaml: each of its deployments needs"):
        deploy(workspace)


def test_a_missing_definition_is_part_of_the_project(client, workspace):
    (workspace.root / "prefect.yaml").unlink()

    with pytest.raises(DiptychError, match=r"prefect\.yaml is missing; it is part of the project"):
        deploy(workspace)


def test_a_pool_of_another_type_is_left_alone(client, workspace):
    client.create_work_pool(WorkPoolCreate(name="diptych", type="process"))

    with pytest.raises(DiptychError, match="of the type process, not docker: give `--pool-type process`"):
        deploy(workspace, pool_type="docker")


def test_a_pool_is_made_by_the_projects_template(client, workspace, monkeypatch):
    template = {
        "job_configuration": {"image": "{{ image }}"},
        "variables": {"properties": {"image": {"type": "string"}}},
    }
    (workspace.root / "docker" / "pools").mkdir(parents=True)
    (workspace.root / "docker" / "pools" / "docker.json").write_text(json.dumps(template))
    flow = client.create_flow_from_name("retrain")
    monkeypatch.setattr(
        "diptych.orchestration.deployment.stream",
        lambda *arguments: client.create_deployment(flow_id=flow, name="retrain") and 0,
    )

    deploy(workspace, pool_type="docker")

    pool = client.read_work_pool("diptych")
    assert (pool.type, pool.base_job_template["job_configuration"]) == ("docker", template["job_configuration"])


def test_a_damaged_template_is_named(client, workspace):
    (workspace.root / "docker" / "pools").mkdir(parents=True)
    (workspace.root / "docker" / "pools" / "docker.json").write_text("{")

    with pytest.raises(DiptychError, match=r"docker\.json is no job template"):
        deploy(workspace, pool_type="docker")


def test_without_a_template_in_the_project_a_pool_has_prefects_own(client, workspace, monkeypatch):
    monkeypatch.setattr("diptych.orchestration.deployment.stream", lambda *arguments: 0)

    # Nothing was applied, so that the pool is all there is.
    with pytest.raises(DiptychError, match="has no deployment"):
        deploy(workspace, pool_type="kubernetes")

    pool = client.read_work_pool("diptych")
    assert "image" in pool.base_job_template["variables"]["properties"]


def test_a_pool_of_a_type_that_the_server_does_not_know_is_refused(client, workspace):
    with pytest.raises(DiptychError, match="knows no work pools of the type ships"):
        deploy(workspace, pool_type="ships")

    assert client.read_work_pools() == []


def test_the_doctor_tells_what_a_schedule_lacks(client, workspace):
    assert diagnose(workspace, "schedule")[-1] == "`diptych deploy`."
    deploy(workspace)
    assert diagnose(workspace, "schedule")[-1] == "`prefect worker start --pool diptych --limit 2`."
    client.send_worker_heartbeat("diptych", "one")
    assert diagnose(workspace, "schedule")[1:3] == ("ok", "0 3 * * * (UTC)")


@pytest.mark.parametrize("slug", ["slack-webhook/nobody", "no-such-type/x", "slack-webhook"])
def test_a_block_that_is_not_there_is_told_before_anything_is_made(client, workspace, slug):
    with pytest.raises(DiptychError, match=f"has no block '{slug}'"):
        deploy(workspace, notify=slug)

    assert client.read_work_pools() == []


def test_without_an_address_the_user_is_told_what_a_server_is_for(client, workspace, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL")

    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(DiptychError, match=r"names no Prefect server.*prefect server start"),
    ):
        deploy(workspace)


def test_a_password_in_the_address_is_told_nobody(address, workspace, monkeypatch):
    for where in (address, "http://127.0.0.1:9/api"):
        monkeypatch.setenv("PREFECT_API_URL", where.replace("://", "://somebody:hunter2@"))
        with (
            temporary_settings({PREFECT_API_URL: where.replace("://", "://somebody:hunter2@")}),
            pytest.raises(DiptychError, match=f"^{where}/? (has no block|does not answer)") as raised,
        ):
            deploy(workspace, notify="slack-webhook/nobody")
        assert "hunter2" not in str(raised.value)
        assert "hunter2" not in str(diagnose(workspace, "prefect"))


def diptych(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_commands_speak_to_people_and_to_programs(deployed, workspace, capsys):
    assert diptych("schedule", "set", "0 6 * * *") == 0
    assert capsys.readouterr().out.startswith("schedule   0 6 * * * (UTC)\nnext run   ")
    for command in ("show", "pause", "resume"):
        assert diptych("schedule", command, "--json") == 0
        assert json.loads(capsys.readouterr().out)["paused"] is (command == "pause")
    assert diptych("deploy") == 0
    told = capsys.readouterr().out
    assert "deployment  retrain/retrain: schedule kept as it was" in told
    assert told.endswith("worker      prefect worker start --pool diptych --limit 2\n")
