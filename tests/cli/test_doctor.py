"""The doctor: what is found of each thing that a run depends on, and how to mend it."""

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

from diptych.cli import doctor
from diptych.cli import main as cli
from diptych.cli.doctor import Finding, examine, render
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


def found(workspace: Workspace) -> dict[str, Finding]:
    return {one.name: one for one in examine(workspace)}


def test_a_project_as_it_should_be_has_no_errors(project: Workspace) -> None:
    findings = found(project)
    assert list(findings) == [
        *("params", "workspace", "git", "dataset", "dvc remote", "towers", "mlflow", "champion", "proxy", "prefect"),
        *("schedule", "device", "disk", "packages"),
    ]
    assert [one.name for one in findings.values() if one.state == "error"] == []
    # Neither is made by looking.
    assert not (project.local / "mlflow.db").exists()
    assert "which the first training makes" in findings["mlflow"].found
    assert "a run has all it needs" in render(list(findings.values())).lower()


def test_wrong_params_are_told_and_the_rest_is_examined(project: Workspace) -> None:
    project.params.write_text("sede: 1")
    findings = found(project)
    assert findings["params"].state == "error"
    assert "sede" in findings["params"].found
    # What the defaults would tell is of another project.
    assert not {"towers", "mlflow", "champion", "device"} & set(findings)
    assert f"1 of {len(findings)} checks failed." in render(list(findings.values()))


def test_a_run_that_is_at_work_is_told(project: Workspace) -> None:
    assert found(project)["workspace"].state == "ok"
    with Workspace(project.root).held("diptych run"):
        finding = found(project)["workspace"]
    assert (finding.state, "in use by `diptych run`" in finding.found) == ("warning", True)


def test_uncommitted_changes_are_a_warning(project: Workspace) -> None:
    assert found(project)["git"].state == "ok"
    # What a run changes is recorded with it.
    project.params.write_text(project.params.read_text() + "\n")
    assert found(project)["git"].state == "ok"
    (project.root / "stage.py").write_text("")
    assert found(project)["git"].state == "warning"
    assert found(project)["git"].found.endswith("made again: stage.py")


