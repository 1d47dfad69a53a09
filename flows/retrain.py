"""The retrain flow: inbox, data, validate, preprocess, baselines, train, controls, evaluate, register, share, gate.

`diptych run` starts it; so does a Prefect worker, by the deployment in prefect.yaml. It decides when things run and
shows what they did. What depends on what, and what is already computed, is DVC's to say; what a stage does stands in
the package.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from typing import TYPE_CHECKING, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from diptych.data.pretrained import locate_towers
from diptych.project import dvc
from diptych.project.dataset import dataset_version, fetch_dataset
from diptych.project.environment import enter
from diptych.project.git import GitError, head
from diptych.project.leftovers import repair
from diptych.project.params import read_params
from diptych.project.presets import use_preset
from diptych.project.processes import holding
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.inbox.ledger import Taken

Promotion = Literal["auto", "manual", "never"]
PROGRESS_EVERY = 10.0
"""Seconds between two states of a progress bar in the log."""
_BAR = re.compile(r"\d+%\||\d+it \[")


@flow(name="retrain", description=__doc__, validate_parameters=True, persist_result=False)
def retrain(
    preset: str | None = None,
    force: bool = False,
    promotion: Promotion = "never",
    inbox: str | None = None,
) -> dict[str, Any]:
    """Runs the chain on the project in the current folder; what has not changed is reused.

    Args:
        preset: put presets/NAME.yaml in force as params.yaml first.
        force: run every stage, changed or not.
        promotion: of the new version, if it passes the gate: "auto" at once, "manual" by `diptych promote`; "never"
            does not ask the gate.
        inbox: where new pairs are dropped; null: retrain.inbox of params.yaml.

    Returns:
        What ran and why, and, where a model is there, its metrics, version and what became of it, as plain values.

    Raises:
        DiptychError: a stage failed, with the stage's own message; another run holds the workspace.
    """
    workspace = enter()
    get_run_logger().info("run %s", flow_run.id)
    # Relative paths in params.yaml are the project's, wherever this is called.
    with holding(workspace, "the retrain flow"), chdir(workspace.root):
        if preset:
            use_preset(workspace, preset)
        # Wrong parameters end it here.
        read_params(workspace)
        warn_of_unknown_commit(workspace)
        repair(workspace)
        taken = look_into_inbox(workspace, inbox)
        data, changed = bring_data(workspace)
        why, stages = run_stages(workspace, taken, changed, force)
        told = [one.describe() for one in taken]
        happened: dict[str, Any] = {"data": data, "inbox": told, "why": why, "stages": stages}
        if "not needed" not in stages.values():
            if "ran" in stages.values():
                publish(workspace)
            happened |= register_model(workspace)
            share(workspace)
            happened["decision"] = decide(workspace, happened["version"]["version"], promotion)
        tell_history(workspace)
        summarize(happened)
        return happened


def warn_of_unknown_commit(workspace: Workspace) -> None:
    """Tells, before anything is trained, that and why nobody will know which commit the model is of."""
    try:
        head(workspace.root)
    except GitError as error:
        why = "git_sha is unknown, so that a model of this run cannot be made again: %s"
        get_run_logger().warning(why, error)


def run_stages(
    workspace: Workspace, taken: Sequence[Taken], changed: dict[str, Any], force: bool
) -> tuple[list[str], dict[str, str]]:
    """The stages that have to run, if there is a reason; returns why, or why not, and what became of each."""
    from diptych.registry.register import check_registry

    params = read_params(workspace)
    if not changed and not force:
        get_run_logger().info("nothing has changed: no stage has to run")
        return ["Nothing has changed."], dict.fromkeys(dvc.STAGES, "reused")
    if force or {"preprocess", "baselines", "train"}.intersection(changed):
        locate_towers(params.model)
    if away := check_registry(workspace, params):
        get_run_logger().warning(away)
    first, *others = dvc.STAGES
    stages = {first: reproduce(workspace, first, force)}
    reasons, why_not = (["It was asked for."], "") if force else look_for_reasons(workspace, taken, changed)
    if not reasons:
        return [why_not], {**stages, **dict.fromkeys(others, "not needed")}
    return reasons, stages | {name: reproduce(workspace, name, force) for name in others}


@task(name="inbox", task_run_name="inbox", cache_policy=NO_CACHE, persist_result=False)
def look_into_inbox(workspace: Workspace, inbox: str | None) -> list[Taken]:
    """New pairs that were dropped become part of the dataset version, if they pass validation."""
    params = read_params(workspace)
    if not (inbox or params.retrain.inbox or workspace.journal.exists()):
        return []
    from diptych.inbox.taking import take_drops

    say = get_run_logger().info
    taken = take_drops(workspace, params, inbox, _throttled(say))
    for one in taken:
        say(one.describe())
    return taken


@task(name="reasons", task_run_name="reasons", cache_policy=NO_CACHE, persist_result=False)
def look_for_reasons(workspace: Workspace, taken: Sequence[Taken], changed: dict[str, Any]) -> tuple[list[str], str]:
    """Why this run trains, or why not; how far new pairs are from those of the champion."""
    from diptych.inbox.need import need_to_train
    from diptych.orchestration.pages import show_drift

    need = need_to_train(workspace, read_params(workspace), taken, changed)
    if need.drift is not None:
        show_drift(need.drift)
    for sentence in need.reasons or [need.why_not]:
        get_run_logger().info(sentence)
    return need.reasons, need.why_not


@task(name="data", task_run_name="data", cache_policy=NO_CACHE, persist_result=False)
def bring_data(workspace: Workspace) -> tuple[str, dict[str, Any]]:
    """The dataset version that data.dvc records is in data/; returns how it came there, and what has changed since the
    last results.
    """
    # A call of DVC takes a second: where all is well, one tells both. So does importing what registers, which every run
    # needs in the end; DVC is another process, so both are done at once.
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(dvc.status, workspace)
        import diptych.registry.register  # noqa: F401

        changed, how = asked.result(), "present"
    if not workspace.data.exists() or "data.dvc" in changed or dataset_version(workspace) is None:
        how = fetch_dataset(workspace)
        changed = dvc.status(workspace)
    get_run_logger().info("data/ is %s", how)
    return how, changed


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(workspace: Workspace, name: str, force: bool) -> str:
    """One stage by `dvc repro --single-item`; returns whether it "ran" or was "reused"."""
    say = _throttled(get_run_logger().info)
    return "ran" if dvc.reproduce(workspace, name, force=force, on_line=say) else "reused"


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(workspace: Workspace) -> None:
    """What the stages found, as artifacts of the run."""
    from diptych.orchestration.pages import show_results

    show_results(workspace)


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False)
def register_model(workspace: Workspace) -> dict[str, Any]:
    """The trained model as a version of the registered model, with the alias challenger."""
    from diptych.registry.address import tracking_uri
    from diptych.registry.register import register

    params = read_params(workspace)
    version = register(workspace, params, {"prefect_flow_run_id": str(flow_run.id)})
    get_run_logger().info(version.describe())
    metrics = json.loads((workspace.reports / "metrics.json").read_text(encoding="utf-8"))
    return {"metrics": metrics, "version": version.to_json(), "tracking_uri": tracking_uri(workspace, params)}


@task(name="share", task_run_name="share", cache_policy=NO_CACHE, persist_result=False)
def share(workspace: Workspace) -> None:
    """Data and results go to the DVC remote, the commits of runs to the git remote, where there are such."""
    from diptych.project.recording import publish_run

    for problem in publish_run(workspace, read_params(workspace), get_run_logger().info):
        get_run_logger().warning(problem)


@task(name="gate", task_run_name="gate", cache_policy=NO_CACHE, persist_result=False)
def decide(workspace: Workspace, number: str, promotion: Promotion) -> dict[str, Any]:
    """The gate's word on the version, and its promotion, if that is wanted; the champion afterwards."""
    from diptych.orchestration.pages import show_decision
    from diptych.registry.lifecycle import consider, needs_decision
    from diptych.registry.promotion import mend
    from diptych.registry.registered_model import RegisteredModel

    params = read_params(workspace)
    model = RegisteredModel.of(workspace, params)
    mend(model)
    outcome, why = "not asked", ""
    version = model.find(number) if promotion != "never" else None
    if version and needs_decision(model, version, dataset_version(workspace) or "", promotion):
        considered = consider(model, version, workspace, params, promotion=promotion)
        get_run_logger().info(considered.describe())
        show_decision(considered)
        outcome, why = considered.outcome, considered.why
    champion = model.champion()
    return {"outcome": outcome, "why": why, "champion": champion.version if champion else None}


@task(name="history", task_run_name="history", cache_policy=NO_CACHE, persist_result=False)
def tell_history(workspace: Workspace) -> None:
    """Drops that brought nothing, in the model's history: of runs that train nothing too."""
    from diptych.inbox import ledger
    from diptych.registry.registered_model import RegisteredModel

    if ledger.has_untold(workspace):
        model = RegisteredModel.of(workspace, read_params(workspace))
        if model.exists():
            ledger.tell_history(workspace, model)


@task(name="summary", task_run_name="summary", cache_policy=NO_CACHE, persist_result=False)
def summarize(happened: dict[str, Any]) -> None:
    """What this run did and why, with the ways to what it made."""
    from diptych.orchestration.pages import mlflow_links, run_lines, show_summary

    links = mlflow_links(happened["tracking_uri"], happened["version"]) if "version" in happened else {}
    show_summary(run_lines(happened), links)


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
