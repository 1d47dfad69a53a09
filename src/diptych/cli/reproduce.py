"""`diptych reproduce`: a registered version once more."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from diptych.project.environment import enter

if TYPE_CHECKING:
    from diptych.registry.reproduction import Reproduction
    from diptych.registry.verdict import Finding


@click.command()
@click.argument("version")
@click.option("--from-cache", is_flag=True, help="Train nothing; compare what git, DVC and MLflow have kept.")
@click.option("--keep", is_flag=True, help="Leave the folder in which it was made.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def reproduce(version: str, from_cache: bool, keep: bool, as_json: bool) -> None:
    """Make VERSION again from its tags alone, and compare it with what was registered.

    VERSION is a number or an alias (champion, challenger, previous-champion), or NAME/ and one of these for another
    registered model. Its commit is checked out in a folder of its own, its data are brought, and all its stages run
    with that commit's code and parameters; nothing that was computed before is used. The exit code is 0 if everything
    is identical, to the bit, and 1 if not.
    """
    workspace = enter()
    from diptych.project.params import read_params
    from diptych.registry.reproduction import reproduce as make_again

    params = read_params(workspace)
    made = make_again(
        workspace,
        params,
        version,
        from_cache=from_cache,
        keep=keep,
        on_line=lambda line: click.echo(line, err=True),
    )
    click.echo(json.dumps(made.to_json(), indent=2) if as_json else render(made))
    if not made.identical:
        sys.exit(1)


def render(made: Reproduction) -> str:
    """A line a finding, then what it comes to."""
    how = "as it is kept" if made.from_cache else "made again"
    lines = [f"{made.name} version {made.version}, {how}, of commit {made.git_sha[:10]}", ""]
    for finding in made.findings:
        lines += _lines(finding)
    if made.packages:
        lines += ["", f"Installed are other packages than {made.git_sha[:10]} locks: {_first(made.packages)}."]
        if not made.identical and not made.from_cache:
            lines += ["Other packages may compute other bits; `make setup` in that commit brings its own."]
    if made.threads:
        recorded, here = made.threads
        lines += ["", f"It was computed by {recorded} CPU threads, here by {here}: the last bits may differ."]
    if made.folder:
        lines += ["", f"Kept in {made.folder}; `git worktree remove --force {made.folder}` removes it."]
    return "\n".join([*lines, "", _verdict(made)])


def _lines(finding: Finding) -> list[str]:
    state = {True: "identical", False: "DIFFERENT", None: "not compared"}[finding.identical]
    shown = finding.recorded[:16]
    if finding.identical is False and finding.found:
        shown = f"{shown}, now {finding.found[:16]}"
    lines = [f"{finding.what:<10}{state:<14}{shown}".rstrip()]
    return [*lines, f"{'':10}→ {finding.detail}"] if finding.detail else lines


def _verdict(made: Reproduction) -> str:
    if made.identical and made.from_cache:
        return "Identical: what is kept is what was registered."
    if made.identical:
        return "Identical: it was computed anew, and is the same to the bit."
    different = [finding.what for finding in made.findings if finding.identical is False]
    return f"Not identical: {', '.join(different)}."


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return "; ".join(names[:count]) + more
