"""`diptych doctor`: a check of everything that a run depends on, and how to repair what is wrong."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import chdir

import click

from diptych.cli import checks
from diptych.cli.checks import Finding, Findings
from diptych.cli.console import print_result
from diptych.data.cluster import is_in_use
from diptych.errors import DiptychError
from diptych.project.addresses import without_secrets
from diptych.project.environment import enter
from diptych.project.git import how_to_restore
from diptych.project.params import read_params
from diptych.project.workspace import Workspace

log = logging.getLogger(__name__)

Checks = dict[tuple[str, ...], Callable[[], Findings]]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Check everything that a run depends on, and say how to repair what is wrong."""
    findings = examine(enter())
    print_result([finding.to_json() for finding in findings], render(findings), as_json)
    if any(finding.state == "error" for finding in findings):
        sys.exit(1)


def examine(workspace: Workspace) -> list[Finding]:
    """Make every check, in order; where one cannot be made, its finding is an error that says why."""
    findings, params = [], None
    with chdir(workspace.root):
        try:
            params = read_params(workspace)
            findings.append(Finding("params", "ok", "params.yaml is as it should be"))
        except DiptychError as error:
            advice = f"Correct it. {how_to_restore(workspace.params)} What depends on it was not checked."
            findings.append(Finding("params", "error", str(error), advice))
        selected: Checks = {
            ("workspace",): lambda: checks.check_workspace(workspace),
            ("git",): lambda: checks.check_git(workspace),
            ("dataset",): lambda: checks.check_dataset(workspace),
            ("dvc remote",): lambda: checks.check_remote(workspace),
        }
        if params:
            selected[("towers",)] = lambda: checks.check_towers(params)
            selected["mlflow", "champion"] = lambda: checks.check_mlflow(workspace, params)
        selected[("proxy",)] = checks.check_proxy
        selected["prefect", "schedule"] = lambda: checks.check_prefect(workspace)
        if params:
            selected[("device",)] = lambda: checks.check_device(params)
        if is_in_use():
            selected[("cluster",)] = lambda: checks.check_cluster(workspace)
        selected[("disk",)] = lambda: checks.check_disk(workspace)
        selected[("packages",)] = lambda: checks.check_packages(workspace)
        for names, check in selected.items():
            findings += _make(names, check)
    return findings


def _make(names: tuple[str, ...], check: Callable[[], Findings]) -> list[Finding]:
    """Make a check that yields the findings `names`; after an error the rest of them is not checked."""
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(finding)
        return findings
    except DiptychError as error:
        problem = str(error), ""
    except Exception as error:
        # A failed check must not hide the findings of the others.
        log.debug("the check of %s failed", names[0], exc_info=True)
        message = " ".join(f"{type(error).__name__}: {error}".split())
        problem = without_secrets(message)[:500], "`diptych --debug doctor` shows the traceback."
    name, *rest = names[len(findings) :]
    findings.append(Finding(name, "error", *problem))
    return findings + [Finding(other, "warning", f"not checked: the check of {name} failed") for other in rest]


def render(findings: list[Finding]) -> str:
    """Return a line or more for each finding, and a last line for the whole."""
    lines = []
    for finding in findings:
        first, *rest = finding.result.splitlines()
        lines.append(f"{finding.state:8}{finding.name:11}{first}")
        lines += [f"{'':19}{line}" for line in rest]
        lines += [f"{'':19}→ {line}" for line in finding.advice.splitlines()]
    return "\n".join([*lines, "", _conclusion(findings)])


def _conclusion(findings: list[Finding]) -> str:
    errors = sum(finding.state == "error" for finding in findings)
    if errors:
        return f"{errors} of {len(findings)} checks failed."
    if any(finding.name == "workspace" and finding.state != "ok" for finding in findings):
        return "A run has all it needs, once the present one has ended."
    return "A run has all it needs: `diptych run`."
