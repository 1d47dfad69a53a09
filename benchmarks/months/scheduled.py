"""Runs of the retrain flow that Prefect's own scheduler makes, and what their pages show."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from months.project import Project, say

SCHEDULER = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
"""Of the Prefect server: it looks for changed schedules as often; sixty are its default, and would be waited for."""
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_PATIENCE = 3600.0
"""Seconds that a run may take."""
_ATTEMPTS = 4
"""A busy machine may take a minute to answer."""


@dataclass(frozen=True)
class FlowRun:
    """A run that has ended."""

    state: str
    by_schedule: bool
    """The scheduler made it, by the deployment's schedule."""
    seconds: float
    tasks: dict[str, float]
    """Seconds by their names."""
    summary: str
    """The artifact of that name."""
    logs: list[str] = field(repr=False)

    @property
    def trained(self) -> bool:
        """Whether the stage train ran, and not only its cache."""
        ran = next((line for line in self.summary.splitlines() if line.startswith("* ran: ")), "")
        return "train" in ran.removeprefix("* ran: ").split(", ")


class Retraining:
    """The deployment of the retrain flow."""

    def __init__(self, project: Project, api: str) -> None:
        self._project = project
        self._api = api
        self._lead = 15.0
        self._deployment = self._ask("/deployments/name/retrain/retrain")["id"]

    def by_schedule(self) -> FlowRun:
        """Sets the schedule to a moment that is soon, and waits for the end of the run that the scheduler makes then.

        The schedule is a daily one, so what it makes is one run.
        """
        while (run := self._scheduled(self._set_schedule())) is None:
            self._lead *= 2
            say(f"the moment had gone by; another one, {self._lead:.0f} s from now")
        return self._ended(run)

    def _set_schedule(self) -> datetime:
        # The command takes a while; what is in the past when it ends is not made up for.
        started = time.monotonic()
        self._project.diptych("schedule", "show")
        at = datetime.now(UTC) + timedelta(seconds=time.monotonic() - started + self._lead)
        # A sixth field is that of seconds.
        cron = f"{at.minute} {at.hour} * * * {at.second}"
        self._project.diptych("schedule", "set", cron, "--timezone", "UTC")
        return at.replace(microsecond=0)

    def _scheduled(self, at: datetime) -> Mapping[str, Any] | None:
        """The run for that moment; None if the scheduler made none."""
        moment = {"after_": at.isoformat(), "before_": at.isoformat()}
        wanted = {"deployment_id": {"any_": [self._deployment]}, "expected_start_time": moment}
        while datetime.now(UTC) < at + timedelta(seconds=5):
            if found := self._ask("/flow_runs/filter", {"flow_runs": wanted}):
                return dict(found[0])
            time.sleep(1)
        return None

    def _ended(self, run: Mapping[str, Any]) -> FlowRun:
        deadline = time.monotonic() + _PATIENCE
        while (run := self._ask(f"/flow_runs/{run['id']}"))["state_type"] not in _ENDED:
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        of_run = {"flow_run_id": {"any_": [run["id"]]}}
        artifacts = self._ask("/artifacts/filter", {"artifacts": {**of_run, "key": {"any_": ["summary"]}}})
        tasks = self._ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        logs = self._ask("/logs/filter", {"logs": of_run, "sort": "TIMESTAMP_ASC"})
        return FlowRun(
            state=run["state_type"],
            by_schedule=bool(run["auto_scheduled"] and (run["created_by"] or {}).get("type") == "SCHEDULE"),
            seconds=run["total_run_time"],
            tasks={one["name"]: one["total_run_time"] for one in tasks},
            summary=artifacts[0]["data"] if artifacts else "",
            logs=[one["message"] for one in logs],
        )

    def _ask(self, path: str, body: Any = None) -> Any:
        """What the API answers; nothing that is asked here changes anything, so it may be asked again."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._api}{path}", data, {"Content-Type": "application/json"})
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return json.load(response)
            except OSError:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(5)
        raise AssertionError
