"""The rollback flow: `diptych rollback` for everybody who may trigger deployments."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from diptych.orchestration.pages import show_summary
from diptych.project.environment import enter
from diptych.project.params import read_params


@flow(name="rollback", description=__doc__, validate_parameters=True, persist_result=False)
def rollback(reason: str, to: str | None = None) -> dict[str, Any]:
    """Make an earlier champion the champion again.

    Args:
        reason: why; kept in the history.
        to: a version's number; null: the champion before the present one.

    Returns:
        The version, and the champion before.

    Raises:
        DiptychError: there is no earlier champion, or its package is gone or damaged.
    """
    workspace = enter()
    from diptych.registry.lifecycle import roll_back_with_indexes
    from diptych.registry.registered_model import RegisteredModel

    params = read_params(workspace)
    model = RegisteredModel.of(workspace, params)
    change = roll_back_with_indexes(model, workspace, params, to, why=reason)
    message = f"{change.describe()}: {reason}"
    get_run_logger().info(message)
    show_summary([message], {})
    return {**change.version.to_json(), "before": change.before}
