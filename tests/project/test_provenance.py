"""Tags tell where a model comes from, or that it is not known."""

import hashlib
import re

from fake_project import commit

from diptych.project.provenance import git_dirty, git_sha, provenance
from diptych.project.workspace import Workspace


def test_a_committed_project_is_known_by_its_commit_and_its_files(project):
    (project.root / "dvc.lock").write_text("schema: '2.0'\n")
    project.model.mkdir(parents=True)
    (project.model / "model.safetensors").write_bytes(b"weights")

    tags = provenance(project)

    assert re.fullmatch(r"[0-9a-f]{40}", tags["git_sha"])
    assert re.fullmatch(r"[0-9a-f]{32}\.dir", tags["data_md5"])
    assert tags["params_sha256"] == hashlib.sha256(project.params.read_bytes()).hexdigest()
    assert tags["dvc_lock_sha256"] == hashlib.sha256(b"schema: '2.0'\n").hexdigest()
    assert tags["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    listed = f"model.safetensors {tags['weights_sha256']}"
    assert tags["model_sha256"] == hashlib.sha256(listed.encode()).hexdigest()


def test_a_run_that_wrote_dvc_lock_does_not_make_the_project_dirty(project):
    (project.root / "dvc.lock").write_text("schema: '2.0'\n")

    assert git_dirty(project.root) == "false"


def test_edits_and_new_files_make_it_dirty(project):
    (project.root / "new.py").touch()
    assert git_dirty(project.root) == "true"

    commit(project.root)
    assert git_dirty(project.root) == "false"

    project.params.write_text("seed: 1\n")
    assert git_dirty(project.root) == "true"


def test_outside_of_git_and_before_anything_ran_facts_are_unknown(tmp_path):
    names = ("git_sha", "git_dirty", "data_md5", "dvc_lock_sha256", "params_sha256")

    assert provenance(Workspace(tmp_path)) == dict.fromkeys(names, "unknown")


def test_without_git_the_commit_is_unknown(project, monkeypatch):
    monkeypatch.setenv("PATH", str(project.root))

    assert (git_sha(project.root), git_dirty(project.root)) == ("unknown", "unknown")


def test_what_a_hook_has_set_is_not_the_projects(project, monkeypatch, tmp_path):
    commit_of_project = git_sha(project.root)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))

    assert (git_sha(project.root), git_dirty(project.root)) == (commit_of_project, "false")
