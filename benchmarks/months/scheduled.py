"""Runs of the retrain flow that Prefect's scheduler makes, with their artifacts and logs."""

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
"""Settings of the Prefect server: seconds between its checks for changed schedules, 60 by default."""
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_PATIENCE = 3600.0
"""Seconds that a run may take."""
_ATTEMPTS = 4
"""Attempts of a request: a server on a busy machine may take a minute to answer."""


@dataclass(frozen=True)
class FlowRun:
    """A run that has ended."""

    state: str
    by_schedule: bool
    """True if the scheduler made the run."""
    seconds: float
    tasks: dict[str, float]
    """Seconds by the names of the tasks."""
    summary: str
    """Content of the artifact `summary`."""
    logs: list[str] = field(repr=False)

    @property
    def trained(self) -> bool:
        """True if the stage train ran, and was not reused from the cache."""
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
        """Set the schedule to a moment in the near future, and wait for the end of the run that the scheduler makes.

        The schedule is daily, so that it makes one run.
        """
        while (run := self._scheduled(self._set_schedule())) is None:
            self._lead *= 2
            say(f"the moment had passed; the next is at least {self._lead:.0f} s from now")
        return self._ended(run)

    def _set_schedule(self) -> datetime:
        # The command takes some seconds; the scheduler makes no runs for moments that have passed.
        started = time.monotonic()
        self._project.diptych("schedule", "show")
        soonest = datetime.now(UTC) + timedelta(seconds=time.monotonic() - started + self._lead)
        # Schedules have full minutes.
        at = soonest.replace(second=0, microsecond=0) + timedelta(minutes=1)
        self._project.diptych("schedule", "set", f"{at.minute} {at.hour} * * *", "--timezone", "UTC")
        return at

    def _scheduled(self, at: datetime) -> Mapping[str, Any] | None:
        """Return the run for that moment; None if the scheduler made none."""
        moment = {"after_": at.isoformat(), "before_": at.isoformat()}
        wanted = {"deployment_id": {"any_": [self._deployment]}, "expected_start_time": moment}
        while datetime.now(UTC) < at + timedelta(seconds=5):
            if runs := self._ask("/flow_runs/filter", {"flow_runs": wanted}):
                return dict(runs[0])
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
            tasks={task["name"]: task["total_run_time"] for task in tasks},
            summary=artifacts[0]["data"] if artifacts else "",
            logs=[entry["message"] for entry in logs],
        )

    def _ask(self, path: str, body: Any = None) -> Any:
        """Return the answer of the API; requests are repeated, since none of them changes anything."""
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
