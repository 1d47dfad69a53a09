"""The retrain flow: inbox, data, the stages of dvc.yaml, register, share, gate, index.

`diptych run` starts it; so does a Prefect worker, by the deployment in prefect.yaml. The flow decides when things run
and shows what they did. DVC knows what depends on what, and what is already computed. A stage's work is in the package.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from functools import partial
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from diptych.data.pretrained import locate_towers
from diptych.errors import DiptychError
from diptych.inbox import idle, ingesting, ledger
from diptych.orchestration import pages
from diptych.orchestration.chain_progress import ChainProgress
from diptych.project import dvc, leftovers, pixels
from diptych.project.dataset import fetch_dataset, provide_dataset
from diptych.project.environment import enter
from diptych.project.git import GitError, head
from diptych.project.params import read_params, use_preset
from diptych.project.processes import holding
from diptych.project.record import dataset_version
from diptych.project.recording import publish_run
from diptych.project.workspace import Workspace
from diptych.registry.address import tracking_uri

Promotion = Literal["auto", "manual", "never"]


@flow(name="retrain", description=__doc__, validate_parameters=True, persist_result=False)
def retrain(
    preset: str | None = None,
    force: bool = False,
    promotion: Promotion = "never",
    inbox: str | None = None,
) -> dict[str, Any]:
    """Run the chain on the project in the current folder; what has not changed is reused.

    Args:
        preset: put presets/NAME.yaml in force as params.yaml first.
        force: run every stage, changed or not.
        promotion: what to do with a new version that passes the gate: "auto" promotes it at once, "manual" leaves that
            to `diptych promote`; "never" does not ask the gate.
        inbox: the folder or bucket of new pairs; null: retrain.inbox of params.yaml.

    Returns:
        What ran and why; where there is a model, its metrics, its version and the decision on it. All plain values.

    Raises:
        DiptychError: a stage failed, with the stage's own message; another run holds the workspace.
    """
    workspace = enter()
    get_run_logger().info("run %s", flow_run.id)
    # Relative paths in params.yaml are the project's, wherever this is called.
    with holding(workspace, "the retrain flow"), chdir(workspace.root):
        if preset:
            use_preset(workspace, preset)
        # Invalid parameters end the run here.
        read_params(workspace)
        warn_of_unknown_commit(workspace)
        code = idle.forget(workspace)
        leftovers.repair(workspace)
        drops = ingest_drops(workspace, inbox)
        data, changed = fetch_data(workspace)
        why, stages = run_stages(workspace, drops, changed, force, promotion)
        inbox_lines = [drop.describe() for drop in drops]
        summary: dict[str, Any] = {"data": data, "inbox": inbox_lines, "why": why, "stages": stages}
        if "not needed" not in stages.values():
            if "ran" in stages.values():
                publish(workspace)
            summary |= register_model(workspace)
            share(workspace)
            summary["decision"] = decide(workspace, summary["version"]["version"], promotion)
        record_drops(workspace)
        publish_summary(summary)
        index(workspace)
        if "version" in summary:
            note_idle(workspace, code)
        return summary


def warn_of_unknown_commit(workspace: Workspace) -> None:
    """Warn before training, with the reason, where git cannot name the commit that the model is of."""
    try:
        head(workspace.root)
    except GitError as error:
        get_run_logger().warning("git_sha is unknown, so that a model of this run cannot be made again: %s", error)


def run_stages(
    workspace: Workspace,
    drops: Sequence[ledger.DropResult],
    changed: dict[str, Any],
    force: bool,
    promotion: Promotion,
) -> tuple[list[str], dict[str, str]]:
    """Run the stages that have to run, if there is a reason.

    Return why, or why not; and by stage "ran", "reused" or "not needed".
    """
    from diptych.registry.register import check_registry

    params = read_params(workspace)
    if not changed and not force:
        get_run_logger().info("nothing has changed: no stage has to run")
        return [idle.UNCHANGED], dict.fromkeys(dvc.STAGES, "reused")
    if force or {"preprocess", "baselines", "train"}.intersection(changed):
        locate_towers(params.model)
    if problem := check_registry(workspace, params):
        get_run_logger().warning(problem)
    changed_stages = dvc.STAGES if force else changed.keys()
    name = params.register_.model_name
    progress = ChainProgress(workspace.durations, name, dvc.STAGES, changed_stages, get_run_logger().info)
    first, *others = dvc.STAGES
    stages = {first: progress.run(first, partial(reproduce, workspace, first, force))}
    reasons, why_not = (["It was asked for."], "") if force else find_reasons(workspace, drops, changed)
    if not reasons:
        return [why_not], {**stages, **dict.fromkeys(others, "not needed")}
    if promotion != "never" and (params.gate.guard_sets or params.gate.judged_queries):
        check_guarded_queries(workspace)
    return reasons, stages | {name: progress.run(name, partial(reproduce, workspace, name, force)) for name in others}


@task(name="guarded queries", task_run_name="guarded queries", cache_policy=NO_CACHE, persist_result=False)
def check_guarded_queries(workspace: Workspace) -> None:
    """Find out before the training whether the gate can use its guard sets and judged queries."""
    from diptych.registry.guard_sets import open_guard_sets
    from diptych.registry.judged_queries import check_judged_queries

    params = read_params(workspace)
    open_guard_sets(workspace, params)
    check_judged_queries(workspace, params)


@task(name="inbox", task_run_name="inbox", cache_policy=NO_CACHE, persist_result=False)
def ingest_drops(workspace: Workspace, inbox: str | None) -> list[ledger.DropResult]:
    """Add new pairs from the inbox to the dataset version, if they pass validation."""
    params = read_params(workspace)
    if not (inbox or params.retrain.inbox or workspace.journal.exists()):
        return []
    log = get_run_logger().info
    drops = ingesting.ingest_drops(workspace, params, inbox, pages.throttled(log))
    for drop in drops:
        log(drop.describe())
    return drops


@task(name="reasons", task_run_name="reasons", cache_policy=NO_CACHE, persist_result=False)
def find_reasons(
    workspace: Workspace, drops: Sequence[ledger.DropResult], changed: dict[str, Any]
) -> tuple[list[str], str]:
    """Return why this run trains, or why not; publish how far new pairs are from those of the champion."""
    from diptych.inbox.need import need_to_train

    need = need_to_train(workspace, read_params(workspace), drops, changed)
    if need.drift is not None:
        pages.show_drift(need.drift)
    for sentence in need.reasons or [need.explanation]:
        get_run_logger().info(sentence)
    return need.reasons, need.explanation


@task(name="data", task_run_name="data", cache_policy=NO_CACHE, persist_result=False)
def fetch_data(workspace: Workspace) -> tuple[str, dict[str, Any]]:
    """Put the dataset version that data.dvc records into data/, if it is not there; or only fetch the tables.

    Return how it came there, and what has changed since the last results.

    Raises:
        DiptychError: the dataset cannot be fetched.
    """
    if pixels.lacks_images(workspace):
        origin = provide_dataset(workspace)
        get_run_logger().info("data/ stays %s", origin)
        return origin, dvc.status(workspace)
    # A call of DVC takes a second, and so does the import of the registry, which every run needs in the end. DVC is
    # another process, so both are done at the same time. Mostly this one call answers both questions.
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(dvc.status, workspace)
        import diptych.registry.register  # noqa: F401

        changed, origin = status.result(), "present"
    if not workspace.data.exists() or "data.dvc" in changed or dataset_version(workspace) is None:
        origin = fetch_dataset(workspace)
        changed = dvc.status(workspace)
    get_run_logger().info("data/ is %s", origin)
    return origin, changed


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(workspace: Workspace, name: str, force: bool) -> str:
    """Run one stage if it has changed; return whether it "ran" or was "reused"."""
    log = pages.throttled(get_run_logger().info)
    return "ran" if dvc.reproduce(workspace, name, force=force, on_line=log) else "reused"


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(workspace: Workspace) -> None:
    """Publish the results of the stages as artifacts of the run."""
    pages.show_results(workspace)


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False)
def register_model(workspace: Workspace) -> dict[str, Any]:
    """Register the trained model as a version with the alias challenger."""
    from diptych.registry.register import register

    params = read_params(workspace)
    version = register(workspace, params, {"prefect_flow_run_id": str(flow_run.id)})
    get_run_logger().info(version.describe())
    metrics = json.loads((workspace.reports / "metrics.json").read_text(encoding="utf-8"))
    return {"metrics": metrics, "version": version.to_json(), "tracking_uri": tracking_uri(workspace, params)}


@task(name="share", task_run_name="share", cache_policy=NO_CACHE, persist_result=False)
def share(workspace: Workspace) -> None:
    """Send data and results to the DVC remote, and the commits of runs to the git remote, where there are remotes."""
    for problem in publish_run(workspace, read_params(workspace), get_run_logger().info):
        get_run_logger().warning(problem)


@task(name="gate", task_run_name="gate", cache_policy=NO_CACHE, persist_result=False)
def decide(workspace: Workspace, number: str, promotion: Promotion) -> dict[str, Any]:
    """Ask the gate about the version, and promote it if that is wanted; return the outcome and the champion."""
    from diptych.registry.lifecycle import gate_and_promote, needs_decision
    from diptych.registry.promotion import repair
    from diptych.registry.registered_model import RegisteredModel

    params = read_params(workspace)
    model = RegisteredModel.of(workspace, params)
    repair(model)
    outcome, why = "not asked", ""
    version = model.find(number) if promotion != "never" else None
    data_md5 = dataset_version(workspace) or ""
    if version and needs_decision(model, version, data_md5, params.gate, promotion):
        considered = gate_and_promote(model, version, workspace, params, promotion=promotion)
        get_run_logger().info(considered.describe())
        pages.show_decision(considered)
        outcome, why = considered.outcome, considered.reason
    champion = model.champion()
    return {"outcome": outcome, "why": why, "champion": champion.version if champion else None}


@task(name="index", task_run_name="index", cache_policy=NO_CACHE, persist_result=False)
def index(workspace: Workspace) -> None:
    """Bring the champion's indexes up to date, because the dataset may have grown; warn where that fails.

    A version that this run has promoted is indexed already.
    """
    from diptych.registry.registered_model import RegisteredModel
    from diptych.registry.serving import IndexSwitch

    switch = IndexSwitch(workspace, read_params(workspace))
    model = RegisteredModel.of(workspace, read_params(workspace))
    try:
        if not switch.is_needed or (champion := model.champion()) is None:
            return
        with model.fetched(champion) as folder:
            switch.prepare(folder)
        switch.announce()
    except DiptychError as error:
        get_run_logger().warning("the indexes of the champion are not up to date: %s", error)
    for name, outcome in switch.outcomes.items():
        get_run_logger().info("%s: %s", name, outcome.describe())


@task(name="history", task_run_name="history", cache_policy=NO_CACHE, persist_result=False)
def record_drops(workspace: Workspace) -> None:
    """Record refused drops in the model's history, also those of runs that train nothing."""
    from diptych.registry.registered_model import RegisteredModel

    if ledger.has_unreported(workspace):
        model = RegisteredModel.of(workspace, read_params(workspace))
        if model.exists():
            ledger.report_to_history(workspace, model)


@task(name="summary", task_run_name="summary", cache_policy=NO_CACHE, persist_result=False)
def publish_summary(summary: dict[str, Any]) -> None:
    """Publish what this run did and why, with links to the version and its run."""
    links = pages.mlflow_links(summary["tracking_uri"], summary["version"]) if "version" in summary else {}
    pages.show_summary(pages.run_lines(summary), links)


def note_idle(workspace: Workspace, code: str) -> None:
    """Note for `diptych run` that the next run has nothing to do, where that is so.

    A run that the note is true for does not start this flow. A step that is to be part of every run needs this removed.
    """
    try:
        idle.note_idle(workspace, read_params(workspace), code)
    except (DiptychError, OSError) as error:
        # This run is done; the next one meets the problem.
        get_run_logger().debug("the next run asks everything again: %s", error)
