"""`diptych deploy` and `diptych schedule`: the retrain flow on a Prefect server, and when it runs there."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import click

from diptych.project.environment import enter

if TYPE_CHECKING:
    from diptych.orchestration.deployment import Deployed, PoolType, WhenBusy
    from diptych.orchestration.schedules import Schedule


@click.command()
@click.option(
    "--pool-type",
    type=click.Choice(["process", "docker", "kubernetes"]),
    default="process",
    show_default=True,
    help="What workers start for each run.",
)
@click.option("--folder", metavar="PATH", help="Where workers find the project, if not where it lies here.")
@click.option(
    "--when-busy",
    type=click.Choice(["wait", "skip"]),
    help="What becomes of a run that is triggered while another is at work; prefect.yaml says wait.",
)
@click.option("--notify", metavar="TYPE/NAME", help="A Prefect notification block, such as slack-webhook/team.")
@click.option("--json", "as_json", is_flag=True, help="Print what is deployed as JSON.")
def deploy(pool_type: str, folder: str | None, when_busy: str | None, notify: str | None, as_json: bool) -> None:
    """Put the deployments of prefect.yaml on the Prefect server that PREFECT_API_URL names.

    A schedule that is there already stays as it is; `diptych schedule` changes it. With --notify somebody is told of
    runs that fail or crash, and of models that are rejected or promoted.
    """
    workspace = enter()
    from diptych.orchestration import deployment

    choices = deployment.Choices(cast("PoolType", pool_type), folder, cast("WhenBusy | None", when_busy), notify)
    deployed = deployment.deploy(workspace, choices)
    click.echo(json.dumps(asdict(deployed), indent=2) if as_json else _describe(deployed))


@click.group()
def schedule() -> None:
    """Show or change when the retrain flow runs by itself."""


_as_json = click.option("--json", "as_json", is_flag=True, help="Print the schedule as JSON.")


@schedule.command()
@_as_json
def show(as_json: bool) -> None:
    """Show the schedule and the next runs."""
    enter()
    from diptych.orchestration.schedules import read_schedule

    _print(read_schedule(), as_json)


@schedule.command("set")
@click.argument("cron")
@click.option("--timezone", metavar="NAME", help="Such as Europe/Berlin; else the present one, or UTC.")
@_as_json
def set_(cron: str, timezone: str | None, as_json: bool) -> None:
    """Make CRON, such as '0 3 * * *', the only schedule."""
    enter()
    from diptych.orchestration.schedules import set_schedule

    _print(set_schedule(cron, timezone), as_json)


@schedule.command()
@_as_json
def pause(as_json: bool) -> None:
    """Start no more runs by schedule."""
    enter()
    from diptych.orchestration.schedules import pause_schedule

    _print(pause_schedule(), as_json)


@schedule.command()
@_as_json
def resume(as_json: bool) -> None:
    """Start runs by schedule again."""
    enter()
    from diptych.orchestration.schedules import resume_schedule

    _print(resume_schedule(), as_json)


def _print(found: Schedule, as_json: bool) -> None:
    click.echo(json.dumps(asdict(found), indent=2) if as_json else found.render())


def _describe(deployed: Deployed) -> str:
    from diptych.orchestration.deployment import worker_command

    lines = [f"server      {deployed.server}"]
    lines += [f"work pool   {name}: {how}" for name, how in deployed.pools.items()]
    lines += [f"deployment  {name}: schedule {how}" for name, how in deployed.deployments.items()]
    lines += [f"automation  {name}: {how}" for name, how in deployed.automations.items()]
    lines += [f"worker      {worker_command(name)}" for name in deployed.pools]
    return "\n".join(lines)
