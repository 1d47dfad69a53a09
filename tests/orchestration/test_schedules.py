"""`diptych schedule`, on a Prefect server of the tests' own."""

from datetime import timedelta

import pytest
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from diptych.errors import DiptychError
from diptych.orchestration import schedules
from diptych.orchestration.deployment import retraining


def test_the_schedule_is_shown_with_the_next_runs(deployed):
    found = schedules.read_schedule()

    assert (found.rules, found.paused) == (["0 3 * * * (UTC)"], False)
    assert len(found.next_runs) == 3
    assert all(one.endswith("T03:00:00+00:00") for one in found.next_runs)
    assert found.render().splitlines()[0] == "schedule   0 3 * * * (UTC)"
    assert len(found.render().splitlines()) == 4


def test_a_schedule_that_is_set_is_the_only_one_and_keeps_the_timezone(deployed):
    deployment = retraining(deployed)
    deployed.create_deployment_schedules(deployment.id, [(IntervalSchedule(interval=timedelta(hours=1)), True)])
    assert len(schedules.read_schedule().rules) == 2

    schedules.set_schedule("0 5 * * 1", "Europe/Berlin")
    found = schedules.set_schedule("30 2 * * *")

    assert found.rules == ["30 2 * * * (Europe/Berlin)"]
    assert found.next_runs[0][10:19] == "T02:30:00"


def test_a_deployment_without_a_schedule_gets_one(deployed):
    deployment = retraining(deployed)
    deployed.delete_deployment_schedule(deployment.id, deployment.schedules[0].id)
    assert "has no schedule" in schedules.read_schedule().render()

    assert schedules.set_schedule("0 4 * * *").rules == ["0 4 * * * (UTC)"]


def test_a_paused_schedule_goes_on_only_when_told(deployed):
    assert schedules.pause_schedule().paused
    assert schedules.set_schedule("0 4 * * *").paused
    assert "`diptych schedule resume` goes on" in schedules.read_schedule().render()

    assert not schedules.resume_schedule().paused


def test_resuming_also_switches_on_what_was_switched_off_elsewhere(deployed):
    deployment = retraining(deployed)
    deployed.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=False)
    assert schedules.read_schedule().paused

    assert not schedules.resume_schedule().paused


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("0 5 * *", None, "is no cron expression: minute, hour"),
        ("nightly", "UTC", "is no cron expression"),
        ("0 0 3 * * *", None, "is no cron expression"),
        ("0 0 31 2 *", None, "names no day that ever comes"),
        ("0 5 * * *", "Mars/Olympus", "'Mars/Olympus' is no timezone"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(deployed, cron, timezone, message):
    with pytest.raises(DiptychError, match=message):
        schedules.set_schedule(cron, timezone)

    assert schedules.read_schedule().rules == ["0 3 * * * (UTC)"]


def test_what_is_not_deployed_has_no_schedule(client):
    with pytest.raises(DiptychError, match="has no deployment retrain/retrain: run `diptych deploy`"):
        schedules.read_schedule()


def test_a_server_that_does_not_answer_is_named(client, monkeypatch):
    nowhere = "http://127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", nowhere)

    with (
        temporary_settings({PREFECT_API_URL: nowhere}),
        pytest.raises(DiptychError, match=f"{nowhere} does not answer"),
    ):
        schedules.read_schedule()
