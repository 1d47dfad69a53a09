"""`diptych promote`, `rollback`, `history`, `compare` and `champion`: which model is in use, and why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from diptych.errors import DiptychError
from diptych.project.environment import enter

if TYPE_CHECKING:
    from diptych.config import Params
    from diptych.project.workspace import Workspace
    from diptych.registry.history import Event
    from diptych.registry.promotion import ChampionChange
    from diptych.registry.registered_model import RegisteredModel
    from diptych.retrieval.comparison import Comparison

_NAME = click.option(
    "--name", metavar="NAME", help="The registered model; default: register.model_name of params.yaml."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command()
@click.argument("version", default="challenger")
@_NAME
@click.option("--to", "target", metavar="NAME", help="Copy the version to this registered model, and promote it there.")
@click.option("--force", is_flag=True, help="Promote a version that the gate refuses; needs --reason.")
@click.option("--reason", default="", help="Reason; stored in the history.")
@_JSON
def promote(version: str, name: str | None, target: str | None, force: bool, reason: str, as_json: bool) -> None:
    """Make VERSION (a number or an alias; default: challenger) the champion, if it passes the gate.

    The gate measures it and the champion on the project's test split as it is now. Where it refuses, the exit code is 1
    and the champion stays.
    """
    if force and not reason.strip():
        raise click.UsageError("--force needs --reason, which the history stores.")
    workspace, params = _enter()
    from diptych.project.processes import holding
    from diptych.registry.history import history as history_of
    from diptych.registry.history import last_rollback_from
    from diptych.registry.lifecycle import gate_and_promote
    from diptych.registry.registered_model import RegisteredModel

    model = RegisteredModel.of(workspace, params, name)
    candidate = model.find(version)
    # The dataset must not change while the models are measured on it.
    with holding(workspace, "diptych promote"):
        if target:
            model = RegisteredModel.of(workspace, params, target)
            candidate = model.copy_of(candidate)
        if rollback_event := last_rollback_from(history_of(model), candidate.version):
            click.echo(
                f"note: {candidate.title} was rolled back by {rollback_event.who}: {rollback_event.why}", err=True
            )
        result = gate_and_promote(model, candidate, workspace, params, why=reason, force=force)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        click.echo(result.describe())
    if result.outcome == "rejected":
        sys.exit(1)


@click.command()
@_NAME
@click.option("--to", "target", metavar="VERSION", help="An earlier champion; default: the last one.")
@click.option("--reason", required=True, help="Reason; stored in the history.")
@_JSON
def rollback(name: str | None, target: str | None, reason: str, as_json: bool) -> None:
    """Make the champion before the present one the champion again."""
    if not reason.strip():
        raise click.UsageError("--reason must not be empty: the history stores it.")
    workspace, params = _enter()
    from diptych.registry.promotion import roll_back

    model = _model(workspace, params, name)
    change = roll_back(model, target, why=reason)
    if as_json:
        click.echo(json.dumps({**model.find(change.after).to_json(), "before": change.before}, indent=2))
    else:
        click.echo(_describe_change(model, change))


@click.command()
@_NAME
@_JSON
def history(name: str | None, as_json: bool) -> None:
    """Show the decisions, sorted by time: who, when, from which version to which, why, and on which figures."""
    workspace, params = _enter()
    from diptych.registry.history import history as events_of

    model = _model(workspace, params, name)
    # The event of a refused drop is recorded later, and bears the time of the refusal.
    events = sorted(events_of(model), key=lambda event: event.when)
    if as_json:
        click.echo(json.dumps([event.to_json() for event in events], indent=2))
    else:
        nothing = f"{model.name}: nothing was decided yet; `diptych promote` does."
        click.echo("\n".join(map(_describe_event, events)) or nothing)


@click.command()
@click.argument("first")
@click.argument("second")
@_NAME
@_JSON
def compare(first: str, second: str, name: str | None, as_json: bool) -> None:
    """Measure two versions (numbers or aliases) on the present test split, and show how they differ, with intervals."""
    workspace, params = _enter()
    from diptych.project.processes import holding
    from diptych.registry.lifecycle import compare_versions

    model = _model(workspace, params, name)
    versions = model.find(first), model.find(second)
    if versions[0].version == versions[1].version:
        raise DiptychError(f"{first} and {second} are both {versions[0].title}: there is nothing to compare.")
    with holding(workspace, "diptych compare"):
        comparison = compare_versions(model, *versions, workspace, params)
    if as_json:
        content = {"first": versions[0].to_json(), "second": versions[1].to_json(), **comparison.to_json()}
        click.echo(json.dumps(content, indent=2))
    else:
        click.echo(_describe_comparison(versions[0].version, versions[1].version, comparison))


@click.command()
@_NAME
@_JSON
def champion(name: str | None, as_json: bool) -> None:
    """Show the version in use; exit code 1 where there is none."""
    workspace, params = _enter()
    model = _model(workspace, params, name)
    version = model.champion()
    if version is None:
        raise DiptychError(f"{model.name} has no champion yet: `diptych promote` makes one.")
    if as_json:
        click.echo(json.dumps(version.to_json(), indent=2))
    else:
        rsum = version.metrics.get("reranked/rsum")
        measured = f", RSUM {rsum:.1f} when it was made" if rsum is not None else ""
        click.echo(f"{version.title}{measured}; load it as models:/{version.name}@champion")


COMMANDS = (promote, rollback, history, compare, champion)


def _enter() -> tuple[Workspace, Params]:
    workspace = enter()
    from diptych.project.params import read_params

    return workspace, read_params(workspace)


def _model(workspace: Workspace, params: Params, name: str | None) -> RegisteredModel:
    from diptych.registry.registered_model import RegisteredModel

    return RegisteredModel.of(workspace, params, name)


def _describe_change(model: RegisteredModel, change: ChampionChange) -> str:
    before = f" in place of version {change.before}" if change.before else ""
    return f"{model.name} version {change.after} is the champion{before}."


def _describe_event(event: Event) -> str:
    versions = f"{event.origin or '-'} → {event.target or '-'}"
    figures = ", ".join(f"{name} {value:.1f}" for name, value in event.figures.items())
    forced = " (forced)" if event.forced else ""
    return f"{event.when}  {event.action + forced:<16} {versions:<9} {event.who}: {event.why}" + (
        f" [{figures}]" if figures else ""
    )


def _describe_comparison(first: str, second: str, comparison: Comparison) -> str:
    rows = [f"{'':22}{'version ' + first:>14}{'version ' + second:>14}"]
    for direction in ("i2t", "t2i"):
        for k in (1, 5, 10):
            values = (side["metrics"][direction][f"recall@{k}"] for side in (comparison.before, comparison.after))
            rows.append(f"{f'{direction} recall@{k}':<22}" + "".join(f"{value:>14.1f}" for value in values))
    rows.append(
        f"{'RSUM':<22}" + "".join(f"{side['metrics']['rsum']:>14.1f}" for side in (comparison.before, comparison.after))
    )
    gain: Any = comparison.rsum
    rows.append(f"\nVersion {second} has RSUM {gain.rsum:+.1f} ({gain.low:+.1f} to {gain.high:+.1f}, 95 %).")
    significant = [part for part in comparison.parts if part.high < 0 or part.low > 0]
    rows += [
        f"  {part.attribute} {part.label}, {part.direction}: recall@10 {part.before:.1f} → {part.after:.1f}"
        for part in significant
    ]
    return "\n".join(rows)
