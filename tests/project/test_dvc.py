"""DVC's commands: which stage ran, and the message of a failure."""

import os
import signal
import subprocess
import sys
import time

import pytest
from waiting import dies

from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.leftovers import repair


def test_a_stage_runs_once_and_is_then_reused(project):
    lines: list[str] = []

    first = dvc.reproduce(project, "validate", force=False, on_line=lines.append)
    again = dvc.reproduce(project, "validate", force=False, on_line=lines.append)

    assert (first, again) == (True, False)
    assert "> exec python stage.py validate" in lines
    assert not any("git add" in line for line in lines)
    assert "validate" not in dvc.status(project)


def test_force_runs_a_stage_that_has_not_changed(project):
    dvc.reproduce(project, "validate", force=False, on_line=print)

    assert dvc.reproduce(project, "validate", force=True, on_line=print)


def test_a_failure_has_the_stages_own_message(project, monkeypatch):
    monkeypatch.setenv("FAIL", "validate")

    with pytest.raises(DiptychError) as caught:
        dvc.reproduce(project, "validate", force=False, on_line=print)

    assert str(caught.value) == "stage validate failed: captions.json, row 3: it is broken\n  mend it"


def test_a_failure_of_dvc_itself_has_dvcs_message(project):
    with pytest.raises(DiptychError, match="no-such-stage"):
        dvc.reproduce(project, "no-such-stage", force=False, on_line=print)


def test_a_dvc_that_was_killed_is_reported_as_such(project, monkeypatch):
    monkeypatch.setattr(dvc, "stream", lambda *arguments: -9)

    with pytest.raises(DiptychError, match=r"stage train was killed \(signal 9\)\. Run again"):
        dvc.reproduce(project, "train", force=False, on_line=print)


@pytest.mark.parametrize(("output", "reason"), [([], "no output"), (["one", "two"], "two")])
def test_a_stage_that_prints_no_error_still_fails_with_a_message(project, monkeypatch, output, reason):
    def stream(command, folder, on_line, environment=None):
        for line in output:
            on_line(line)
        return 1

    monkeypatch.setattr(dvc, "stream", stream)

    with pytest.raises(DiptychError, match=f"stage train failed: {reason}"):
        dvc.reproduce(project, "train", force=False, on_line=print)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_killed_run_leaves_no_orphan_and_the_next_one_works(project, shell):
    code = "from pathlib import Path; import sys; from diptych.project import dvc\n"
    code += "from diptych.project.workspace import Workspace\n"
    code += "dvc.reproduce(Workspace(Path(sys.argv[1])), 'validate', force=False, on_line=print)"
    stage = (project.root / "stage.py").read_text()
    follow = "from diptych.project.processes import die_with_dvc; die_with_dvc()\n"
    (project.root / "stage.py").write_text(follow + stage)
    environment = {**os.environ, "SLEEP": "validate", "SHELL": shell}
    run = subprocess.Popen([sys.executable, "-c", code, project.root], env=environment)
    note = project.root / "sleeping"
    while not (note.exists() and note.read_text()):
        time.sleep(0.02)

    run.send_signal(signal.SIGKILL)
    run.wait()

    assert dies(int(note.read_text()))
    repair(project)
    assert dvc.reproduce(project, "validate", force=False, on_line=print)
