"""`diptych run`, `stage` and `register`: the whole chain, one stage of it, and the registration of its model."""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import sys
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any

import click

from diptych.cli.console import print_result
from diptych.config import Params
from diptych.errors import DiptychError
from diptych.inbox.idle import find_idle_summary
from diptych.orchestration import server as prefect_server
from diptych.progress import is_first_process
from diptych.project.dvc import STAGES
from diptych.project.environment import collect_as_usual, enter
from diptych.project.git import how_to_restore
from diptych.project.params import read_params, use_preset
from diptych.project.prefect_settings import server_setting
from diptych.project.processes import die_with_dvc, holding
from diptych.project.workspace import Workspace
from diptych.retrieval.stages import shown
from diptych.training.launching import RAY, forget_foreign_rank, launch


@click.command()
@click.option(
    "--preset", metavar="NAME", help="Make presets/NAME.yaml the params.yaml of this run and of all later ones."
)
@click.option("--force", is_flag=True, help="Run every stage, changed or not.")
@click.option(
    "--promotion",
    type=click.Choice(["auto", "manual", "never"]),
    default="never",
    show_default=True,
    help="Promotion of a new version: by the gate (auto), by `diptych promote` after the gate has been asked (manual), "
    "or without asking the gate (never).",
)
@click.option("--inbox", metavar="PLACE", help="Ingest new pairs from this folder or s3://bucket/prefix first.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def run(preset: str | None, force: bool, promotion: str, inbox: str | None, as_json: bool) -> None:
    """Run the whole chain: inbox, data, validate, preprocess, baselines, train, controls, evaluate, register, gate."""
    workspace = enter()
    with holding(workspace, "diptych run"):
        if preset:
            use_preset(workspace, preset)
        params = read_params(workspace)
        # A server that is named records every run.
        asks_first = not force and server_setting(workspace.root) is None
        summary = find_idle_summary(workspace, params, promotion, inbox) if asks_first else None
        if summary is None:
            summary = _run_flow(workspace, force=force, promotion=promotion, inbox=inbox)
    print_result(summary, summarize(summary, workspace, params), as_json)


@click.command()
@click.argument("name", type=click.Choice(STAGES))
def stage(name: str) -> None:
    """Run one stage by itself; `dvc repro` calls this."""
    workspace = enter()
    die_with_dvc()
    forget_foreign_rank()
    params = read_params(workspace)
    module = f"diptych.stages.{name}"
    if name == "train" and params.train.launch == [RAY]:
        module = "diptych.stages.train_in_cluster"
    elif name == "train" and params.train.launch:
        launch(params.train.launch)
    hold = holding(workspace, f"diptych stage {name}") if is_first_process() else nullcontext()
    # DVC runs it there too: relative paths in params.yaml start at the project's folder.
    with hold, chdir(workspace.root):
        imported = importlib.import_module(module)
        collect_as_usual()
        imported.run(workspace, params)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the version as JSON.")
def register(as_json: bool) -> None:
    """Make the trained model a version of the registered model, with the alias challenger."""
    workspace = enter()
    from diptych.registry.register import register as register_model

    with holding(workspace, "diptych register"):
        version = register_model(workspace, read_params(workspace))
    print_result(version.to_json(), version.describe(), as_json)


def _run_flow(workspace: Workspace, **arguments: Any) -> dict[str, Any]:
    """Run the retrain flow, with a server of its own where none is named, and return its summary."""
    # Before the flow imports Prefect, which then reads its settings.
    prefect_server.load(workspace.root)
    retrain = load_flow(workspace)
    prefect_server.ready(workspace.root)
    with prefect_server.explained("What the run had finished is kept: run again."):
        return dict(retrain(**arguments))


def load_flow(workspace: Workspace) -> Any:
    """Return the flow of the project's flows/retrain.py, which people edit, and not that of an installed package.

    Raises:
        DiptychError: the project has no such file.
    """
    path = workspace.root / "flows" / "retrain.py"
    if not path.is_file():
        raise DiptychError(f"{path} is missing; it is part of the project. {how_to_restore(path)}")
    spec = importlib.util.spec_from_file_location("flows.retrain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.retrain


def summarize(summary: dict[str, Any], workspace: Workspace, params: Params) -> str:
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
    ]
    if "version" in summary:
        lines += _model(summary, workspace, params)
    else:
        lines.append("next       `diptych run --force` trains all the same")
    return "\n".join(lines)


def _model(summary: dict[str, Any], workspace: Workspace, params: Params) -> list[str]:
    version = summary["version"]
    state = "new" if version["created"] else "known already"
    viewer = "open" if sys.platform == "darwin" else "xdg-open"
    problem = version.get("tags", {}).get("not_reproducible")
    return [
        *_metrics(shown(summary["metrics"], params)),
        f"version    {version['name']} {version['version']} (challenger), {state}",
        *([f"warning    `diptych reproduce` cannot make it again: {problem}"] if problem else []),
        f"champion   {_champion(summary['decision'])}",
        f"report     {viewer} {_short(workspace.reports / 'report.html')}",
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


def _mlflow_command(uri: str) -> str:
    """Return the command that shows the runs, or the page of a server."""
    # It needs SQLAlchemy, which a stage does not.
    from diptych.project.addresses import without_secret

    if uri.startswith(("http://", "https://")):
        return without_secret(uri)
    program = Path(sys.executable).with_name("mlflow")
    return f"{shlex.quote(_short(program))} ui --backend-store-uri {shlex.quote(uri)}"


def _short(path: Path) -> str:
    """Return the path relative to the current folder, if it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
