"""`diptych promote`, `rollback`, `history`, `compare` and `champion`: which model is in use, and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from diptych.cli.console import print_result
from diptych.errors import DiptychError
from diptych.project.environment import enter

if TYPE_CHECKING:
    from diptych.config import Params
    from diptych.project.workspace import Workspace
    from diptych.registry.history import Event
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
    workspace, params, model = _enter(name)
    from diptych.project.processes import holding
    from diptych.registry.history import history as history_of
    from diptych.registry.history import last_rollback_from
    from diptych.registry.lifecycle import gate_and_promote
    from diptych.registry.registered_model import RegisteredModel

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
    print_result(result.to_json(), result.describe(), as_json)
    if result.outcome == "rejected":
        sys.exit(1)


@click.command()
@_NAME
@click.option("--to", "target", metavar="VERSION", help="An earlier champion; default: the last one.")
@click.option("--reason", required=True, help="Reason; stored in the history.")
@click.option(
    "--without-indexes", is_flag=True, help="Leave the indexes as they are, where a collection is out of reach."
)
@_JSON
def rollback(name: str | None, target: str | None, reason: str, without_indexes: bool, as_json: bool) -> None:
    """Make the champion before the present one the champion again."""
    if not reason.strip():
        raise click.UsageError("--reason must not be empty: the history stores it.")
    workspace, params, model = _enter(name)
    from diptych.registry.lifecycle import roll_back_with_indexes
    from diptych.registry.promotion import roll_back

    if without_indexes:
        change = roll_back(model, target, why=reason)
    else:
        change = roll_back_with_indexes(model, workspace, params, target, why=reason)
    print_result({**change.version.to_json(), "before": change.before}, f"{change.describe()}.", as_json)


@click.command()
@_NAME
@_JSON
def history(name: str | None, as_json: bool) -> None:
    """Show the decisions, sorted by time: who, when, from which version to which, why, and on which figures."""
    _, _, model = _enter(name)
    from diptych.registry.history import history as events_of

    # The event of a refused drop is recorded later, and bears the time of the refusal.
    events = sorted(events_of(model), key=lambda event: event.when)
    text = "\n".join(map(_describe_event, events)) or f"{model.name}: nothing was decided yet; `diptych promote` does."
    print_result([event.to_json() for event in events], text, as_json)


@click.command()
@click.argument("first")
@click.argument("second")
@_NAME
@_JSON
def compare(first: str, second: str, name: str | None, as_json: bool) -> None:
    """Measure two versions (numbers or aliases) on the present test split, and show how they differ, with intervals."""
    workspace, params, model = _enter(name)
    from diptych.project.processes import holding
    from diptych.registry.lifecycle import compare_versions

    versions = model.find(first), model.find(second)
    if versions[0].version == versions[1].version:
        raise DiptychError(f"{first} and {second} are both {versions[0].title}: there is nothing to compare.")
    with holding(workspace, "diptych compare"):
        comparison = compare_versions(model, *versions, workspace, params)
    content = {"first": versions[0].to_json(), "second": versions[1].to_json(), **comparison.to_json()}
    print_result(content, _describe_comparison(versions[0].version, versions[1].version, comparison), as_json)


@click.command()
@_NAME
@_JSON
def champion(name: str | None, as_json: bool) -> None:
    """Show the version in use; exit code 1 where there is none."""
    _, _, model = _enter(name)
    version = model.champion()
    if version is None:
        raise DiptychError(f"{model.name} has no champion yet: `diptych promote` makes one.")
    rsum = version.metrics.get("reranked/rsum")
    measured = f", RSUM {rsum:.1f} when it was made" if rsum is not None else ""
    text = f"{version.title}{measured}; load it as models:/{version.name}@champion"
    print_result(version.to_json(), text, as_json)


def _enter(name: str | None) -> tuple[Workspace, Params, RegisteredModel]:
    """Return the project, its settings, and its registered model or the one with this name."""
    workspace = enter()
    from diptych.project.params import read_params
    from diptych.registry.registered_model import RegisteredModel

    params = read_params(workspace)
    return workspace, params, RegisteredModel.of(workspace, params, name)


def _describe_event(event: Event) -> str:
    versions = f"{event.origin or '-'} → {event.target or '-'}"
    figures = ", ".join(f"{name} {value:.1f}" for name, value in event.figures.items())
    action = f"{event.action} (forced)" if event.forced else event.action
    line = f"{event.when}  {action:<16} {versions:<9} {event.who}: {event.why}"
    return f"{line} [{figures}]" if figures else line


def _describe_comparison(first: str, second: str, comparison: Comparison) -> str:
    before, after = comparison.before["metrics"], comparison.after["metrics"]
    rows = [f"{'':22}{'version ' + first:>14}{'version ' + second:>14}"]
    for direction in ("i2t", "t2i"):
        for name in ("recall@1", "recall@5", "recall@10"):
            rows.append(f"{f'{direction} {name}':<22}{before[direction][name]:>14.1f}{after[direction][name]:>14.1f}")
    rows.append(f"{'RSUM':<22}{before['rsum']:>14.1f}{after['rsum']:>14.1f}")
    rows.append(f"\nVersion {second} has RSUM {comparison.rsum.describe()} at 95 % confidence.")
    rows += [f"  {part.describe()}" for part in comparison.parts if part.high < 0 or part.low > 0]
    return "\n".join(rows)
