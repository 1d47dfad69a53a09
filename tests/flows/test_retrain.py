"""The retrain flow on a chain of stages that take no time, with Prefect's own server."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_project import keep_environment, run
from prefect.client.orchestration import get_client
from prefect_server import prefect_server
from tiny_model import write_reports, write_tiny_model

from diptych.cli.chain import load_flow
from diptych.config import Params
from diptych.errors import DiptychError
from diptych.inbox.drops import Drop
from diptych.inbox.idle import find_idle_summary
from diptych.inbox.ledger import DropResult, record_result
from diptych.project import dvc, recording
from diptych.project.params import read_params
from diptych.project.processes import holding
from diptych.project.workspace import Workspace
from diptych.registry.connection import connect
from diptych.registry.history import history
from diptych.registry.registered_model import RegisteredModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def retrain(heavy, tmp_path_factory):
    """The flow, and a server for it."""
    with prefect_server(tmp_path_factory):
        yield load_flow(Workspace(ROOT))


@pytest.fixture(scope="module")
def module(retrain):
    import sys

    return sys.modules["flows.retrain"]


@pytest.fixture(scope="session")
def _results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_tiny_model(folder / "trained")
    write_reports(folder / "trained-reports")
    return folder


@pytest.fixture(scope="module")
def _template(_project, _results, mlflow_store, tmp_path_factory) -> Path:
    """The project, with what its stages hand out."""
    root = tmp_path_factory.mktemp("chain") / "project"
    shutil.copytree(_project, root)
    shutil.copytree(_results, root, dirs_exist_ok=True)
    (root / ".diptych").mkdir()
    shutil.copy(mlflow_store, root / ".diptych" / "mlflow.db")
    return root


@pytest.fixture(scope="module")
def first_run(retrain, _template, tmp_path_factory):
    """A project in which the flow has run once, and what it returned; tests only look at it."""
    workspace = Workspace(shutil.copytree(_template, tmp_path_factory.mktemp("first") / "project"))
    with pytest.MonkeyPatch.context() as patch:
        keep_environment(patch)
        patch.chdir(workspace.root)
        return workspace, retrain()


@pytest.fixture
def chain(_template, tmp_path, monkeypatch):
    """A project in which nothing has run yet."""
    monkeypatch.chdir(shutil.copytree(_template, tmp_path / "project"))
    return Workspace(tmp_path / "project")


@pytest.fixture
def chain_that_ran(first_run, tmp_path, monkeypatch):
    """A copy of the project in which the flow has run once."""
    monkeypatch.chdir(shutil.copytree(first_run[0].root, tmp_path / "project"))
    return Workspace(tmp_path / "project")


def ran(workspace: Workspace) -> list[str]:
    log = workspace.root / "ran.txt"
    return log.read_text().split() if log.exists() else []


STAGES = ["validate", "preprocess", "baselines", "train", "controls", "evaluate"]


def test_the_first_run_ends_with_a_version_and_the_second_repeats_nothing(retrain, first_run, chain_that_ran):
    first = first_run[1]
    second = retrain()

    assert first["stages"] == dict.fromkeys(STAGES, "ran")
    assert (first["version"]["version"], first["version"]["created"]) == ("1", True)
    assert first["metrics"]["reranked"]["rsum"] == 130.0
    assert second["stages"] == dict.fromkeys(STAGES, "reused")
    assert second["version"] == {**first["version"], "created": False}
    assert ran(chain_that_ran) == STAGES
    json.dumps(first)
    with get_client(sync_client=True) as client:
        assert {"validation", "metrics", "ladder", "verdicts", "report", "summary"} <= {
            artifact.key for artifact in client.read_artifacts()
        }


def idle_summary(workspace: Workspace) -> dict[str, Any] | None:
    return find_idle_summary(workspace, read_params(workspace), "never", None)


def test_after_a_run_it_is_known_what_another_one_would_return(retrain, chain_that_ran):
    retrain()

    assert idle_summary(chain_that_ran) == json.loads(json.dumps(retrain()))


def test_whatever_dvc_compares_is_something_to_do(retrain, chain_that_ran):
    retrain()
    root = chain_that_ran.root
    for path in (
        "data/captions.json",
        "stage.py",
        "dvc.yaml",
        "reports/report.html",
        "artifacts/model/model.safetensors",
    ):
        before = (root / path).read_bytes()
        (root / path).unlink()
        (root / path).write_bytes(before.replace(b"seed", b"seeds") + b"\n")
        assert idle_summary(chain_that_ran) is None, path
        (root / path).write_bytes(before)
    (root / "reports" / "report.html").rename(root / "report.html")
    assert idle_summary(chain_that_ran) is None
    (root / "report.html").rename(root / "reports" / "report.html")

    assert idle_summary(chain_that_ran)


def test_a_run_that_fails_leaves_something_to_do(retrain, chain_that_ran, monkeypatch):
    retrain()
    monkeypatch.setenv("FAIL", "validate")
    with pytest.raises(DiptychError, match="it is broken"):
        retrain(force=True)

    assert idle_summary(chain_that_ran) is None


def test_a_run_keeps_how_long_its_stages_took(first_run):
    (stages,) = json.loads(first_run[0].durations.read_text()).values()
    assert list(stages) == STAGES


def test_a_change_runs_what_depends_on_it_and_force_runs_everything(retrain, chain_that_ran):
    chain_that_ran.presets.mkdir()
    changed = chain_that_ran.params.read_text().replace("seed: 0", "seed: 1")
    (chain_that_ran.presets / "other.yaml").write_text(changed)

    other = retrain(preset="other")

    assert other["stages"] == {**dict.fromkeys(STAGES, "reused"), "train": "ran"}
    assert retrain(force=True)["stages"] == dict.fromkeys(STAGES, "ran")


def test_a_stage_that_fails_ends_the_flow_with_its_own_message_and_the_next_run_goes_on_from_there(
    retrain, chain, monkeypatch
):
    monkeypatch.setenv("FAIL", "train")
    with pytest.raises(DiptychError, match=r"stage train failed: captions\.json, row 3: it is broken\n  mend it"):
        retrain()

    monkeypatch.delenv("FAIL")
    again = dict.fromkeys(("train", "controls", "evaluate"), "ran")
    assert retrain()["stages"] == {**dict.fromkeys(STAGES, "reused"), **again}


def test_a_guard_set_that_the_gate_would_refuse_ends_a_run_that_asks_the_gate_before_the_training(retrain, chain):
    guard_sets = f"guard_sets: {{old: {{path: guards/old, md5: {'0' * 32}.dir}}}}"
    chain.params.write_text(chain.params.read_text().replace("guard_sets: {}", guard_sets))

    with pytest.raises(DiptychError, match=r"gate\.guard_sets\.old: the folder .*guards/old is missing"):
        retrain(promotion="manual")

    assert ran(chain) == ["validate"]
    assert retrain(promotion="never")["stages"] == {**dict.fromkeys(STAGES, "ran"), "validate": "reused"}


def test_judged_queries_that_the_gate_would_refuse_end_a_run_that_asks_the_gate_before_the_training(retrain, chain):
    judged = f"judged_queries: {{path: guards/judged, md5: {'0' * 32}.dir}}"
    chain.params.write_text(chain.params.read_text().replace("judged_queries: null", judged))

    with pytest.raises(DiptychError, match=r"gate\.judged_queries: the folder .*guards/judged is missing"):
        retrain(promotion="manual")

    assert ran(chain) == ["validate"]


def test_a_workspace_that_is_in_use_is_left_alone(retrain, chain, monkeypatch):
    with chain.held("diptych data import"), pytest.raises(DiptychError, match="in use by `diptych data import`"):
        retrain()

    assert ran(chain) == []


def test_beneath_a_command_that_holds_the_workspace_the_flow_runs(retrain, chain_that_ran):
    with holding(chain_that_ran, "diptych run"):
        assert retrain()["stages"] == dict.fromkeys(STAGES, "reused")


def test_wrong_params_end_it_before_any_stage(retrain, chain):
    chain.params.write_text("sede: 1")

    with pytest.raises(DiptychError, match="sede: unknown key"):
        retrain()

    assert ran(chain) == []


def test_a_refused_drop_is_in_the_models_history_also_where_nothing_is_trained(
    retrain, module, chain_that_ran, monkeypatch
):
    refused = DropResult("january", "refused", "7 of its 9 new images are bad")

    def refuse(workspace, inbox):
        record_result(workspace, Drop("january", "1" * 64, "january"), refused)
        return [refused]

    monkeypatch.setattr(module, "ingest_drops", refuse)
    stages = dict.fromkeys(STAGES, "not needed")
    monkeypatch.setattr(module, "run_stages", lambda *_: (["There is no reason."], stages))

    happened = retrain()

    model = RegisteredModel.of(chain_that_ran, Params())
    assert "version" not in happened
    assert [(event.action, event.why) for event in history(model)] == [("drop refused", refused.describe())]


def test_an_experiment_that_was_deleted_ends_it_before_any_stage(retrain, chain):
    client, number = connect(chain, Params())
    client.delete_experiment(number)

    with pytest.raises(DiptychError, match=f"mlflow experiments restore -x {number}"):
        retrain()

    assert ran(chain) == []


def test_started_in_a_folder_of_the_project_it_uses_the_same_store(retrain, chain, monkeypatch):
    chain.params.write_text(chain.params.read_text().replace("tracking_uri: null", "tracking_uri: sqlite:///runs.db"))
    (chain.local / "mlflow.db").rename(chain.root / "runs.db")
    (chain.root / "docs").mkdir()
    monkeypatch.chdir(chain.root / "docs")

    happened = retrain()

    assert happened["tracking_uri"] == f"sqlite:///{chain.root}/runs.db"
    assert [path.name for path in chain.root.rglob("*.db") if "prefect" not in path.parts] == ["runs.db"]


def test_without_mlflow_the_model_is_trained_and_kept_and_the_next_run_registers_it(retrain, chain, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        said = r"MLflow at http://127\.0\.0\.1:9 does not answer: .* The trained model is kept, and is no version yet"
        with pytest.raises(DiptychError, match=said):
            retrain()
    assert ran(chain) == STAGES

    happened = retrain()

    assert happened["stages"] == dict.fromkeys(STAGES, "reused")
    assert (happened["version"]["version"], happened["version"]["created"]) == ("1", True)


def test_a_dvc_remote_that_is_not_reached_is_a_warning_and_the_next_run_sends(
    retrain, chain_that_ran, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(recording, "WAITS", ())
    run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"), cwd=chain_that_ran.root)
    # What is to be a folder is a file.
    (tmp_path / "store").touch()

    assert retrain()["version"]["version"] == "1"

    assert "the DVC remote was not reached: " in caplog.text
    assert "`dvc push` sends what is missing" in caplog.text
    (tmp_path / "store").unlink()
    retrain()
    assert dvc.status(chain_that_ran, "--cloud") == {}


def test_where_pixels_stay_in_the_remote_changed_stages_run_without_them(
    retrain, chain_that_ran, tmp_path, monkeypatch
):
    root = chain_that_ran.root
    run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"), cwd=root)
    run("dvc", "push", "--quiet", cwd=root)
    lock = (root / "dvc.lock").read_text()
    for folder in (chain_that_ran.data, chain_that_ran.artifacts, chain_that_ran.reports, root / ".dvc" / "cache"):
        shutil.rmtree(folder)
    monkeypatch.setenv("DIPTYCH_PIXELS", "remote")
    chain_that_ran.params.write_text(chain_that_ran.params.read_text().replace("seed: 0", "seed: 1"))

    first, second = retrain(), retrain()

    assert first["data"] == "in the DVC remote"
    # Whatever the seed, the stage gives the same model, so that nothing after it has changed.
    assert [name for name, how in first["stages"].items() if how == "ran"] == ["train"]
    assert second["stages"] == dict.fromkeys(STAGES, "reused")
    assert not chain_that_ran.data.exists()
    assert [path.name for path in chain_that_ran.prepared.iterdir()] == ["images.parquet"]
    before_training = lock.partition("  train:")[0]
    assert (root / "dvc.lock").read_text().startswith(before_training)

    (root / "stage.py").write_text((root / "stage.py").read_text() + "# changed")
    third = retrain()
    assert [name for name, how in third["stages"].items() if how == "ran"] == ["validate"]
    assert not chain_that_ran.data.exists()


def test_a_commit_that_git_does_not_tell_is_warned_of_before_anything_is_trained(
    retrain, chain_that_ran, monkeypatch, caplog
):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")

    assert set(retrain()["stages"].values()) == {"reused"}

    told = [record.getMessage() for record in caplog.records if "git_sha is unknown" in record.getMessage()]
    assert len(told) == 1
    assert f"`git config --global --add safe.directory {chain_that_ran.root}`" in told[0]
    assert caplog.text.index("git_sha is unknown") < caplog.text.index("data/ is ")