def test_a_repository_that_git_refuses_is_told_in_its_words_and_never_made_anew(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    finding = found(project)["git"]
    assert (finding.state, "dubious ownership" in finding.found) == ("error", True)
    assert f"`git config --global --add safe.directory {project.root}`" in finding.mend
    assert "git init" not in finding.mend


def test_a_project_outside_of_git_may_be_meant_to_be(project: Workspace) -> None:
    shutil.rmtree(project.root / ".git")
    finding = found(project)["git"]
    assert (finding.state, "dvc config core.no_scm true" in finding.mend) == ("error", True)
    run("dvc", "config", "core.no_scm", "true", cwd=project.root)
    assert found(project)["git"].state == "warning"


def test_converted_line_endings_are_a_warning_whose_commands_restore_them_and_keep_edits(project: Workspace) -> None:
    def git(*arguments: str) -> None:
        run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", *arguments, cwd=project.root)

    before = (project.root / "stage.py").read_bytes()
    git("config", "core.autocrlf", "true")
    git("rm", "-rq", "--cached", ".")
    git("reset", "--quiet", "--hard")
    with (project.root / "dvc.yaml").open("a") as file:
        file.write("# mine\n")
    finding = found(project)["git"]
    assert (finding.state, finding.found.startswith("line endings of ")) == ("warning", True)
    assert "`* -text` in .gitattributes" in finding.mend
    (project.root / ".gitattributes").write_text("* -text\n")
    git("add", ".gitattributes")
    git("commit", "--quiet", "--message", "x")
    mend = found(project)["git"].mend
    assert ".gitattributes" not in mend
    run("bash", "-c", mend.strip("`."), cwd=project.root)
    assert (project.root / "stage.py").read_bytes() == before
    assert (project.root / "dvc.yaml").read_bytes().endswith(b"# mine\n")
    assert found(project)["git"].found.endswith("made again: dvc.yaml")


def test_a_dataset_is_here_or_recorded_or_missing(project: Workspace) -> None:
    assert found(project)["dataset"].state == "ok"
    shutil.rmtree(project.data)
    assert "recorded, but not here" in found(project)["dataset"].found
    (project.root / "data.dvc").unlink()
    finding = found(project)["dataset"]
    assert (finding.state, finding.mend) == ("error", "`diptych data import`, or `diptych data scenes`.")


def test_a_remote_is_none_or_there_or_gone(project: Workspace, tmp_path: Path) -> None:
    assert found(project)["dvc remote"].state == "warning"
    (tmp_path / "backup").mkdir()
    run("dvc", "remote", "add", "--default", "backup", str(tmp_path / "backup"), cwd=project.root)
    commit(project.root)
    assert found(project)["dvc remote"] == Finding("dvc remote", "ok", "backup")
    (tmp_path / "backup").rmdir()
    finding = found(project)["dvc remote"]
    assert (finding.state, str(tmp_path / "backup") in finding.found) == ("error", True)


def test_towers_that_are_not_here_are_an_error_with_the_way_to_get_them(project: Workspace) -> None:
    text = project.params.read_text()
    project.params.write_text(text.replace("pretrained: null", "pretrained: ./weights/none", 1))
    finding = found(project)["towers"]
    assert finding.state == "error"
    assert "diptych weights offline" in finding.found


def test_servers_that_do_not_answer_are_errors(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    prefect = "http://user:secret@127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", prefect)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    # Prefect has read the environment when it was imported.
    with temporary_settings({PREFECT_API_URL: prefect}):
        findings = found(project)
    for name, mend in (("prefect", "unset PREFECT_API_URL"), ("mlflow", "MLFLOW_TRACKING_URI")):
        assert findings[name].state == "error"
        assert "does not answer" in findings[name].found
        assert mend in findings[name].found + findings[name].mend
    assert findings["schedule"].state == "warning"
    assert "secret" not in render(list(findings.values()))


def test_proxies_are_told_without_their_passwords(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(project)["proxy"] == Finding("proxy", "ok", "none is set")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{proxy.getsockname()[1]}")
        finding = found(project)["proxy"]
        assert (finding.state, "goes around it" in finding.found) == ("ok", True)
        monkeypatch.setenv("no_proxy", "localhost,*")
        assert found(project)["proxy"].state == "warning"
    gone = found(project)["proxy"]
    assert gone.state == "warning"
    assert gone.found.startswith("nobody answers at http_proxy=http://127.0.0.1:")
    assert "secret" not in str([finding, gone])


def test_a_check_that_fails_unexpectedly_is_an_error_and_the_others_are_made(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("https://me:secret@host is no address")

    monkeypatch.setattr(doctor, "_dataset", fail)
    findings = found(project)

    assert findings["dataset"].state == "error"
    assert "KeyError" in findings["dataset"].found
    assert "secret" not in findings["dataset"].found
    assert list(findings)[-1] == "packages"


def test_a_locked_store_and_a_deleted_experiment_are_told(
    project: Workspace, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "ANSWER_TIMEOUT", 0.1)
    project.local.mkdir(exist_ok=True)
    shutil.copy(mlflow_store, project.local / "mlflow.db")
    client, number = connect(project, Params())
    with closing(sqlite3.connect(project.local / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in found(project)["mlflow"].found
    client.delete_experiment(number)
    assert "mlflow experiments restore" in found(project)["mlflow"].found


def test_the_champion_is_told_of_where_there_are_models(project: Workspace, mlflow_store: Path) -> None:
    assert found(project)["champion"] == Finding("champion", "ok", "no model yet")
    project.local.mkdir(exist_ok=True)
    shutil.copy(mlflow_store, project.local / "mlflow.db")
    client = connect(project, Params())[0]
    client.create_registered_model("diptych")
    assert found(project)["champion"].mend == "`diptych promote`."
    client.create_model_version("diptych", str(project.root))
    client.set_registered_model_alias("diptych", "champion", "1")
    assert found(project)["champion"] == Finding("champion", "ok", "diptych version 1")
    client.create_model_version("diptych", str(project.root / "gone"))
    client.set_registered_model_alias("diptych", "champion", "2")
    assert f"there is no {project.root / 'gone'}" in found(project)["champion"].found


def test_a_device_that_is_not_here_is_an_error(project: Workspace) -> None:
    project.params.write_text(project.params.read_text().replace("device: auto", "device: mps"))
    finding = found(project)["device"]
    assert (finding.state, "device is mps" in finding.found) == ("error", True)


def test_little_space_is_a_warning(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**30, 2**30))
    finding = found(project)["disk"]
    assert finding.state == "warning"
    assert finding.found.startswith("1.0 GiB free")


def test_packages_other_than_locked_are_a_warning(project: Workspace) -> None:
    lock = project.root / "requirements.lock"
    here = version("click")
    lock.write_text(f'click==0.1 ; python_version < "3"\nclick=={here} ; python_version > "3"\nno-such-package==1\n')
    assert found(project)["packages"].state == "ok"
    lock.write_text("click==0.1 \\\n    --hash=sha256:00\n")
    finding = found(project)["packages"]
    assert (finding.state, finding.mend) == ("warning", "`make setup`.")
    assert f"click {here}, not 0.1" in finding.found


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
        assert {tuple(one) for one in findings} == {("name", "state", "found", "mend")}
