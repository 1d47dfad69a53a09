"""The summary that a run prints at its end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from diptych.project.addresses import without_secret
from diptych.project.workspace import Workspace


def render(summary: dict[str, Any], workspace: Workspace) -> str:
    """Return lines for people: the stages that ran, the metrics, the model version, and how to see more."""
    ran = [name for name, how in summary["stages"].items() if how == "ran"]
    reused = [name for name, how in summary["stages"].items() if how == "reused"]
    lines = [
        "",
        f"data       {summary['data']}",
        *(f"inbox      {line}" for line in summary["inbox"]),
        *(f"why        {line}" for line in summary["why"]),
        f"ran        {', '.join(ran) or 'nothing'}",
        f"reused     {', '.join(reused) or 'nothing'}",
        *(
            _model(summary, workspace)
            if "version" in summary
            else ["next       `diptych run --force` trains all the same"]
        ),
    ]
    return "\n".join(lines)


def _model(summary: dict[str, Any], workspace: Workspace) -> list[str]:
    version = summary["version"]
    state = "new" if version["created"] else "known already"
    return [
        *_metrics(summary["metrics"]),
        f"version    {version['name']} {version['version']} (challenger), {state}",
        f"champion   {_champion(summary['decision'])}",
        f"report     {_open_command()} {_short(workspace.reports / 'report.html')}",
        f"MLflow     {_mlflow_command(summary['tracking_uri'])}",
    ]


def _champion(decision: dict[str, Any]) -> str:
    """Return the champion's version, the outcome of the new version, and the next step."""
    number = decision["champion"]
    champion = f"version {number}" if number else "none yet"
    outcomes = {
        "promoted": f"{champion}, promoted: {decision['why']}",
        "rejected": f"{champion}; the new one does not become it: {decision['why']}",
        "accepted": f"{champion}; the new one may become it: `diptych promote`",
    }
    if decision["outcome"] in outcomes:
        return outcomes[decision["outcome"]]
    return champion if number else f"{champion}: `diptych promote`"


def _metrics(metrics: dict[str, Any]) -> list[str]:
    rows = []
    for name, label in (("towers", "towers"), ("qb_norm", "qb_norm"), ("reranked", "re-ranked")):
        if name in metrics:
            recalls = (f"{direction} {metrics[name][direction]['recall@1']:.1f}" for direction in ("i2t", "t2i"))
            rows.append(f"{label:<11}RSUM {metrics[name]['rsum']:.1f}, recall@1 {', '.join(recalls)}")
    return rows


def _open_command() -> str:
    return "open" if sys.platform == "darwin" else "xdg-open"


def _mlflow_command(uri: str) -> str:
    """Return the command that shows the runs, or the page of a server."""
    if uri.startswith(("http://", "https://")):
        return without_secret(uri)
    program = Path(sys.executable).with_name("mlflow")
    return f"{shlex.quote(_short(program))} ui --backend-store-uri {shlex.quote(uri)}"


def _short(path: Path) -> str:
    """Return the path relative to the current folder, if it lies in it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
