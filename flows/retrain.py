"""The retrain flow: data, validate, preprocess, baselines, train, controls, evaluate, register.

`diptych run` starts it; so does a Prefect worker, by the deployment in prefect.yaml. It decides when things run and
shows what they did. What depends on what, and what is already computed, is DVC's to say; what a stage does stands in
the package.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from diptych import dvc
from diptych.config import load_params
from diptych.data.pretrained import locate_towers
from diptych.environment import enter
from diptych.presets import use_preset
from diptych.processes import holding
from diptych.workspace import Workspace

PROGRESS_EVERY = 10.0
"""Seconds between two states of a progress bar in the log."""
_BAR = re.compile(r"\d+%\||\d+it \[")


@flow(name="retrain", description=__doc__, validate_parameters=True, persist_result=False)
def retrain(preset: str | None = None, force: bool = False) -> dict[str, Any]:
    """Runs the chain on the project in the current folder; what has not changed is reused.

    Args:
        preset: put presets/NAME.yaml in force as params.yaml first.
        force: run every stage, changed or not.

    Returns:
        What ran, the metrics and the model version, as plain values.

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
        return {"data": data, "stages": stages, **register_model(workspace)}


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
    """The validation summary, metrics, ladder, verdicts and the way to the report, as artifacts of the run."""
    validation = json.loads((workspace.reports / "validation.json").read_text(encoding="utf-8"))
    create_markdown_artifact(validation_summary(validation), key="validation", description="What validate found")
    create_table_artifact(metrics_table(_metrics(workspace)), key="metrics", description="Retrieval on the test split")
    ladder = json.loads((workspace.reports / "ladder.json").read_text(encoding="utf-8"))
    if ladder["rungs"]:
        create_table_artifact(
            ladder["rungs"], key="ladder", description="RSUM from chance to the model, 95 % intervals"
        )
        create_markdown_artifact(verdicts(ladder), key="verdicts", description="What the model is worth")
    create_link_artifact((workspace.reports / "report.html").resolve().as_uri(), link_text="Report", key="report")


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False)
def register_model(workspace: Workspace) -> dict[str, Any]:
    """The trained model as a version of the registered model, with the alias challenger."""
    from diptych.registry.register import register
    from diptych.registry.tracking import tracking_uri

    params = load_params(workspace.params)
    version = register(workspace, params)
    get_run_logger().info(version.describe())
    summary = {"metrics": _metrics(workspace), "version": version.to_json()}
    return {**summary, "tracking_uri": tracking_uri(workspace, params)}


def validation_summary(validation: Mapping[str, Any]) -> str:
    """Counts, and the expectations that do not hold, as Markdown."""
    rows = [
        f"| {table} | {counts['total']:,} | {counts['accepted']:,} | {counts['quarantined']:,} |"
        for table in ("images", "captions")
        for counts in [validation[table]]
    ]
    failed = [
        f"* {result['table']}: {result['expectation']} ({result.get('column') or 'table'}), {result['failed']} rows"
        for result in validation["expectations"]
        if not result["success"]
    ]
    head = ["| | total | accepted | quarantined |", "|---|---|---|---|"]
    return "\n".join(
        [*head, *rows, "", "All expectations hold." if not failed else "Expectations that do not hold:", *failed]
    )


def verdicts(ladder: Mapping[str, Any]) -> str:
    """Each claim with its answer, as Markdown."""
    return "\n".join(
        f"* {one['claim']}: **{one['answer']}**, by {one['gain']['rsum']:+.1f} RSUM "
        f'({one["gain"]["low"]:+.1f} to {one["gain"]["high"]:+.1f}) over "{one["over"]}"'
        for one in ladder["verdicts"]
    )


def metrics_table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each way of ranking and each direction."""
    return [
        {"ranking": ranking, "direction": direction, **values[direction], "rsum": values["rsum"]}
        for ranking, values in metrics.items()
        if isinstance(values, Mapping) and "rsum" in values
        for direction in ("i2t", "t2i")
    ]


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


def _metrics(workspace: Workspace) -> dict[str, Any]:
    return dict(json.loads((workspace.reports / "metrics.json").read_text(encoding="utf-8")))
