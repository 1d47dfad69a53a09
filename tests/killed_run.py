"""Runs of the retrain flow that kill themselves at a given moment: a program, and its user.

What the flow needs takes ten seconds to import, so one process imports it, and each run is a fork of that.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Runs:
    """The program, for who uses it; `environment` is what its runs have."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, project: Path, moment: str = "", inbox: str | None = None) -> dict[str, Any]:
        """`diptych run --promotion auto` in `project`, killed at `moment`, if one is given; what it returned, or
        {"signal": number}.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"project": str(project), "moment": moment, "inbox": inbox}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        """Of the program."""
        self._process.communicate()


def main() -> None:
    """Reads what to run, a line each, and answers with a line each."""
    # stdout is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    flow = _import()
    for line in sys.stdin:
        wanted = json.loads(line)
        answer = Path(wanted["project"]) / ".diptych" / "answer.json"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            _run(flow, wanted, answer)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = {"signal": -status} if status else json.loads(answer.read_text())
        answers.write(json.dumps(told) + "\n")
        answers.flush()


def _import() -> Callable[..., dict[str, Any]]:
    import mlflow.pyfunc  # noqa: F401
    import transformers  # noqa: F401

    import diptych.inbox.ingesting
    import diptych.inbox.need
    import diptych.orchestration.pages
    import diptych.registry.gate
    import diptych.registry.register  # noqa: F401
    from diptych.cli.chain import load_flow
    from diptych.project.workspace import Workspace

    flow: Callable[..., dict[str, Any]] = load_flow(Workspace(ROOT))
    return flow


def _run(flow: Callable[..., dict[str, Any]], wanted: dict[str, Any], answer: Path) -> None:
    """In the fork, of which nothing comes back."""
    try:
        os.chdir(wanted["project"])
        _accept_everything()
        if wanted["moment"]:
            MOMENTS[wanted["moment"]]()
        answer.write_text(json.dumps(flow(promotion="auto", inbox=wanted["inbox"])))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _accept_everything() -> None:
    """The gate measures on data, of which these projects have none."""
    from diptych.registry import decision, gate

    def decide(model: Any, version: Any, workspace: Any, params: Any, **_: Any) -> decision.Decision:
        champion = model.champion()
        check = decision.Check("it is there", True, "yes")
        metrics = {"reranked": {"rsum": 130.0}}
        against = champion.version if champion else None
        return decision.Decision(model.name, version.version, against, "d" * 32, "e" * 64, [check], metrics)

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


if __name__ == "__main__":
    main()
