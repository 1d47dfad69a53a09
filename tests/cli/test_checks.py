"""The checks of the doctor: the state of each thing that a run depends on, and the advice where it is not as needed."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from fake_project import commit, run

from diptych.cli import checks
from diptych.cli.checks import Finding
from diptych.config import Params, Train
from diptych.errors import DiptychError
from diptych.project.changing import begin
from diptych.project.workspace import Workspace
from diptych.registry import answering
from diptych.registry.connection import connect

pytestmark = pytest.mark.usefixtures("no_servers")


def only(findings: Iterator[Finding]) -> Finding:
    """The finding of a check that has one."""
    (finding,) = findings
    return finding


def test_uncommitted_changes_are_a_warning(project: Workspace) -> None:
    assert only(checks.check_git(project)).state == "ok"
    # What a run changes is recorded with it.
    project.params.write_text(project.params.read_text() + "\n")
    assert only(checks.check_git(project)).state == "ok"
    (project.root / "stage.py").write_text("")
    assert only(checks.check_git(project)).state == "warning"
    assert only(checks.check_git(project)).result.endswith("made again: stage.py")


def test_a_repository_that_git_refuses_is_reported_in_its_words_and_never_made_anew(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    finding = only(checks.check_git(project))
    assert (finding.state, "dubious ownership" in finding.result) == ("error", True)
    assert f"`git config --global --add safe.directory {project.root}`" in finding.advice
    assert "git init" not in finding.advice


def test_a_project_outside_of_git_may_be_meant_to_be(project: Workspace) -> None:
    shutil.rmtree(project.root / ".git")
    finding = only(checks.check_git(project))
    assert (finding.state, "dvc config core.no_scm true" in finding.advice) == ("error", True)
    run("dvc", "config", "core.no_scm", "true", cwd=project.root)
    assert only(checks.check_git(project)).state == "warning"


def test_converted_line_endings_are_a_warning_whose_commands_restore_them_and_keep_edits(project: Workspace) -> None:
    def git(*arguments: str) -> None:
        run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", *arguments, cwd=project.root)

    before = (project.root / "stage.py").read_bytes()
    git("config", "core.autocrlf", "true")
    git("rm", "-rq", "--cached", ".")
    git("reset", "--quiet", "--hard")
    with (project.root / "dvc.yaml").open("a") as file:
        file.write("# mine\n")
    finding = only(checks.check_git(project))
    assert (finding.state, finding.result.startswith("line endings of ")) == ("warning", True)
    assert "`* -text` in .gitattributes" in finding.advice
    (project.root / ".gitattributes").write_text("* -text\n")
    git("add", ".gitattributes")
    git("commit", "--quiet", "--message", "x")
    finding = only(checks.check_git(project))
    assert ".gitattributes" not in finding.advice
    assert finding.result.endswith("made again: dvc.yaml")
    run("bash", "-c", finding.advice.splitlines()[0].strip("`."), cwd=project.root)
    assert (project.root / "stage.py").read_bytes() == before
    assert (project.root / "dvc.yaml").read_bytes().endswith(b"# mine\n")
    assert only(checks.check_git(project)).result.endswith("made again: dvc.yaml")


def test_a_dataset_is_here_or_recorded_or_missing(
    project: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(checks.check_dataset(project)).state == "ok"
    shutil.rmtree(project.data)
    assert "recorded, but not here" in only(checks.check_dataset(project)).result
    monkeypatch.setenv("DIPTYCH_PIXELS", "remote")
    with pytest.raises(DiptychError, match="DVC has no default remote"):
        only(checks.check_dataset(project))
    run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"), cwd=project.root)
    finding = only(checks.check_dataset(project))
    assert (finding.state, finding.result.endswith("stays in the DVC remote")) == ("ok", True)
    (project.root / "data.dvc").unlink()
    finding = only(checks.check_dataset(project))
    assert (finding.state, finding.advice) == ("error", "`diptych data import`, or `diptych data scenes`.")


def test_an_interrupted_change_of_the_dataset_is_told(project: Workspace) -> None:
    begin(project)
    finding = only(checks.check_dataset(project))
    assert (finding.state, finding.result) == ("warning", "a change of it was interrupted")
    assert "goes back to the version before" in finding.advice


def test_a_remote_is_none_or_there_or_gone(project: Workspace, tmp_path: Path) -> None:
    assert only(checks.check_remote(project)).state == "warning"
    (tmp_path / "backup").mkdir()
    run("dvc", "remote", "add", "--default", "backup", str(tmp_path / "backup"), cwd=project.root)
    commit(project.root)
    assert only(checks.check_remote(project)) == Finding("dvc remote", "ok", "backup")
    (tmp_path / "backup").rmdir()
    finding = only(checks.check_remote(project))
    assert (finding.state, str(tmp_path / "backup") in finding.result) == ("error", True)


def test_proxies_are_shown_without_their_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(checks.check_proxy()) == Finding("proxy", "ok", "none is set")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{proxy.getsockname()[1]}")
        finding = only(checks.check_proxy())
        assert (finding.state, "goes around it" in finding.result) == ("ok", True)
        monkeypatch.setenv("no_proxy", "localhost,*")
        assert only(checks.check_proxy()).state == "warning"
    gone = only(checks.check_proxy())
    assert gone.state == "warning"
    assert gone.result.startswith("nobody answers at http_proxy=http://127.0.0.1:")
    assert "secret" not in str([finding, gone])


def test_a_locked_store_and_a_deleted_experiment_are_reported(
    project: Workspace, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "ANSWER_TIMEOUT", 0.1)
    project.local.mkdir(exist_ok=True)
    shutil.copy(mlflow_store, project.local / "mlflow.db")
    client, number = connect(project, Params())
    with closing(sqlite3.connect(project.local / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DiptychError, match="database is locked"):
            list(checks.check_mlflow(project, Params()))
    client.delete_experiment(number)
    with pytest.raises(DiptychError, match="mlflow experiments restore"):
        list(checks.check_mlflow(project, Params()))


def champion(project: Workspace) -> Finding:
    """The finding of the champion, beside that of MLflow."""
    mlflow, found = checks.check_mlflow(project, Params())
    assert (mlflow.name, mlflow.state) == ("mlflow", "ok")
    return found


def test_the_champion_is_examined_where_there_are_models(project: Workspace, mlflow_store: Path) -> None:
    assert champion(project) == Finding("champion", "ok", "no model yet")
    project.local.mkdir(exist_ok=True)
    shutil.copy(mlflow_store, project.local / "mlflow.db")
    client = connect(project, Params())[0]
    client.create_registered_model("diptych")
    assert champion(project) == Finding("champion", "ok", "no model yet")
    client.create_model_version("diptych", str(project.root))
    assert champion(project).advice == "`diptych promote`."
    client.set_registered_model_alias("diptych", "champion", "1")
    assert champion(project) == Finding("champion", "ok", "diptych version 1")
    client.create_model_version("diptych", str(project.root / "gone"))
    client.set_registered_model_alias("diptych", "champion", "2")
    assert f"there is no {project.root / 'gone'}" in champion(project).result


def test_a_device_that_is_not_here_is_an_error() -> None:
    with pytest.raises(DiptychError, match="device is mps"):
        only(checks.check_device(Params(device="mps")))
    finding = only(checks.check_device(Params(device="cpu", threads=3)))
    assert finding == Finding("device", "ok", "cpu, float32, 3 CPU threads")


def test_a_gpu_that_came_after_the_installation_lacks_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.model.device.choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    finding = only(checks.check_device(Params(train=Train(precision="no"))))
    assert (finding.state, finding.advice) == ("warning", "`make setup GPU=1`.")
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    assert only(checks.check_device(Params(train=Train(precision="no")))).state == "ok"


def test_little_space_is_a_warning(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**30, 2**30))
    finding = only(checks.check_disk(project))
    assert finding.state == "warning"
    assert finding.result.startswith("1.0 GiB free")


def test_packages_other_than_locked_are_a_warning(project: Workspace) -> None:
    lock = project.root / "requirements.lock"
    here = version("click")
    lock.write_text(f'click==0.1 ; python_version < "3"\nclick=={here} ; python_version > "3"\nno-such-package==1\n')
    assert only(checks.check_packages(project)).state == "ok"
    lock.write_text("click==0.1 \\\n    --hash=sha256:00\n")
    finding = only(checks.check_packages(project))
    assert (finding.state, finding.advice) == ("warning", "`make setup`.")
    assert f"click {here}, not 0.1" in finding.result


def test_without_a_server_there_is_no_schedule(project: Workspace) -> None:
    prefect, schedule = checks.check_prefect(project)
    assert (prefect.state, schedule.state) == ("ok", "ok")
    assert "PREFECT_API_URL" in prefect.result
    assert schedule.result == "none: schedules need a Prefect server"


def test_towers_from_scratch_need_nothing() -> None:
    expected = Finding("towers", "ok", "image: from scratch; text: from scratch")
    assert only(checks.check_towers(Params())) == expected
