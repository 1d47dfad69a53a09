"""DVC's commands: what ran, what a failure says, and a dataset that comes from wherever it can."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from fake_project import commit, run
from waiting import dies

from diptych.data.scenes.drawing import write_scenes
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.git import git
from diptych.project.workspace import Workspace


@pytest.fixture
def scenes(project):
    """The project with six scenes as its dataset, recorded as such."""
    shutil.rmtree(project.data)
    write_scenes(project.data, train=4, val=1, test=1, size=32)
    dvc.record_dataset(project)
    return project


def recorded(project) -> dict:
    return yaml.safe_load((project.root / "data.dvc").read_text())


def forget_cache(project) -> None:
    shutil.rmtree(project.root / ".dvc" / "cache")


def test_a_stage_runs_once_and_is_then_reused(project):
    lines = []

    first = dvc.reproduce(project, "validate", force=False, on_line=lines.append)
    again = dvc.reproduce(project, "validate", force=False, on_line=lines.append)

    assert (first, again) == (True, False)
    assert "> exec python stage.py validate" in lines
    assert not any("git add" in line for line in lines)
    assert "validate" not in dvc.status(project)


def test_force_runs_a_stage_that_has_not_changed(project):
    dvc.reproduce(project, "validate", force=False, on_line=str)

    assert dvc.reproduce(project, "validate", force=True, on_line=str)


def test_a_failure_has_the_stages_own_message(project, monkeypatch):
    monkeypatch.setenv("FAIL", "validate")

    with pytest.raises(DiptychError) as caught:
        dvc.reproduce(project, "validate", force=False, on_line=str)

    assert str(caught.value) == "stage validate failed: captions.json, row 3: it is broken\n  mend it"


def test_a_failure_of_dvc_itself_has_dvcs_message(project):
    with pytest.raises(DiptychError, match="no-such-stage"):
        dvc.reproduce(project, "no-such-stage", force=False, on_line=str)


def test_a_dvc_that_was_killed_is_told_as_such(project, monkeypatch):
    monkeypatch.setattr(dvc, "stream", lambda *arguments: -9)

    with pytest.raises(DiptychError, match=r"stage train was killed \(signal 9\)\. Run again"):
        dvc.reproduce(project, "train", force=False, on_line=str)


def test_a_stage_that_says_nothing_still_fails_with_a_message():
    assert dvc._last_error([]) == "no output"
    assert dvc._last_error(["one", "two"]) == "two"


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
    dvc.mend(project)
    assert dvc.reproduce(project, "validate", force=False, on_line=str)


@pytest.mark.parametrize("rest", ["schema: '2.0'\n\t{", "schema: '2.0'\nstages:\n  validate:\n    c", "\xff", ""])
def test_a_lock_file_that_was_cut_off_costs_no_computation(project, rest):
    dvc.reproduce(project, "validate", force=False, on_line=str)
    lock = project.root / "dvc.lock"
    lock.write_text(rest, encoding="latin-1")

    dvc.mend(project)

    assert not dvc.reproduce(project, "validate", force=False, on_line=str)
    assert "validate" in yaml.safe_load(lock.read_text())["stages"]


@pytest.mark.parametrize(
    "content", ['{"write": {"data": {"pid": 999999999, "cmd": "dvc repro"}}}', '{"write": {"da', "", "\x00\x01"]
)
def test_users_of_files_that_were_killed_are_forgotten(project, content):
    users = project.root / ".dvc" / "tmp" / "rwlock"
    users.parent.mkdir(exist_ok=True)
    users.write_text(content)

    dvc.mend(project)

    assert not users.exists()


def test_users_of_files_that_still_run_are_left_alone(project, monkeypatch):
    users = project.root / ".dvc" / "tmp" / "rwlock"
    users.parent.mkdir(exist_ok=True)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60) # dvc"])
    users.write_text(json.dumps({"write": {"data": {"pid": sleeper.pid, "cmd": "dvc repro"}}}))
    monkeypatch.setattr(dvc, "DYING", 0.1)

    dvc.mend(project)

    sleeper.kill()
    sleeper.wait()
    assert users.exists()


def test_users_of_files_that_are_about_to_end_are_waited_for(project):
    users = project.root / ".dvc" / "tmp" / "rwlock"
    users.parent.mkdir(exist_ok=True)
    ending = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1) # dvc"])
    users.write_text(json.dumps({"write": {"data": {"pid": ending.pid, "cmd": "dvc repro"}}}))

    dvc.mend(project)

    assert not users.exists()
    ending.wait()


def test_links_of_a_project_that_was_moved_lead_to_its_cache_again(project, tmp_path):
    run("dvc", "config", "cache.type", "symlink", cwd=project.root)
    run("dvc", "checkout", "--relink", "data.dvc", cwd=project.root)
    assert (project.data / "captions.json").is_symlink()
    moved = Workspace(project.root.rename(tmp_path / "moved"))
    assert not (moved.data / "captions.json").exists()

    dvc.mend(moved)

    assert dvc.bring_dataset(moved) == "present"


def test_a_dataset_that_is_there_is_present(project):
    assert dvc.bring_dataset(project) == "present"


def test_a_project_without_a_dataset_says_how_to_get_one(project):
    (project.root / "data.dvc").unlink()

    with pytest.raises(DiptychError, match="diptych data import"):
        dvc.bring_dataset(project)


def test_a_missing_dataset_comes_from_the_cache(project):
    shutil.rmtree(project.data)

    assert dvc.bring_dataset(project) == "taken from DVC's cache"
    assert (project.data / "captions.json").exists()


def test_a_missing_dataset_comes_from_the_remote(project, tmp_path):
    subprocess.run(["dvc", "remote", "add", "-d", "store", tmp_path / "store"], cwd=project.root, check=True)
    subprocess.run(["dvc", "push", "--quiet"], cwd=project.root, check=True)
    forget_cache(project)
    shutil.rmtree(project.data)

    assert dvc.bring_dataset(project) == "pulled from the DVC remote"
    assert (project.data / "captions.json").exists()


def test_a_dataset_that_nothing_can_bring_is_an_error(project):
    forget_cache(project)
    shutil.rmtree(project.data)

    with pytest.raises(DiptychError, match="neither DVC's cache nor a remote"):
        dvc.bring_dataset(project)


def test_missing_scenes_are_drawn_again_to_the_very_bytes(scenes):
    forget_cache(scenes)
    shutil.rmtree(scenes.data)
    before = (scenes.root / "data.dvc").read_bytes()

    assert dvc.bring_dataset(scenes) == "drawn: the embedded scenes"

    assert (scenes.root / "data.dvc").read_bytes() == before
    assert dvc.status(scenes, "data.dvc") == {}


def test_scenes_that_come_out_otherwise_are_not_kept(scenes):
    content = recorded(scenes)
    content["meta"]["scenes"]["seed"] = 7
    (scenes.root / "data.dvc").write_text(yaml.safe_dump(content))
    forget_cache(scenes)
    shutil.rmtree(scenes.data)

    with pytest.raises(DiptychError, match="The scenes drawn here are not those"):
        dvc.bring_dataset(scenes)

    assert not scenes.data.exists()


def test_data_that_no_version_holds_is_not_overwritten(project):
    (project.data / "captions.json").unlink()
    (project.data / "captions.json").write_text("mine")

    with pytest.raises(DiptychError, match="`dvc add data`"):
        dvc.bring_dataset(project)

    assert (project.data / "captions.json").read_text() == "mine"


def test_a_dataset_whose_cache_is_gone_is_kept_again(project):
    forget_cache(project)

    assert dvc.bring_dataset(project) == "present"

    assert dvc.status(project, "data.dvc") == {}


def test_changed_data_whose_cache_is_gone_is_not_taken_for_the_recorded(project):
    forget_cache(project)
    before = (project.root / "data.dvc").read_bytes()
    (project.data / "captions.json").unlink()
    (project.data / "captions.json").write_text("mine")

    with pytest.raises(DiptychError, match="`dvc add data`"):
        dvc.bring_dataset(project)

    assert (project.root / "data.dvc").read_bytes() == before


def test_the_record_tells_what_scenes_are_drawn_from(scenes):
    assert recorded(scenes)["meta"] == {"scenes": {"train": 4, "val": 1, "test": 1, "seed": 0, "size": 32}}


def test_data_that_replaces_scenes_is_not_recorded_as_scenes(scenes):
    (scenes.data / "captions.json").unlink()
    (scenes.data / "captions.json").write_text('{"info": {}, "images": [], "annotations": []}')

    dvc.record_dataset(scenes)

    assert "meta" not in recorded(scenes)


def test_without_dvc_nothing_is_recorded(tmp_path):
    from diptych.project.workspace import Workspace

    dvc.record_dataset(Workspace(tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_a_dataset_of_ones_own_is_brought_before_an_import_but_scenes_are_not(project, scenes):
    shutil.rmtree(scenes.data)

    dvc.bring_own_dataset(scenes)

    assert not scenes.data.exists()


def test_a_recorded_dataset_is_brought_before_an_import(project):
    shutil.rmtree(project.data)

    dvc.bring_own_dataset(project)

    assert project.data.exists()


def test_a_damaged_record_is_an_error(project):
    (project.root / "data.dvc").write_text("outs: [")

    with pytest.raises(DiptychError, match=r"data\.dvc is damaged"):
        dvc.bring_dataset(project)


def test_what_dvc_stages_for_git_says_what_the_data_are(scenes):
    commit(scenes.root)
    run("dvc", "config", "core.autostage", "true", cwd=scenes.root)
    (scenes.data / "captions.json").unlink()
    (scenes.data / "captions.json").write_text('{"info": {}, "images": [], "annotations": []}')

    dvc.record_dataset(scenes)

    assert "scenes" not in git(scenes.root, "show", ":data.dvc")
