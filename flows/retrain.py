"""The retrain flow: data, validate, preprocess, baselines, train, controls, evaluate, register, gate.

`diptych run` starts it; so does a Prefect worker, by the deployment in prefect.yaml. It decides when things run and
shows what they did. What depends on what, and what is already computed, is DVC's to say; what a stage does stands in
the package.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from diptych import dvc
from diptych.config import load_params
from diptych.data.pretrained import locate_towers
from diptych.environment import enter
from diptych.presets import use_preset
from diptych.processes import holding
from diptych.workspace import Workspace

Promotion = Literal["auto", "manual", "never"]
PROGRESS_EVERY = 10.0
"""Seconds between two states of a progress bar in the log."""
_BAR = re.compile(r"\d+%\||\d+it \[")


@flow(name="retrain", description=__doc__, validate_parameters=True, persist_result=False)
def retrain(
    preset: str | None = None,
    force: bool = False,
    promotion: Promotion = "never",
) -> dict[str, Any]:
    """Runs the chain on the project in the current folder; what has not changed is reused.

    Args:
        preset: put presets/NAME.yaml in force as params.yaml first.
        force: run every stage, changed or not.
        promotion: of the new version, if it passes the gate: "auto" at once, "manual" by `diptych promote`; "never"
            does not ask the gate.

    Returns:
        What ran and why, the metrics, the model version and what became of it, as plain values.

    Raises:
        DiptychError: a stage failed, with the stage's own message; another run holds the workspace.
    """
    workspace = enter()
    with holding(workspace, "the retrain flow"):
        if preset:
            use_preset(workspace, preset)
        params = load_params(workspace.params)
        dvc.mend(workspace)
        data = bring_data(workspace)
        changed = dvc.STAGES if force or dvc.status(workspace) else ()
        if {"preprocess", "baselines", "train"}.intersection(changed):
            locate_towers(params.model)
        stages = {name: reproduce(workspace, name, force) if name in changed else "reused" for name in dvc.STAGES}
        if not changed:
            get_run_logger().info("nothing has changed: no stage has to run")
        publish(workspace)
        registered = register_model(workspace)
        decision = decide(workspace, registered["version"]["version"], promotion)
        return {"data": data, "stages": stages, **registered, "decision": decision}


@task(name="data", task_run_name="data", cache_policy=NO_CACHE, persist_result=False)
def bring_data(workspace: Workspace) -> str:
    """The dataset version that data.dvc records is in data/; returns how it came there."""
    how = dvc.bring_dataset(workspace)
    get_run_logger().info("data/ is %s", how)
    return how


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(workspace: Workspace, name: str, force: bool) -> str:
    """One stage by `dvc repro --single-item`; returns whether it "ran" or was "reused"."""
    say = _throttled(get_run_logger().info)
    return "ran" if dvc.reproduce(workspace, name, force=force, on_line=say) else "reused"


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(workspace: Workspace) -> None:
    """What the stages found, as artifacts of the run."""
    from diptych.pages import show_results

    show_results(workspace)


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False)
def register_model(workspace: Workspace) -> dict[str, Any]:
    """The trained model as a version of the registered model, with the alias challenger."""
    from diptych.registry.register import register
    from diptych.registry.tracking import tracking_uri

    params = load_params(workspace.params)
    version = register(workspace, params)
    get_run_logger().info(version.describe())
    metrics = json.loads((workspace.reports / "metrics.json").read_text(encoding="utf-8"))
    return {"metrics": metrics, "version": version.to_json(), "tracking_uri": tracking_uri(workspace, params)}


@task(name="gate", task_run_name="gate", cache_policy=NO_CACHE, persist_result=False)
def decide(workspace: Workspace, number: str, promotion: Promotion) -> dict[str, Any]:
    """The gate's word on the version, and its promotion, if that is wanted; the champion afterwards."""
    from diptych.pages import show_decision
    from diptych.registry.lifecycle import consider, needs_decision
    from diptych.registry.promotion import mend
    from diptych.registry.registered_model import RegisteredModel

    params = load_params(workspace.params)
    model = RegisteredModel.of(workspace, params)
    mend(model)
    version = model.find(number)
    outcome, why = "not asked", ""
    if needs_decision(model, version, dvc.dataset_version(workspace) or "", promotion):
        considered = consider(model, version, workspace, params, promotion=promotion)
        get_run_logger().info(considered.describe())
        show_decision(considered)
        outcome, why = considered.outcome, considered.why
    champion = model.champion()
    return {"outcome": outcome, "why": why, "champion": champion.version if champion else None}


def _throttled(say: Callable[[str], None]) -> Callable[[str], None]:
    """Passes lines on, but of a progress bar's states only one now and then."""
    due = 0.0

    def listen(line: str) -> None:
        nonlocal due
        if _BAR.search(line):
            if time.monotonic() < due:
                return
            due = time.monotonic() + PROGRESS_EVERY
        say(line)

    return listen
