"""A training's run in MLflow: complete when MLflow answers, never in the way when it does not."""

import json
import logging

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry import connection, tracking
from diptych.registry.connection import connect
from diptych.registry.errors import UnreachableError
from diptych.registry.tracking import TrackedRun


def runs(workspace: Workspace) -> list[Run]:
    client, experiment = connect(workspace, Params())
    return client.search_runs([experiment])


def history(workspace: Workspace, run_id: str, name: str) -> list[tuple[int, float]]:
    client, _ = connect(workspace, Params())
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


@pytest.fixture
def broken(monkeypatch):
    """An MLflow that fails until it is mended."""
    state = {"broken": True}
    log_batch = MlflowClient.log_batch

    def fail(*args, **kwargs):
        if state["broken"]:
            raise ConnectionError("no route to host\nand more")
        return log_batch(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", fail)
    return state


def test_a_training_is_logged_with_parameters_figures_and_tags(trained):
    with TrackedRun(trained, Params()) as run:
        run.log_params({"train": {"epochs": 2}})
        run.log_metrics({"loss": 2.0, "recall@1": 5.0}, 1)
        run.log_metrics({"loss": 1.0}, 2)
        run.finish({"weights_sha256": "abc"})

    (logged,) = runs(trained)
    assert logged.data.params == {"train.epochs": "2"}
    assert history(trained, logged.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert logged.data.metrics["recall_at_1"] == 5.0
    assert (logged.data.tags["weights_sha256"], logged.info.status) == ("abc", "FINISHED")


def test_a_training_whose_other_process_died_goes_on_in_the_same_run(trained, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)

    def lose_another() -> None:
        with TrackedRun(trained, Params()) as run:
            run.log_metrics({"loss": 2.0}, 1)
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match="by peer"):
        lose_another()
    assert [run.info.status for run in runs(trained)] == ["RUNNING"]
    with TrackedRun(trained, Params()) as run:
        run.log_metrics({"loss": 1.0}, 2)
        run.finish({})
    (logged,) = runs(trained)
    assert history(trained, logged.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]


def test_many_figures_are_sent_in_parts(trained):
    with TrackedRun(trained, Params()) as run:
        for step in range(1200):
            run.log_metrics({"loss": float(step)}, step)

    (logged,) = runs(trained)
    assert len(history(trained, logged.info.run_id, "loss")) == 1200


def test_a_training_that_fails_leaves_a_failed_run(trained):
    def fail() -> None:
        with TrackedRun(trained, Params()) as run:
            run.log_metrics({"loss": 1.0}, 1)
            raise ValueError("the loss is nan")

    with pytest.raises(ValueError, match="the loss is nan"):
        fail()

    assert [run.info.status for run in runs(trained)] == ["FAILED"]


def test_a_training_that_was_killed_goes_on_in_its_run(trained):
    TrackedRun(trained, Params()).log_metrics({"loss": 2.0}, 1)

    with TrackedRun(trained, Params()) as run:
        run.log_metrics({"loss": 1.0}, 2)
        run.finish({})

    (logged,) = runs(trained)
    assert history(trained, logged.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert logged.info.status == "FINISHED"


def test_after_other_parameters_a_killed_training_is_closed_and_a_new_run_begun(trained):
    TrackedRun(trained, Params()).log_metrics({"loss": 2.0}, 1)
    trained.params.write_text("seed: 1\n")

    TrackedRun(trained, Params()).finish({})

    assert sorted(run.info.status for run in runs(trained)) == ["FINISHED", "KILLED"]


def test_a_killed_training_whose_run_was_deleted_begins_a_new_one(trained, client, caplog):
    TrackedRun(trained, Params()).log_metrics({"loss": 2.0}, 1)
    (logged,) = runs(trained)
    client.delete_run(logged.info.run_id)

    TrackedRun(trained, Params()).finish({})

    assert len(runs(trained)) == 1


def test_figures_that_could_not_be_sent_are_sent_later(trained, broken, caplog):
    with TrackedRun(trained, Params()) as run:
        run.log_metrics({"loss": 2.0}, 1)
        run.log_metrics({"loss": 1.0}, 2)
        broken["broken"] = False
        run.finish({})

    (logged,) = runs(trained)
    assert history(trained, logged.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert [record.message for record in caplog.records if "takes no figures" in record.message] != []
    assert not any("are not in MLflow" in record.message for record in caplog.records)


def test_what_could_not_be_sent_by_the_end_is_kept_and_the_training_goes_on(trained, broken, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "RETRY_AFTER", 0.0)
    with caplog.at_level(logging.WARNING), TrackedRun(trained, Params()) as run:
        for step in range(5):
            run.log_metrics({"loss": 1.0}, step)
        run.finish({"weights_sha256": "abc"})

    warnings = [record.message for record in caplog.records if record.name == "diptych.registry.tracking"]
    assert len(warnings) == 2
    assert "(no route to host). The training goes on" in warnings[0]
    assert warnings[1].startswith("The figures of this training are kept")


def test_a_warning_does_not_show_the_servers_password(trained, broken, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "connect", lambda *_: (_ for _ in ()).throw(ConnectionError("no")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow.example")

    TrackedRun(trained, Params()).log_metrics({"loss": 1.0}, 1)

    assert "http://mlflow.example" in caplog.text
    assert "secret" not in caplog.text


def test_a_training_costs_one_attempt_while_mlflow_does_not_answer(trained, monkeypatch):
    asked = []

    def refuse(uri: str) -> None:
        asked.append(uri)
        raise UnreachableError("no")

    for module in (tracking, connection):
        monkeypatch.setattr(module, "require_answer", refuse)
    with TrackedRun(trained, Params()) as run:
        for step in range(50):
            run.log_metrics({"loss": 1.0}, step)

    # At the first figures, and at the end.
    assert len(asked) == 2


@pytest.fixture
def away(monkeypatch):
    """An MLflow that does not answer until it is mended."""
    state = {"away": True}

    def refuse(uri: str) -> None:
        if state["away"]:
            raise UnreachableError("no answer.")

    for module in (tracking, connection):
        monkeypatch.setattr(module, "require_answer", refuse)
    monkeypatch.setattr(tracking, "FLUSH_EVERY", 0)
    return state


def test_a_training_that_was_killed_while_mlflow_was_away_loses_no_figures(trained, away):
    TrackedRun(trained, Params()).log_metrics({"loss": 3.0}, 1)
    # Killed, resumed and killed again, before MLflow answers.
    TrackedRun(trained, Params()).log_metrics({"loss": 2.0}, 2)
    away["away"] = False
    TrackedRun(trained, Params()).finish({})

    (run,) = runs(trained)
    assert history(trained, run.info.run_id, "loss") == [(1, 3.0), (2, 2.0)]


def test_a_resumed_training_keeps_its_figures_for_the_run_that_it_had(trained, away):
    away["away"] = False
    TrackedRun(trained, Params()).log_metrics({"loss": 3.0}, 1)
    (run,) = runs(trained)
    away["away"] = True
    TrackedRun(trained, Params()).finish({})

    (path,) = (trained.local / "unsent").iterdir()
    assert json.loads(path.read_text())["run_id"] == run.info.run_id


def test_figures_of_a_killed_training_stay_its_own_where_another_follows(trained, away):
    TrackedRun(trained, Params()).log_metrics({"loss": 3.0}, 1)
    trained.params.write_text("seed: 1\n")
    away["away"] = False
    TrackedRun(trained, Params()).finish({})

    (path,) = (trained.local / "unsent").iterdir()
    content = json.loads(path.read_text())
    assert (content["status"], content["metrics"][0][:2]) == ("KILLED", ["loss", "3.0"])


def test_a_server_that_fails_for_a_moment_costs_no_second_run(trained, monkeypatch):
    TrackedRun(trained, Params()).log_metrics({"loss": 3.0}, 1)

    def fail(*args, **kwargs):
        raise MlflowException("for a moment")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "get_run", fail)
        run = TrackedRun(trained, Params())
        run.log_metrics({"loss": 2.0}, 2)
    run.finish({})

    assert len(runs(trained)) == 1


def test_the_tags_of_a_run_that_was_begun_stay_those_of_its_beginning(trained, broken, monkeypatch):
    broken["broken"] = False
    kept = []
    monkeypatch.setattr(
        tracking, "store_unsent", lambda workspace, uri, run_id, figures: kept.append((run_id, figures.tags))
    )
    with TrackedRun(trained, Params()) as run:
        run.log_metrics({"loss": 1.0}, 1)
        broken["broken"] = True
        run.log_metrics({"loss": 1.0}, 2)
        run.finish({"weights_sha256": "abc"})

    ((run_id, tags),) = kept
    assert (run_id != "", tags) == (True, {"weights_sha256": "abc"})


def test_a_disk_that_is_full_at_the_end_is_told_and_the_training_goes_on(trained, broken, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking, "store_unsent", fail)
    with TrackedRun(trained, Params()) as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.finish({"weights_sha256": "abc"})

    assert "cannot be kept" in caplog.text
