"""The promote flow: `diptych promote` on the project's machine, for everybody who may trigger deployments."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from diptych.orchestration.pages import show_decision
from diptych.project.environment import enter
from diptych.project.params import read_params
from diptych.project.processes import holding


@flow(name="promote", description=__doc__, validate_parameters=True, persist_result=False)
def promote(
    version: str = "challenger", to: str | None = None, force: bool = False, reason: str = ""
) -> dict[str, Any]:
    """Make a version the champion, if it passes the gate.

    Args:
        version: a number or an alias.
        to: copy it to this registered model, and promote it there.
        force: promote what the gate refuses; needs a reason.
        reason: why; kept in the history.

    Returns:
        The version, the outcome, and the decision with its evidence.

    Raises:
        DiptychError: there is no such version, a forced promotion has no reason, or a run holds the workspace.
    """
    workspace = enter()
    from diptych.registry.lifecycle import gate_and_promote
    from diptych.registry.registered_model import RegisteredModel

    params = read_params(workspace)
    model = RegisteredModel.of(workspace, params)
    with holding(workspace, "the promote flow"):
        candidate = model.find(version)
        if to:
            model = RegisteredModel.of(workspace, params, to)
            candidate = model.copy_of(candidate)
        considered = gate_and_promote(model, candidate, workspace, params, why=reason, force=force)
    get_run_logger().info(considered.describe())
    show_decision(considered)
    return considered.to_json()
