"""`diptych run`, `stage` and `register`: the whole chain, one stage of it, and the registration of its model."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from contextlib import chdir, nullcontext
from typing import Any

import click

from diptych.errors import DiptychError
from diptych.orchestration import server as prefect_server
from diptych.progress import is_first_process
from diptych.project.dvc import STAGES
from diptych.project.environment import collect_as_usual, enter
from diptych.project.git import how_to_restore
from diptych.project.params import read_params, use_preset
from diptych.project.processes import die_with_dvc, holding
from diptych.project.workspace import Workspace
from diptych.training.launching import forget_foreign_rank, launch


@click.command()
@click.option("--preset", metavar="NAME", help="Put presets/NAME.yaml in force as params.yaml first.")
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
        read_params(workspace)
        # Before the flow imports Prefect, which then reads its settings.
        prefect_server.load(workspace.root)
        retrain = load_flow(workspace)
        prefect_server.ready(workspace.root)
        with prefect_server.explained("What the run had finished is kept: run again."):
            summary = retrain(force=force, promotion=promotion, inbox=inbox)
    # It needs SQLAlchemy, which a stage does not.
    from diptych.cli.summary import render

    click.echo(json.dumps(summary, indent=2) if as_json else render(summary, workspace))


@click.command()
@click.argument("name", type=click.Choice(STAGES))
def stage(name: str) -> None:
    """Run one stage by itself; `dvc repro` calls this."""
    workspace = enter()
    die_with_dvc()
    forget_foreign_rank()
    params = read_params(workspace)
    if name == "train" and params.train.launch:
        launch(params.train.launch)
    hold = holding(workspace, f"diptych stage {name}") if is_first_process() else nullcontext()
    # DVC runs it there too: relative paths in params.yaml start at the project's folder.
    with hold, chdir(workspace.root):
        module = importlib.import_module(f"diptych.stages.{name}")
        collect_as_usual()
        module.run(workspace, params)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the version as JSON.")
def register(as_json: bool) -> None:
    """Make the trained model a version of the registered model, with the alias challenger."""
    workspace = enter()
    from diptych.registry.register import register as register_model

    with holding(workspace, "diptych register"):
        version = register_model(workspace, read_params(workspace))
    click.echo(json.dumps(version.to_json(), indent=2) if as_json else version.describe())


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
