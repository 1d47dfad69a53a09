"""`diptych run`, `stage` and `register`, and the summary that a run prints at its end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import diptych
from fake_project import PARAMS

from diptych.cli import chain
from diptych.cli.chain import summarize
from diptych.config import Params
from diptych.orchestration import server as prefect_server
from diptych.project.processes import holding
from diptych.project.workspace import Workspace
from diptych.registry import register
from diptych.stages import preprocess

RECALLS = {"recall@1": 12.34, "recall@5": 20.0, "recall@10": 30.0, "median_rank": 4.0}
SUMMARY: dict[str, Any] = {
    "data": "present",
    "inbox": ["drop may brings 3 images and 6 captions"],
    "why": ["There are 3.0 % more images."],
    "stages": {"validate": "reused", "preprocess": "reused", "train": "ran", "evaluate": "ran"},
    "metrics": {
        "towers": {"i2t": RECALLS, "t2i": RECALLS, "rsum": 120.04},
        "reranked": {"i2t": RECALLS, "t2i": RECALLS, "rsum": 130.0},
    },
    "version": {"name": "diptych", "version": "3", "created": True},
    "decision": {"outcome": "not asked", "why": "", "champion": "2"},
    "tracking_uri": "sqlite:////w s/mlflow.db",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PREFECT_API_URL", "http://ann:hunter2@127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer"),
        ("PREFECT_API_URL", "foo", "foo is no address"),
        ("PREFECT_API_URL", "http://[", "Invalid IPv6 URL"),
        ("PREFECT_LOGGING_LEVEL", "LOUD", "Prefect cannot start: PREFECT_LOGGING_LEVEL: Input should be"),
        ("SSL_CERT_FILE", "/nowhere", "/nowhere cannot be read as certificates"),
    ],
)
def test_what_keeps_prefect_from_starting_ends_a_run_at_once_with_where_it_is_set(inside, name, value, message):
    (inside.root / "flows").mkdir()
    (inside.root / "flows" / "retrain.py").write_text("retrain = None\n")

    # In another process: Prefect reads its settings when it is first imported.
    answer = subprocess.run(
        [sys.executable, "-m", "diptych", "run"], env={**os.environ, name: value}, capture_output=True, text=True
    )

    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert name in last
    assert "hunter2" not in last


@pytest.mark.parametrize("command", [["run"], ["register"], ["stage", "train"]])
@pytest.mark.parametrize(("content", "key"), [("sede: 1", "sede: unknown key"), ("seed: one", "seed: input should be")])
def test_wrong_params_are_refused_before_any_work(inside, capsys, command, content, key):
    inside.params.write_text(content)

    assert diptych(*command) == 1
    assert key in capsys.readouterr().err


def test_a_stage_runs_on_the_projects_params(inside, monkeypatch):
    seen = []
    monkeypatch.setattr(preprocess, "run", lambda workspace, params: seen.append((workspace, params.seed)))
    inside.params.write_text(PARAMS.replace("seed: 0", "seed: 5"))

    assert diptych("stage", "preprocess") == 0
    assert seen == [(inside, 5)]


def test_a_second_run_says_who_holds_the_workspace(inside, capsys):
    with inside.held("diptych run"):
        codes = [diptych(*command) for command in (["run"], ["register"], ["stage", "train"], ["data", "scenes"])]

    lines = capsys.readouterr().err.splitlines()
    assert codes == [1, 1, 1, 1]
    assert all("in use by `diptych run` (process" in line for line in lines)


def test_a_stage_works_beneath_the_run_that_holds_the_workspace(inside, monkeypatch):
    monkeypatch.setattr(preprocess, "run", lambda workspace, params: None)

    with holding(inside, "diptych run"):
        assert diptych("stage", "preprocess") == 0


def test_the_version_is_printed_for_people_and_for_programs(inside, monkeypatch, capsys):
    version = register.RegisteredVersion(
        "diptych", "3", ["challenger"], False, "run", "1", "models:/diptych/3", {"towers/rsum": 1.0}, {}
    )
    monkeypatch.setattr(register, "register", lambda workspace, params: version)

    assert diptych("register") == 0
    assert capsys.readouterr().out == "diptych version 3 (challenger): registered already, as it is\n"
    assert diptych("register", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"towers/rsum": 1.0}


def test_the_flow_is_the_projects_own(inside, monkeypatch, capsys):
    (inside.root / "flows").mkdir()
    (inside.root / "flows" / "retrain.py").write_text(
        "def retrain(force, promotion, inbox):\n"
        "    return {'data': 'present', 'inbox': [], 'why': [], 'stages': {},\n"
        "            'metrics': {}, 'tracking_uri': f'{force} {promotion}',\n"
        "            'decision': {'outcome': 'not asked', 'why': '', 'champion': None},\n"
        "            'version': {'name': 'diptych', 'version': '1', 'created': True}}\n"
    )
    inside.presets.mkdir()
    (inside.presets / "small.yaml").write_text(PARAMS.replace("seed: 0", "seed: 9"))
    # A flow of this kind needs no server, which would take seconds to start.
    monkeypatch.setattr(prefect_server, "ready", lambda root: None)

    assert diptych("run", "--json", "--force", "--preset", "small") == 0
    assert json.loads(capsys.readouterr().out)["tracking_uri"] == "True never"
    assert "seed: 9" in inside.params.read_text()
    assert diptych("run") == 0
    assert "version    diptych 1 (challenger), new" in capsys.readouterr().out


@pytest.fixture
def unchanged(inside, no_servers, monkeypatch):
    """A project whose next run is known to find nothing to do, and without a flow."""
    monkeypatch.setattr(chain, "find_idle_summary", lambda *arguments: SUMMARY)
    return inside


def test_where_nothing_has_changed_no_flow_is_started(unchanged, capsys):
    assert diptych("run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == SUMMARY


@pytest.mark.parametrize(("arguments", "server"), [(["--force"], ""), ([], "http://127.0.0.1:9/api")])
def test_a_forced_run_and_one_with_a_server_start_the_flow_without_asking(
    unchanged, arguments, server, monkeypatch, capsys
):
    monkeypatch.setenv("PREFECT_API_URL", server)

    assert diptych("run", *arguments) == 1
    assert "flows/retrain.py is missing" in capsys.readouterr().err


def test_what_a_run_with_nothing_to_do_needs_imports_nothing_heavy():
    program = "import sys, diptych.cli.main, diptych.cli.chain; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    heavy = {"mlflow", "prefect", "torch", "great_expectations", "numpy", "PIL", "pandas", "sqlalchemy", "dvc"}
    assert heavy.isdisjoint(modules)


def test_a_project_without_its_flow_says_so(inside, capsys):
    assert diptych("run") == 1
    assert "flows/retrain.py is missing; it is part of the project. Bring back a copy" in capsys.readouterr().err


def test_the_summary_tells_what_ran_what_was_reused_and_how_well_the_model_does(tmp_path):
    text = summarize(SUMMARY, Workspace(tmp_path), Params())

    assert "ran        train, evaluate" in text
    assert "reused     validate, preprocess" in text
    assert "towers     RSUM 120.0, recall@1 i2t 12.3, t2i 12.3" in text
    assert "re-ranked  RSUM 130.0" in text
    assert "inbox      drop may brings 3 images and 6 captions" in text
    assert "why        There are 3.0 % more images." in text
    assert "version    diptych 3 (challenger), new" in text


def test_the_summary_of_a_model_without_a_trained_fusion_has_no_re_ranked_stage(tmp_path):
    metrics = SUMMARY["metrics"] | {"qb_norm": SUMMARY["metrics"]["reranked"]}
    params = Params.model_validate({"train": {"objectives": {"itm": 0.0}}})

    text = summarize({**SUMMARY, "metrics": metrics}, Workspace(tmp_path), params)

    assert "qb_norm    RSUM 130.0" in text
    assert "re-ranked" not in text


def test_the_summary_warns_of_a_version_that_cannot_be_made_again(tmp_path):
    version = SUMMARY["version"] | {"tags": {"not_reproducible": "made with uncommitted changes of photos/"}}

    warning = "warning    `diptych reproduce` cannot make it again: made with uncommitted changes of photos/"
    assert warning in summarize({**SUMMARY, "version": version}, Workspace(tmp_path), Params())
    assert "warning" not in summarize(SUMMARY, Workspace(tmp_path), Params())


def test_the_summary_tells_which_version_is_the_champion_and_the_outcome_of_the_new_one(tmp_path):
    def said(**decision):
        text = summarize(
            {**SUMMARY, "decision": {"champion": None, "why": "", **decision}}, Workspace(tmp_path), Params()
        )
        return next(line for line in text.splitlines() if line.startswith("champion"))[11:]

    assert said(outcome="not asked", champion="2") == "version 2"
    assert said(outcome="not asked") == "none yet: `diptych promote`"
    assert said(outcome="promoted", champion="3", why="RSUM +2.0") == "version 3, promoted: RSUM +2.0"
    assert said(outcome="rejected", champion="2", why="worse") == "version 2; the new one does not become it: worse"
    assert said(outcome="accepted", champion="2").endswith("the new one may become it: `diptych promote`")


def test_the_summary_tells_when_nothing_ran(tmp_path):
    stages = dict.fromkeys(SUMMARY["stages"], "reused")
    version = {**SUMMARY["version"], "created": False}

    text = summarize({**SUMMARY, "stages": stages, "version": version}, Workspace(tmp_path), Params())

    assert "ran        nothing" in text
    assert "diptych 3 (challenger), known already" in text


def test_a_run_that_did_not_train_says_how_to_train_all_the_same(tmp_path):
    stages = {**dict.fromkeys(SUMMARY["stages"], "not needed"), "validate": "ran"}
    summary = {name: SUMMARY[name] for name in ("data", "inbox")} | {"stages": stages, "why": ["Too few."]}

    text = summarize(summary, Workspace(tmp_path), Params())

    assert "why        Too few." in text
    assert text.endswith("next       `diptych run --force` trains all the same")


def test_the_commands_in_the_summary_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))

    text = summarize(SUMMARY, Workspace(Path.cwd()), Params())

    assert ".venv/bin/mlflow ui --backend-store-uri 'sqlite:////w s/mlflow.db'" in text
    assert "xdg-open reports/report.html" in text


def test_a_server_has_its_own_page_and_its_password_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")

    text = summarize({**SUMMARY, "tracking_uri": "https://me:secret@mlflow.example"}, Workspace(tmp_path), Params())

    assert "MLflow     https://mlflow.example" in text
    assert "secret" not in text
    assert "report     open " in text
