"""`diptych deploy` and `diptych schedule`: the retrain flow on a Prefect server, and when it runs there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import click

from diptych.cli.console import print_result
from diptych.orchestration import deployment, schedules
from diptych.project.environment import enter


@click.command()
@click.option(
    "--pool-type",
    type=click.Choice(["process", "docker", "kubernetes"]),
    default="process",
    show_default=True,
    help="The kind of thing that workers start for each run.",
)
@click.option(
    "--folder", metavar="PATH", help="The project's folder on the workers' machines, if it differs from here."
)
@click.option(
    "--when-busy",
    type=click.Choice(["wait", "skip"]),
    help="Let a run that is triggered while another works wait, or skip it; prefect.yaml says wait.",
)
@click.option("--notify", metavar="TYPE/NAME", help="A Prefect notification block, such as slack-webhook/team.")
@click.option("--json", "as_json", is_flag=True, help="Print what is deployed as JSON.")
def deploy(pool_type: str, folder: str | None, when_busy: str | None, notify: str | None, as_json: bool) -> None:
    """Put the deployments of prefect.yaml on the Prefect server that PREFECT_API_URL names.

    A schedule that is there already stays as it is; `diptych schedule` changes it. With --notify, a notification is
    sent when a run fails or crashes, and when a model is rejected or promoted.
    """
    workspace = enter()
    deployed = deployment.deploy(workspace, pool_type=pool_type, folder=folder, when_busy=when_busy, notify=notify)
    print_result(asdict(deployed), _describe(deployed), as_json)


@click.group()
def schedule() -> None:
    """Show or change when the retrain flow runs by itself."""


_as_json = click.option("--json", "as_json", is_flag=True, help="Print the schedule as JSON.")


@schedule.command()
@_as_json
def show(as_json: bool) -> None:
    """Show the schedule and the next runs."""
    _print(schedules.read_schedule, as_json)


@schedule.command("set")
@click.argument("cron")
@click.option("--timezone", metavar="NAME", help="Such as Europe/Berlin; else the present one, or UTC.")
@_as_json
def set_(cron: str, timezone: str | None, as_json: bool) -> None:
    """Make CRON, such as '0 3 * * *', the only schedule."""
    _print(lambda: schedules.set_schedule(cron, timezone), as_json)


@schedule.command()
@_as_json
def pause(as_json: bool) -> None:
    """Start no more runs by schedule."""
    _print(schedules.pause_schedule, as_json)


@schedule.command()
@_as_json
def resume(as_json: bool) -> None:
    """Start runs by schedule again."""
    _print(schedules.resume_schedule, as_json)


def _print(act: Callable[[], schedules.Schedule], as_json: bool) -> None:
    enter()
    result = act()
    print_result(asdict(result), result.render(), as_json)


def _describe(deployed: deployment.Deployed) -> str:
    lines = [f"server      {deployed.server}"]
    lines += [f"work pool   {name}: {outcome}" for name, outcome in deployed.pools.items()]
    lines += [f"deployment  {name}: schedule {origin}" for name, origin in deployed.deployments.items()]
    lines += [f"automation  {name}: {outcome}" for name, outcome in deployed.automations.items()]
    lines += [f"worker      {deployment.worker_command(name)}" for name in deployed.pools]
    return "\n".join(lines)
