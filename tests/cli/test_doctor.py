"""The doctor: the state of each thing that a run depends on, and how to repair it."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections import namedtuple
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from fake_project import commit, run
from prefect.settings import PREFECT_API_URL, temporary_settings

from diptych.cli import checks
from diptych.cli import main as cli
from diptych.cli.checks import Finding
from diptych.cli.doctor import examine, render
from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry import answering
from diptych.registry.connection import connect


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def examined(workspace: Workspace) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(workspace)}


def test_a_project_as_it_should_be_has_no_errors(project: Workspace) -> None:
    findings = examined(project)
    assert list(findings) == [
        *("params", "workspace", "git", "dataset", "dvc remote", "towers", "mlflow", "champion", "proxy", "prefect"),
        *("schedule", "device", "disk", "packages"),
    ]
    assert [finding.name for finding in findings.values() if finding.state == "error"] == []
    # Neither is made by looking.
    assert not (project.local / "mlflow.db").exists()
    assert "which the first training makes" in findings["mlflow"].result
    assert "a run has all it needs" in render(list(findings.values())).lower()


def test_wrong_params_are_reported_and_the_rest_is_examined(project: Workspace) -> None:
    project.params.write_text("sede: 1")
    findings = examined(project)
    assert findings["params"].state == "error"
    assert "sede" in findings["params"].result
    # What the defaults would tell is of another project.
    assert not {"towers", "mlflow", "champion", "device"} & set(findings)
    assert f"1 of {len(findings)} checks failed." in render(list(findings.values()))


def test_a_run_that_is_at_work_is_reported(project: Workspace) -> None:
    assert examined(project)["workspace"].state == "ok"
    with Workspace(project.root).held("diptych run"):
        findings = examined(project)
    finding = findings["workspace"]
    assert render(list(findings.values())).endswith("once the present one has ended.")
    assert (finding.state, "in use by `diptych run`" in finding.result) == ("warning", True)


def test_uncommitted_changes_are_a_warning(project: Workspace) -> None:
    assert examined(project)["git"].state == "ok"
    # What a run changes is recorded with it.
    project.params.write_text(project.params.read_text() + "\n")
    assert examined(project)["git"].state == "ok"
    (project.root / "stage.py").write_text("")
    assert examined(project)["git"].state == "warning"
    assert examined(project)["git"].result.endswith("made again: stage.py")


def test_a_repository_that_git_refuses_is_reported_in_its_words_and_never_made_anew(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    finding = examined(project)["git"]
    assert (finding.state, "dubious ownership" in finding.result) == ("error", True)
    assert f"`git config --global --add safe.directory {project.root}`" in finding.advice
    assert "git init" not in finding.advice


def test_a_project_outside_of_git_may_be_meant_to_be(project: Workspace) -> None:
    shutil.rmtree(project.root / ".git")
    finding = examined(project)["git"]
    assert (finding.state, "dvc config core.no_scm true" in finding.advice) == ("error", True)
    run("dvc", "config", "core.no_scm", "true", cwd=project.root)
    assert examined(project)["git"].state == "warning"


def test_converted_line_endings_are_a_warning_whose_commands_restore_them_and_keep_edits(project: Workspace) -> None:
    def git(*arguments: str) -> None:
        run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", *arguments, cwd=project.root)

    before = (project.root / "stage.py").read_bytes()
    git("config", "core.autocrlf", "true")
    git("rm", "-rq", "--cached", ".")
    git("reset", "--quiet", "--hard")
    with (project.root / "dvc.yaml").open("a") as file:
        file.write("# mine\n")
    finding = examined(project)["git"]
    assert (finding.state, finding.result.startswith("line endings of ")) == ("warning", True)
    assert "`* -text` in .gitattributes" in finding.advice
    (project.root / ".gitattributes").write_text("* -text\n")
    git("add", ".gitattributes")
    git("commit", "--quiet", "--message", "x")
    finding = examined(project)["git"]
    assert ".gitattributes" not in finding.advice
    assert finding.result.endswith("made again: dvc.yaml")
    run("bash", "-c", finding.advice.splitlines()[0].strip("`."), cwd=project.root)
    assert (project.root / "stage.py").read_bytes() == before
    assert (project.root / "dvc.yaml").read_bytes().endswith(b"# mine\n")
    assert examined(project)["git"].result.endswith("made again: dvc.yaml")


def test_a_dataset_is_here_or_recorded_or_missing(project: Workspace) -> None:
    assert examined(project)["dataset"].state == "ok"
    shutil.rmtree(project.data)
    assert "recorded, but not here" in examined(project)["dataset"].result
    (project.root / "data.dvc").unlink()
    finding = examined(project)["dataset"]
    assert (finding.state, finding.advice) == ("error", "`diptych data import`, or `diptych data scenes`.")


def test_a_remote_is_none_or_there_or_gone(project: Workspace, tmp_path: Path) -> None:
    assert examined(project)["dvc remote"].state == "warning"
    (tmp_path / "backup").mkdir()
    run("dvc", "remote", "add", "--default", "backup", str(tmp_path / "backup"), cwd=project.root)
    commit(project.root)
    assert examined(project)["dvc remote"] == Finding("dvc remote", "ok", "backup")
    (tmp_path / "backup").rmdir()
    finding = examined(project)["dvc remote"]
    assert (finding.state, str(tmp_path / "backup") in finding.result) == ("error", True)


def test_towers_that_are_not_here_are_an_error_with_the_way_to_get_them(project: Workspace) -> None:
    text = project.params.read_text()
    project.params.write_text(text.replace("pretrained: null", "pretrained: ./weights/none", 1))
    finding = examined(project)["towers"]
    assert finding.state == "error"
    assert "diptych weights offline" in finding.result


def test_servers_that_do_not_answer_are_errors(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    prefect = "http://user:secret@127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", prefect)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    # Prefect has read the environment when it was imported.
    with temporary_settings({PREFECT_API_URL: prefect}):
        findings = examined(project)
    for name, advice in (("prefect", "unset PREFECT_API_URL"), ("mlflow", "MLFLOW_TRACKING_URI")):
        assert findings[name].state == "error"
        assert "does not answer" in findings[name].result
        assert advice in findings[name].result + findings[name].advice
    for name in ("schedule", "champion"):
        assert findings[name].state == "warning"
        assert "not checked" in findings[name].result
    assert "secret" not in render(list(findings.values()))


def test_proxies_are_shown_without_their_passwords(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examined(project)["proxy"] == Finding("proxy", "ok", "none is set")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{proxy.getsockname()[1]}")
        finding = examined(project)["proxy"]
        assert (finding.state, "goes around it" in finding.result) == ("ok", True)
        monkeypatch.setenv("no_proxy", "localhost,*")
        assert examined(project)["proxy"].state == "warning"
    gone = examined(project)["proxy"]
    assert gone.state == "warning"
    assert gone.result.startswith("nobody answers at http_proxy=http://127.0.0.1:")
    assert "secret" not in str([finding, gone])


def test_a_check_that_fails_unexpectedly_is_an_error_and_the_others_are_made(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("https://me:secret@host is no address")

    monkeypatch.setattr(checks, "check_dataset", fail)
    findings = examined(project)

    assert findings["dataset"].state == "error"
    assert "KeyError" in findings["dataset"].result
    assert "secret" not in findings["dataset"].result
    assert list(findings)[-1] == "packages"


def test_a_locked_store_and_a_deleted_experiment_are_reported(
    project: Workspace, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "ANSWER_TIMEOUT", 0.1)
    project.local.mkdir(exist_ok=True)
    shutil.copy(mlflow_store, project.local / "mlflow.db")
    client, number = connect(project, Params())
    with closing(sqlite3.connect(project.local / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in examined(project)["mlflow"].result
    client.delete_experiment(number)
    assert "mlflow experiments restore" in examined(project)["mlflow"].result


def test_the_champion_is_examined_where_there_are_models(project: Workspace, mlflow_store: Path) -> None:
    assert examined(project)["champion"] == Finding("champion", "ok", "no model yet")
    project.local.mkdir(exist_ok=True)
    shutil.copy(mlflow_store, project.local / "mlflow.db")
    client = connect(project, Params())[0]
    client.create_registered_model("diptych")
    assert examined(project)["champion"] == Finding("champion", "ok", "no model yet")
    client.create_model_version("diptych", str(project.root))
    assert examined(project)["champion"].advice == "`diptych promote`."
    client.set_registered_model_alias("diptych", "champion", "1")
    assert examined(project)["champion"] == Finding("champion", "ok", "diptych version 1")
    client.create_model_version("diptych", str(project.root / "gone"))
    client.set_registered_model_alias("diptych", "champion", "2")
    assert f"there is no {project.root / 'gone'}" in examined(project)["champion"].result


def test_a_device_that_is_not_here_is_an_error(project: Workspace) -> None:
    project.params.write_text(project.params.read_text().replace("device: auto", "device: mps"))
    finding = examined(project)["device"]
    assert (finding.state, "device is mps" in finding.result) == ("error", True)


def test_little_space_is_a_warning(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**30, 2**30))
    finding = examined(project)["disk"]
    assert finding.state == "warning"
    assert finding.result.startswith("1.0 GiB free")


def test_packages_other_than_locked_are_a_warning(project: Workspace) -> None:
    lock = project.root / "requirements.lock"
    here = version("click")
    lock.write_text(f'click==0.1 ; python_version < "3"\nclick=={here} ; python_version > "3"\nno-such-package==1\n')
    assert examined(project)["packages"].state == "ok"
    lock.write_text("click==0.1 \\\n    --hash=sha256:00\n")
    finding = examined(project)["packages"]
    assert (finding.state, finding.advice) == ("warning", "`make setup`.")
    assert f"click {here}, not 0.1" in finding.result


def test_the_command_fails_with_an_error_and_prints_json(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.root)
    for broken, code in ((False, 0), (True, 1)):
        if broken:
            project.params.write_text("sede: 1")
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", "--json"])
        assert ended.value.code == code
        findings = json.loads(capsys.readouterr().out)
        assert {tuple(finding) for finding in findings} == {("name", "state", "found", "mend")}
