"""The doctor: the state of each thing that a run depends on, and how to repair it."""

from __future__ import annotations

import json

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from diptych.cli import checks
from diptych.cli import main as cli
from diptych.cli.checks import Finding
from diptych.cli.doctor import examine, render
from diptych.project.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_servers")


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


def test_towers_that_are_not_here_are_an_error_with_the_way_to_get_them(project: Workspace) -> None:
    text = project.params.read_text()
    project.params.write_text(text.replace("pretrained: null", "pretrained: ./weights/none", 1))
    finding = examined(project)["towers"]
    assert finding.state == "error"
    assert "diptych weights offline" in finding.result


@pytest.mark.slow
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


def test_a_cluster_that_does_not_answer_is_an_error(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (finding,) = (one for one in examine(project) if one.name == "cluster")
    assert finding.state == "error"
    assert "RAY_ADDRESS is 127.0.0.1:1, where nothing answers" in finding.result


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
