"""The registry's commands: what they print, as JSON too, and their exit codes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from command import diptych
from tiny import write_prepared
from versions import crown, make_version, open_copy, open_registry, package_of, write_accepted

from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry import gate, measuring
from diptych.registry.connection import connect
from diptych.registry.history import history
from diptych.registry.measuring import Measured, gallery
from diptych.registry.registered_model import CHALLENGER, CHAMPION, PREVIOUS, RegisteredModel
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Outcomes, Ranks

IMAGES = 40
VERSION = ["name", "version", "aliases", "tags", "metrics"]


@pytest.fixture(scope="module")
def _template(mlflow_store: Path, tmp_path_factory) -> Path:
    """A project with a test split to measure on, and three versions, of which the last is the challenger."""
    workspace = Workspace(tmp_path_factory.mktemp("cli-registry") / "project")
    write_prepared(workspace.prepared, train=4, val=4, test=IMAGES)
    write_accepted(workspace)
    (workspace.root / "dvc.yaml").touch()
    sections = ("data", "validate", "preprocess", "model", "train", "evaluate", "register", "baselines", "gate")
    lines = [f"{name}: {{}}" for name in (*sections, "retrain")]
    workspace.params.write_text("\n".join(["seed: 0", "threads: 1", "device: cpu", *lines]))
    model = open_registry(workspace, mlflow_store)
    for _ in range(3):
        make_version(model, workspace.root.parent)
    model.set_alias(CHALLENGER, "3")
    return workspace.root


@pytest.fixture
def inside(_template, tmp_path, monkeypatch) -> Workspace:
    """In a project with three versions."""
    workspace = Workspace(shutil.copytree(_template, tmp_path / "project"))
    # The addresses in its store follow the copy, which is told once.
    connect(workspace, Params())
    monkeypatch.chdir(workspace.root)
    return workspace


@pytest.fixture
def model(inside) -> RegisteredModel:
    return open_copy(Workspace(inside.root), shutil.copy(inside.local / "mlflow.db", inside.root / "copy.db"))


@pytest.fixture
def misses(inside, monkeypatch) -> dict[str, int]:
    """How many images each version misses, by its number; without an entry it finds all."""
    few: dict[str, int] = {}

    def measure(folder, workspace, params, name, guard_sets=()):
        own = gallery(workspace, params).image_of_caption
        missed = few.get(name.removeprefix("version "), 0)
        ranks = (np.where(of < missed, 30, 1) for of in (np.arange(IMAGES), own))
        both = Ranks(*(Outcomes.one_relevant(one, np.zeros(len(one), bool)) for one in ranks))
        return Measured(both, {"reranked": metrics_from_ranks(*both)}, {})

    monkeypatch.setattr(gate, "measure", measure)
    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(gate, "answer_time", lambda package: {"pair_ms": 20.0, "load_s": 1.5})
    return few


@pytest.fixture
def empty(inside, mlflow_store) -> Workspace:
    """In a project whose MLflow knows no model."""
    shutil.copy(mlflow_store, inside.local / "mlflow.db")
    return inside


def test_promoting_makes_the_challenger_the_champion_and_shows_every_check(model, misses, capsys):
    crown(model, "1")

    assert diptych("promote") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "diptych version 3 is the champion in place of version 1."
    assert lines[0].startswith("ok  version 3 is what was registered: weights ")
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert model.aliases() == {CHALLENGER: "3", CHAMPION: "3", PREVIOUS: "1"}


def test_promoting_what_was_rolled_back_reminds_of_the_reason(model, misses, capsys):
    crown(model, "1", "3")
    assert diptych("rollback", "--reason", "captions of dogs got worse") == 0
    capsys.readouterr()

    assert diptych("promote", "--json") == 0

    output, errors = capsys.readouterr()
    assert json.loads(output)["outcome"] == "promoted"
    assert "note: diptych version 3 was rolled back by " in errors
    assert "captions of dogs got worse" in errors


def test_promoting_as_json_tells_the_version_and_what_became_of_it(model, misses, capsys):
    assert diptych("promote", "2", "--reason", "it knows stars", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert list(found) == [*VERSION, "outcome", "before", "decision"]
    assert (found["name"], found["version"], found["aliases"]) == ("diptych", "2", [CHAMPION])
    assert (found["outcome"], found["before"], found["tags"]["gate"]) == ("promoted", None, "accepted")
    assert found["decision"]["metrics"]["reranked"]["rsum"] == 600.0
    assert history(model)[-1].why == "it knows stars"


def test_a_version_that_the_gate_refuses_is_exit_code_1_and_the_champion_stays(model, misses, capsys):
    crown(model, "1")
    misses["2"] = 8

    assert diptych("promote", "2") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "diptych version 2 does not become champion."
    assert any(line.startswith("NO  its RSUM is not more than 10 below the champion's: -") for line in lines)
    assert model.aliases()[CHAMPION] == "1"


def test_a_refusal_as_json_has_the_evidence(model, misses, capsys):
    crown(model, "1")
    misses["2"] = 8

    assert diptych("promote", "2", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["outcome"], found["decision"]["decision"], found["tags"]["gate_champion"]) == (
        "rejected",
        "rejected",
        "1",
    )
    assert found["decision"]["comparison"]["rsum"]["high"] < 0


def test_force_without_a_reason_is_a_wrong_use(model, capsys):
    assert diptych("promote", "2", "--force", "--reason", " ") == 2
    assert "--force needs --reason" in capsys.readouterr().err


def test_force_with_a_reason_promotes_and_history_shows_both(model, misses, capsys):
    crown(model, "1")
    misses["2"] = 8

    assert diptych("promote", "2", "--force", "--reason", "the boss wants it") == 0
    assert diptych("history") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "promoted (forced) 1 → 2" in last
    assert ": the boss wants it [rsum " in last


def test_promoting_the_champion_says_so(model, misses, capsys):
    crown(model, "2")

    assert diptych("promote", "2") == 0
    assert capsys.readouterr().out == "diptych version 2 is the champion already.\n"


def test_promoting_to_another_model_copies_and_promotes_there(model, misses, capsys):
    assert diptych("promote", "2", "--to", "production", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["version"], found["aliases"]) == ("production", "1", [CHAMPION])
    assert found["tags"]["copied_from"] == "diptych/2"

    assert diptych("champion", "--name", "production") == 0
    assert capsys.readouterr().out.startswith("production version 1")
    assert model.aliases() == {CHALLENGER: "3"}


@pytest.mark.parametrize("version", ["../x", "1; rm -rf", "models:/x", "x" * 1000, "１"])
def test_what_is_no_version_is_refused_by_every_command(model, capsys, version):
    crown(model, "1")

    for command in (["promote", version], ["compare", "1", version], ["rollback", "--to", version, "--reason", "x"]):
        assert diptych(*command) == 1
        assert "is neither a version's number nor an alias" in capsys.readouterr().err
    assert model.aliases()[CHAMPION] == "1"


@pytest.mark.parametrize("name", ["../x", "1; rm -rf", "models:/x", "x" * 1000, "１"])
def test_what_is_no_name_is_refused_by_every_command(inside, capsys, name):
    for command in (
        ["promote", "--name", name],
        ["promote", "1", "--to", name],
        ["rollback", "--name", name, "--reason", "x"],
        ["history", "--name", name],
        ["compare", "1", "2", "--name", name],
        ["champion", "--name", name],
    ):
        assert diptych(*command) == 1
        assert "cannot name a registered model" in capsys.readouterr().err


def test_rolling_back_says_what_is_in_use_now(model, capsys):
    crown(model, "1", "2")

    assert diptych("rollback", "--reason", "it misses stars") == 0
    assert capsys.readouterr().out == "diptych version 1 is the champion in place of version 2.\n"


def test_rolling_back_as_json_tells_the_version_and_the_one_before(model, capsys):
    crown(model, "1", "2", "3")

    assert diptych("rollback", "--to", "1", "--reason", "it misses stars", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [*VERSION, "before"]
    assert (found["version"], found["before"], found["aliases"]) == ("1", "3", [CHAMPION])


@pytest.mark.parametrize("arguments", [[], ["--reason", " "]])
def test_rolling_back_without_a_reason_is_a_wrong_use(model, capsys, arguments):
    crown(model, "1", "2")

    assert diptych("rollback", *arguments) == 2
    assert "--reason" in capsys.readouterr().err
    assert model.aliases()[CHAMPION] == "2"


def test_with_nothing_to_go_back_to_rolling_back_is_exit_code_1(model, capsys):
    crown(model, "1")

    assert diptych("rollback", "--reason", "x") == 1
    assert "has no earlier champion to go back to" in capsys.readouterr().err


def test_history_is_a_line_for_each_decision(model, misses, capsys, monkeypatch):
    monkeypatch.setenv("DIPTYCH_USER", "ada")
    diptych("promote", "1")
    diptych("promote", "2", "--reason", "it is newer")
    diptych("rollback", "--reason", "it misses stars")
    capsys.readouterr()

    assert diptych("history") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1].split(" ")[0] for line in lines] == ["promoted", "promoted", "rolled"]
    assert "1 → 2     ada: it is newer [rsum 600.0, gain 0.0" in lines[1]
    assert lines[2].endswith("2 → 1     ada: it misses stars")


def test_history_as_json_is_a_list_of_decisions(model, misses, capsys):
    diptych("promote", "1")
    capsys.readouterr()

    assert diptych("history", "--json") == 0
    (event,) = json.loads(capsys.readouterr().out)
    assert list(event) == ["action", "origin", "target", "why", "figures", "forced", "who", "when"]
    assert (event["action"], event["origin"], event["target"], event["figures"]["rsum"]) == ("promoted", None, "1", 600)


def test_comparing_shows_both_and_how_sure_the_difference_is(model, misses, capsys):
    misses["1"] = 10

    assert diptych("compare", "1", "challenger") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["version", "1", "version", "3"]
    assert "i2t recall@1" in out
    assert "\nVersion 3 has RSUM +1" in out
    assert "95 %" in out
    assert "t2i: recall@10 " in out


def test_comparing_as_json_has_both_versions_and_the_difference(model, misses, capsys):
    misses["1"] = 10

    assert diptych("compare", "1", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["first", "second", "before", "after", "rsum", "parts"]
    assert list(found["first"]) == VERSION
    assert (found["first"]["version"], found["second"]["version"]) == ("1", "2")
    assert found["rsum"]["low"] > 0


def test_a_version_is_not_compared_with_itself(model, capsys):
    crown(model, "3")

    assert diptych("compare", "champion", "challenger") == 1
    assert "champion and challenger are both diptych version 3" in capsys.readouterr().err


def test_comparing_with_a_version_whose_package_is_gone_is_exit_code_1(model, misses, tmp_path, capsys):
    version = make_version(model, tmp_path)
    shutil.rmtree(package_of(model, version))

    assert diptych("compare", "1", version.version) == 1
    assert "diptych version 4: its package is gone" in capsys.readouterr().err


def test_the_champion_is_told_with_how_to_load_it(model, capsys):
    crown(model, "2")

    assert diptych("champion") == 0
    expected = "diptych version 2, RSUM 130.0 when it was made; load it as models:/diptych@champion\n"
    assert capsys.readouterr().out == expected


def test_the_champion_as_json_is_the_version(model, capsys):
    crown(model, "2")

    assert diptych("champion", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == VERSION
    assert (found["version"], found["aliases"], found["metrics"]) == ("2", [CHAMPION], {"reranked/rsum": 130.0})
    assert set(found["tags"]) == {"weights_sha256", "model_sha256"}


def test_without_a_champion_the_exit_code_is_1(inside, capsys):
    assert diptych("champion") == 1
    assert capsys.readouterr() == ("", "error: diptych has no champion yet: `diptych promote` makes one.\n")


@pytest.mark.parametrize(
    "command",
    [["promote"], ["promote", "1"], ["rollback", "--reason", "x"], ["compare", "1", "2"], ["champion"]],
)
def test_without_a_registered_model_the_error_says_how_to_make_one(empty, capsys, command):
    assert diptych(*command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: No model is registered as 'diptych': nothing is registered yet.")
    assert "`diptych run` registers a first version" in error


def test_without_a_registered_model_there_is_no_history(empty, capsys):
    assert diptych("history") == 0
    assert capsys.readouterr().out == "diptych: nothing was decided yet; `diptych promote` does.\n"
    assert diptych("history", "--json") == 0
    assert capsys.readouterr().out == "[]\n"


@pytest.mark.parametrize(
    "command",
    [["promote"], ["rollback", "--reason", "x"], ["history"], ["compare", "1", "2"], ["champion"]],
)
def test_an_mlflow_that_does_not_answer_is_an_error_without_its_password(inside, capsys, monkeypatch, command):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    assert diptych(*command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: MLflow at http://127.0.0.1:9 does not answer: ")
    assert "secret" not in error


def test_an_mlflow_that_does_not_answer_costs_seconds(inside, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    started = time.monotonic()

    assert diptych("champion") == 1
    assert time.monotonic() - started < 30
    *_, last = (error := capsys.readouterr().err).splitlines()
    assert last.startswith("error: MLflow at http://127.0.0.1:9 does not answer: ")
    assert "secret" not in error


def test_a_workspace_that_a_run_holds_is_not_measured_on(inside, misses, capsys):
    with inside.held("diptych run"):
        assert diptych("promote", "1") == 1
        assert diptych("compare", "1", "2") == 1
    assert capsys.readouterr().err.count("is in use by `diptych run`") == 2
