"""`diptych reproduce`, which rebuilds a registered version and compares it."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from diptych.cli.console import print_result
from diptych.errors import some
from diptych.project.environment import enter

if TYPE_CHECKING:
    from diptych.registry.reproduction import Reproduction
    from diptych.registry.verdict import Finding


@click.command()
@click.argument("version")
@click.option("--from-cache", is_flag=True, help="Train nothing; compare what git, DVC and MLflow have stored.")
@click.option("--keep", is_flag=True, help="Leave the folder in which it was rebuilt.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def reproduce(version: str, from_cache: bool, keep: bool, as_json: bool) -> None:
    """Rebuild VERSION from its tags alone, and compare it with what was registered.

    VERSION is a number or an alias (champion, challenger, previous-champion), or NAME/ and one of these for another
    registered model. Its commit is checked out in a folder of its own, its data are fetched, and all its stages run
    with that commit's code and parameters; no earlier result is used. The exit code is 0 if everything is identical, to
    the bit, and 1 if not.
    """
    workspace = enter()
    from diptych.project.params import read_params
    from diptych.registry.reproduction import reproduce as reproduce_version

    params, on_line = read_params(workspace), partial(click.echo, err=True)
    reproduction = reproduce_version(workspace, params, version, from_cache=from_cache, keep=keep, on_line=on_line)
    print_result(reproduction.to_json(), _render(reproduction), as_json)
    if not reproduction.identical:
        sys.exit(1)


def _render(reproduction: Reproduction) -> str:
    """Return a line for each finding, remarks, and the verdict."""
    how = "as it is kept" if reproduction.from_cache else "made again"
    lines = [f"{reproduction.name} version {reproduction.version}, {how}, of commit {reproduction.git_sha[:10]}", ""]
    for finding in reproduction.findings:
        lines += _lines(finding)
    if reproduction.packages:
        packages = some(reproduction.packages, 3, "; ")
        lines += ["", f"Installed are other packages than {reproduction.git_sha[:10]} locks: {packages}."]
        if not reproduction.identical and not reproduction.from_cache:
            lines += ["Other packages may compute other bits; `make setup` in that commit brings its own."]
    if reproduction.threads:
        recorded, here = reproduction.threads
        lines += ["", f"It was computed by {recorded} CPU threads, here by {here}: the last bits may differ."]
    if reproduction.folder:
        lines += ["", f"Kept in {reproduction.folder}; `git worktree remove --force {reproduction.folder}` removes it."]
    return "\n".join([*lines, "", _verdict(reproduction)])


def _lines(finding: Finding) -> list[str]:
    state = {True: "identical", False: "DIFFERENT", None: "not compared"}[finding.identical]
    shown = finding.recorded[:16]
    if finding.identical is False and finding.found:
        shown = f"{shown}, now {finding.found[:16]}"
    lines = [f"{finding.what:<10}{state:<14}{shown}".rstrip()]
    return [*lines, f"{'':10}→ {finding.detail}"] if finding.detail else lines


def _verdict(reproduction: Reproduction) -> str:
    if reproduction.identical and reproduction.from_cache:
        return "Identical: what is kept is what was registered."
    if reproduction.identical:
        return "Identical: it was computed anew, and is the same to the bit."
    different = [finding.what for finding in reproduction.findings if finding.identical is False]
    return f"Not identical: {', '.join(different)}."
