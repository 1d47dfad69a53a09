"""`diptych deploy` and `diptych schedule`: options, and output for people and for programs."""

import json
from unittest.mock import ANY, Mock, call

import pytest
from command import diptych

from diptych.orchestration import deployment, schedules
from diptych.orchestration.deployment import Deployed
from diptych.orchestration.schedules import Schedule

pytestmark = pytest.mark.usefixtures("inside")

NIGHTLY = Schedule(["0 3 * * * (UTC)"], paused=False, next_runs=["2026-12-01T03:00:00+00:00"])
DEPLOYED = Deployed(
    "http://host/api",
    pools={"diptych": "created"},
    deployments={"retrain/retrain": "from prefect.yaml"},
    automations={"crash": "created"},
)


def test_without_options_prefect_yaml_decides(monkeypatch, capsys):
    deploy = Mock(return_value=DEPLOYED)
    monkeypatch.setattr(deployment, "deploy", deploy)

    assert diptych("deploy") == 0

    deploy.assert_called_once_with(ANY, pool_type="process", folder=None, when_busy=None, notify=None)
    assert capsys.readouterr().out.splitlines() == [
        "server      http://host/api",
        "work pool   diptych: created",
        "deployment  retrain/retrain: schedule from prefect.yaml",
        "automation  crash: created",
        "worker      prefect worker start --pool diptych --limit 2",
    ]


def test_every_option_of_deploy_is_passed_on(monkeypatch, capsys):
    deploy = Mock(return_value=DEPLOYED)
    monkeypatch.setattr(deployment, "deploy", deploy)
    options = ("--pool-type", "docker", "--folder", "/srv", "--when-busy", "skip", "--notify", "slack-webhook/team")

    assert diptych("deploy", *options, "--json") == 0

    deploy.assert_called_once_with(
        ANY, pool_type="docker", folder="/srv", when_busy="skip", notify="slack-webhook/team"
    )
    assert json.loads(capsys.readouterr().out)["pools"] == {"diptych": "created"}


@pytest.mark.parametrize(
    ("command", "function"), [("show", "read_schedule"), ("pause", "pause_schedule"), ("resume", "resume_schedule")]
)
def test_a_schedule_is_printed_for_people_and_for_programs(monkeypatch, capsys, command, function):
    monkeypatch.setattr(schedules, function, lambda: NIGHTLY)

    assert diptych("schedule", command) == 0
    assert capsys.readouterr().out == "schedule   0 3 * * * (UTC)\nnext run   2026-12-01T03:00:00+00:00\n"
    assert diptych("schedule", command, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rules"] == ["0 3 * * * (UTC)"]


def test_a_schedule_is_set_with_its_timezone(monkeypatch, capsys):
    set_schedule = Mock(return_value=NIGHTLY)
    monkeypatch.setattr(schedules, "set_schedule", set_schedule)

    assert diptych("schedule", "set", "0 3 * * *", "--timezone", "Europe/Berlin") == 0
    assert diptych("schedule", "set", "0 3 * * *") == 0

    assert set_schedule.call_args_list == [call("0 3 * * *", "Europe/Berlin"), call("0 3 * * *", None)]
