"""Repair of what a killed run leaves behind."""

import json
import subprocess
import sys

import pytest
import yaml
from fake_project import run

from diptych.project import dvc, leftovers
from diptych.project.dataset import fetch_dataset
from diptych.project.leftovers import are_there, repair
from diptych.project.workspace import Workspace


@pytest.mark.parametrize("rest", ["schema: '2.0'\n\t{", "schema: '2.0'\nstages:\n  validate:\n    c", "\xff", ""])
def test_a_lock_file_that_was_cut_off_costs_no_computation(project, rest):
    dvc.reproduce(project, "validate", force=False, on_line=print)
    lock = project.root / "dvc.lock"
    lock.write_text(rest, encoding="latin-1")

    repair(project)

    assert not dvc.reproduce(project, "validate", force=False, on_line=print)
    assert "validate" in yaml.safe_load(lock.read_text())["stages"]


@pytest.mark.parametrize(
    "content", ['{"write": {"data": {"pid": 999999999, "cmd": "dvc repro"}}}', '{"write": {"da', "", "\x00\x01"]
)
def test_users_of_files_that_were_killed_are_forgotten(project, content):
    users = project.root / ".dvc" / "tmp" / "rwlock"
    users.parent.mkdir(exist_ok=True)
    users.write_text(content)
    assert are_there(project)

    repair(project)

    assert not users.exists()
    assert not are_there(project)


def test_what_dvc_leaves_after_its_end_needs_no_repair(project):
    dvc.reproduce(project, "validate", force=False, on_line=print)

    assert not are_there(project)


def test_users_of_files_that_still_run_are_left_alone(project, monkeypatch):
    users = project.root / ".dvc" / "tmp" / "rwlock"
    users.parent.mkdir(exist_ok=True)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60) # dvc"])
    users.write_text(json.dumps({"write": {"data": {"pid": sleeper.pid, "cmd": "dvc repro"}}}))
    monkeypatch.setattr(leftovers, "DYING", 0.1)

    repair(project)

    sleeper.kill()
    sleeper.wait()
    assert users.exists()


def test_users_of_files_that_are_about_to_end_are_waited_for(project):
    users = project.root / ".dvc" / "tmp" / "rwlock"
    users.parent.mkdir(exist_ok=True)
    ending = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1) # dvc"])
    users.write_text(json.dumps({"write": {"data": {"pid": ending.pid, "cmd": "dvc repro"}}}))

    repair(project)

    assert not users.exists()
    ending.wait()


def test_links_of_a_project_that_was_moved_lead_to_its_cache_again(project, tmp_path):
    run("dvc", "config", "cache.type", "symlink", cwd=project.root)
    run("dvc", "checkout", "--relink", "data.dvc", cwd=project.root)
    assert (project.data / "captions.json").is_symlink()
    moved = Workspace(project.root.rename(tmp_path / "moved"))
    assert not (moved.data / "captions.json").exists()
    assert are_there(moved)

    repair(moved)

    assert fetch_dataset(moved) == "present"
