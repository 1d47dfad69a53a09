"""Moments at which a run of the retrain flow kills itself: what a fork does first (forking.py).

subprocess.run(forks.command("diptych", "run"), env={**os.environ, **killed_at("the promotion")})
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

_MOMENT = "KILLED_AT"


def killed_at(moment: str) -> dict[str, str]:
    """Environment of a command of diptych that is killed at a moment of `MOMENTS`, or not at all: "".

    Its gate accepts everything: it measures on data, of which the projects of these tests have none.
    """
    return {"FIRST": "kill_points:prepare", _MOMENT: moment}


def prepare() -> None:
    """Prepare this process to be killed."""
    _accept_everything()
    if moment := os.environ.get(_MOMENT):
        MOMENTS[moment]()


def _accept_everything() -> None:
    from diptych.registry import decision, gate

    def decide(model: Any, version: Any, workspace: Any, params: Any, **_: Any) -> decision.Decision:
        champion = model.champion()
        check = decision.Check("it is there", True, "yes")
        metrics = {"reranked": {"rsum": 130.0}}
        against = champion.version if champion else None
        return decision.Decision(model.name, version.version, against, "d" * 32, "e" * 64, "f" * 64, [check], metrics)

    gate.decide = decide


def _kill_at(path: str, name: str, when: Callable[..., bool] = lambda *arguments: True) -> Callable[[], None]:
    """Has the process killed where `name` of what lies at `path` would be called with arguments that `when` is for."""

    def patch() -> None:
        import pkgutil

        owner = pkgutil.resolve_name(path)
        function = getattr(owner, name)

        def die(*arguments: Any, **options: Any) -> Any:
            if when(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(owner, name, die)

    return patch


MOMENTS = {
    "another checkpoint": _kill_at(
        "diptych.training.checkpoints:Checkpoints", "save", lambda checkpoints, state: checkpoints.load() is not None
    ),
    "the version": _kill_at("mlflow:MlflowClient", "create_model_version"),
    "the alias challenger": _kill_at("mlflow:MlflowClient", "set_registered_model_alias"),
    "sending to the DVC remote": _kill_at("diptych.project.dvc", "push"),
    "the promotion": _kill_at("diptych.registry.lifecycle", "promote"),
    # The event has been written down.
    "the alias champion": _kill_at(
        "diptych.registry.registered_model:RegisteredModel",
        "set_alias",
        lambda model, alias, version: alias == "champion",
    ),
    "the judgement of a drop": _kill_at("diptych.inbox.ingesting", "_judge"),
}
"""What the run is about to do when it is killed."""
