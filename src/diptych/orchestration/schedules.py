"""`diptych schedule`: when the deployment of the retrain flow runs by itself.

Each function raises DiptychError where `prefect_server.client` does, or where the server lacks the deployment.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from diptych.errors import DiptychError
from diptych.orchestration import server as prefect_server
from diptych.orchestration.deployment import RETRAIN, retraining

if TYPE_CHECKING:
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.client.schemas.schedules import CronSchedule

SHOWN = 3
"""The number of next runs that are shown."""


@dataclass(frozen=True)
class Schedule:
    """The schedule of the deployment."""

    rules: list[str]
    """Such as "0 3 * * * (UTC)"; one rule, unless others were added by other means."""
    paused: bool
    next_runs: list[str]
    """ISO 8601 with the offset of the schedule's timezone, the earliest first.

    A paused schedule has the dates that it would have if it were active.
    """

    def render(self) -> str:
        """Return lines for people."""
        if not self.rules:
            return f"{RETRAIN} has no schedule: `diptych schedule set CRON` gives it one."
        state = ", paused: `diptych schedule resume` goes on" if self.paused else ""
        lines = [f"schedule   {'; '.join(self.rules)}{state}"]
        return "\n".join(lines + ([] if self.paused else [f"next run   {date}" for date in self.next_runs]))


def read_schedule() -> Schedule:
    """Return the schedule that the server has."""
    with prefect_server.client() as client:
        return _describe(retraining(client))


def set_schedule(cron: str, timezone: str | None = None) -> Schedule:
    """Make `cron` the deployment's only schedule; without a timezone it keeps the present one's.

    A paused schedule stays paused.

    Raises:
        DiptychError: it is no cron expression or timezone, or names no day that ever comes.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    wanted = _cron_schedule(cron, timezone)
    with prefect_server.client() as client:
        deployment = retraining(client)
        present = deployment.schedules
        if timezone is None:
            zones = (getattr(item.schedule, "timezone", None) for item in present)
            wanted = wanted.model_copy(update={"timezone": next(filter(None, zones), "UTC")})
        if present:
            client.update_deployment_schedule(deployment.id, present[0].id, schedule=wanted)
        else:
            client.create_deployment_schedules(deployment.id, [DeploymentScheduleCreate(schedule=wanted, active=True)])
        for other in present[1:]:
            client.delete_deployment_schedule(deployment.id, other.id)
        return _describe(retraining(client))


def pause_schedule() -> Schedule:
    """Start no more runs by schedule; runs that are triggered by hand still start."""
    with prefect_server.client() as client:
        client.pause_deployment(retraining(client).id)
        return _describe(retraining(client))


def resume_schedule() -> Schedule:
    """Start runs by schedule again, also where the schedule itself was switched off by other means."""
    with prefect_server.client() as client:
        deployment = retraining(client)
        client.resume_deployment(deployment.id)
        for item in deployment.schedules:
            if not item.active:
                client.update_deployment_schedule(deployment.id, item.id, active=True)
        return _describe(retraining(client))


def _cron_schedule(cron: str, timezone: str | None) -> CronSchedule:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    refusal = DiptychError(
        f"{cron!r} is no cron expression: minute, hour, day of the month, month and day of the week, "
        "such as '0 3 * * *' for every night at three."
    )
    # Prefect takes a sixth field for seconds, which nobody means: '0 0 3 * * *' is 60 runs on the third of the month.
    if len(cron.split()) > 5:
        raise refusal
    try:
        wanted = CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("timezone",):
            raise DiptychError(f"{timezone!r} is no timezone; they are named as Europe/Berlin or UTC.") from None
        raise refusal from None
    if not _dates(wanted.model_dump()):
        raise DiptychError(f"{cron!r} names no day that ever comes.")
    return wanted


def _describe(deployment: DeploymentResponse) -> Schedule:
    schedules = list(deployment.schedules)
    active = [item for item in schedules if item.active]
    dates = [date for item in active or schedules for date in _dates(item.schedule.model_dump())]
    return Schedule(
        rules=[_rule(item) for item in schedules],
        paused=bool(deployment.paused) or not active,
        next_runs=[date.isoformat() for date in sorted(dates)[:SHOWN]],
    )


def _rule(item: DeploymentSchedule) -> str:
    values = item.schedule.model_dump()
    when = values.get("cron") or values.get("rrule") or f"every {values.get('interval')}"
    return f"{when} ({values.get('timezone') or 'UTC'})"


def _dates(schedule: dict[str, Any]) -> list[datetime]:
    """Return the next dates of a schedule, as the server's scheduler computes them."""
    from prefect.server.schemas.schedules import SCHEDULE_TYPES
    from pydantic import TypeAdapter

    try:
        parsed: Any = TypeAdapter(SCHEDULE_TYPES).validate_python(schedule)
        return list(asyncio.run(parsed.get_dates(SHOWN, start=datetime.now(UTC))))
    except ValueError:
        # Such as the 31st of February.
        return []
