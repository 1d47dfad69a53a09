"""What the pages of flow runs in Prefect show, and the events that notifications listen to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from diptych.orchestration.automations import announce
from diptych.project.addresses import without_secret
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.drift.distance import Drift
    from diptych.registry.lifecycle import GateResult


def show_results(workspace: Workspace) -> None:
    """The validation summary, metrics, ladder, verdicts and the way to the report, as artifacts of the run."""
    validation = _read(workspace, "validation")
    create_markdown_artifact(validation_summary(validation), key="validation", description="What validate found")
    create_table_artifact(
        metrics_table(_read(workspace, "metrics")), key="metrics", description="Retrieval on the test split"
    )
    ladder = _read(workspace, "ladder")
    if ladder["rungs"]:
        create_table_artifact(
            ladder["rungs"], key="ladder", description="RSUM from chance to the model, 95 % intervals"
        )
        create_markdown_artifact(verdicts(ladder), key="verdicts", description="What the model is worth")
    create_link_artifact((workspace.reports / "report.html").resolve().as_uri(), link_text="Report", key="report")


def show_decision(considered: GateResult) -> None:
    """The gate's decision as an artifact, and its outcome as an event."""
    decision, version = considered.decision, considered.version
    if decision is None:
        return
    create_markdown_artifact(decision.render(), key="gate", description=decision.summary)
    if considered.outcome == "promoted" or considered.outcome == "rejected":
        announce(considered.outcome, version.name, version.version, decision.summary)


def show_drift(drift: Drift) -> None:
    """How far new pairs are from those that the champion learned from."""
    create_markdown_artifact(drift.render(), key="drift", description="New pairs beside the champion's")


def show_summary(lines: Sequence[str], links: Mapping[str, str]) -> None:
    """What the run did and why, a line each, with links by their texts."""
    shown = [*(f"* {line}" for line in lines), "", *(f"[{text}]({address})" for text, address in links.items())]
    create_markdown_artifact("\n".join(shown), key="summary", description="What this run did, and why")


def run_lines(happened: Mapping[str, Any]) -> list[str]:
    """What a run of the retrain flow did and why, a sentence each."""
    ran = [name for name, how in happened["stages"].items() if how == "ran"]
    lines = [f"data/ is {happened['data']}", *happened["inbox"], *happened["why"]]
    lines.append(f"ran: {', '.join(ran)}" if ran else "no stage ran")
    if "version" in happened:
        version, decision = happened["version"], happened["decision"]
        state = "new" if version["created"] else "known already"
        lines.append(
            f"{version['name']} version {version['version']}: {state}; {decision['outcome']} {decision['why']}"
        )
        lines.append(f"champion: {decision['champion'] or 'none yet'}")
    return [line.rstrip() for line in lines]


def mlflow_links(uri: str, version: Mapping[str, Any]) -> dict[str, str]:
    """To the version and its run; none where MLflow is a file without pages."""
    if not uri.startswith(("http://", "https://")):
        return {}
    base = without_secret(uri).rstrip("/")
    title = f"{version['name']} version {version['version']}"
    return {
        title: f"{base}/#/models/{quote(version['name'])}/versions/{version['version']}",
        "MLflow run": f"{base}/#/experiments/{version['experiment_id']}/runs/{version['run_id']}",
    }


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


def _read(workspace: Workspace, name: str) -> dict[str, Any]:
    return dict(json.loads((workspace.reports / f"{name}.json").read_text(encoding="utf-8")))
