"""A run is recorded as a commit that holds what it was made of, and nothing that is checked out notices."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fake_project import commit, run

from diptych.config import Params
from diptych.project import dvc, recording
from diptych.project.git import GitError
from diptych.project.git import git as run_git
from diptych.project.recording import BRANCH, is_published, publish_run, record_run, recorded_provenance
from diptych.project.workspace import Workspace
from diptych.registry.checkout import checked_out


def git(workspace: Workspace | Path, *arguments: str) -> str:
    root = workspace.root if isinstance(workspace, Workspace) else workspace
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def commits(workspace: Workspace) -> list[str]:
    """Return the commits of the branch, the newest first, without those of the project itself."""
    return git(workspace, "rev-list", BRANCH, "--not", "HEAD").split()


@pytest.fixture
def ran(project: Workspace) -> Workspace:
    """A project with what a run has changed."""
    (project.root / "dvc.lock").write_text("schema: '2.0'\n")
    project.params.write_text(project.params.read_text().replace("seed: 0", "seed: 7"))
    return project


def test_a_run_is_a_commit_of_head_with_the_files_that_it_changed(ran):
    recorded = record_run(ran)

    assert re.fullmatch(r"[0-9a-f]{40}", recorded.sha)
    assert recorded.problem == ""
    assert git(ran, "rev-parse", BRANCH) == recorded.sha
    assert git(ran, "rev-parse", f"{recorded.sha}^") == git(ran, "rev-parse", "HEAD")
    assert git(ran, "diff", "--name-only", "HEAD", recorded.sha).split() == ["dvc.lock", "params.yaml"]
    assert git(ran, "show", f"{recorded.sha}:params.yaml") == ran.params.read_text().strip()


def test_head_the_index_and_the_working_tree_stay_as_they_are(ran):
    run("git", "add", "params.yaml", cwd=ran.root)
    index = ran.root / ".git" / "index"
    before = (git(ran, "rev-parse", "HEAD"), git(ran, "branch", "--show-current"), index.read_bytes())

    record_run(ran)

    assert (git(ran, "rev-parse", "HEAD"), git(ran, "branch", "--show-current"), index.read_bytes()) == before
    assert git(ran, "status", "--porcelain") == "M  params.yaml\n?? dvc.lock"


def test_where_head_has_these_files_it_is_head_itself(ran):
    commit(ran.root)

    assert record_run(ran) == (git(ran, "rev-parse", "HEAD"), "")
    assert git(ran, "branch", "--list", BRANCH) == ""


def test_the_same_run_is_recorded_once(ran):
    assert record_run(ran) == record_run(ran)
    assert len(commits(ran)) == 1


def test_the_next_run_follows_upon_the_one_before(ran):
    first = record_run(ran).sha
    ran.params.write_text(ran.params.read_text().replace("seed: 7", "seed: 8"))

    second = record_run(ran).sha

    assert git(ran, "rev-parse", f"{second}^@").split() == [first]


def experiments(workspace: Workspace) -> dict[str, list[dict[str, Any]]]:
    """Return what `dvc exp show` lists under HEAD: the revisions of each experiment by its name."""
    shown = dvc.call(workspace, "exp", "show", "--json")
    (baseline,) = (state for state in json.loads(shown) if state["rev"] == git(workspace, "rev-parse", "HEAD"))
    return {experiment["name"]: experiment["revs"] for experiment in baseline["experiments"] or []}


def test_dvc_lists_each_run_as_an_experiment_upon_its_commit(ran):
    first = record_run(ran).sha
    ran.params.write_text(ran.params.read_text().replace("seed: 7", "seed: 8"))
    second = record_run(ran).sha

    shown = experiments(ran)

    assert {
        name: [rev["data"]["params"]["params.yaml"]["data"]["seed"] for rev in revs] for name, revs in shown.items()
    } == {
        f"run-{first[:10]}": [7],
        f"run-{second[:10]}": [8],
    }
    trees = {git(ran, "rev-parse", f"{revs[0]['rev']}^{{tree}}") for revs in shown.values()}
    assert trees == {git(ran, "rev-parse", f"{sha}^{{tree}}") for sha in (first, second)}


def test_an_experiment_that_a_kill_has_kept_from_being_listed_is_listed_by_the_next_record(ran):
    sha = record_run(ran).sha
    head = git(ran, "rev-parse", "HEAD")
    ref = f"refs/exps/{head[:2]}/{head[2:]}/run-{sha[:10]}"
    run("git", "update-ref", "-d", ref, cwd=ran.root)

    assert record_run(ran).sha == sha
    assert git(ran, "rev-parse", f"{ref}^") == head


def test_a_run_that_dvc_cannot_list_is_recorded_all_the_same(ran):
    # A reference of this name leaves no room for those below it.
    run("git", "update-ref", "refs/exps", "HEAD", cwd=ran.root)

    assert not record_run(ran).problem


def test_a_run_upon_a_newer_commit_joins_it_with_the_runs_before(ran):
    first = record_run(ran).sha
    (ran.root / "new.py").touch()
    run("git", "add", "new.py", cwd=ran.root)
    run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-qm", "code", cwd=ran.root)

    second = record_run(ran).sha

    assert git(ran, "rev-parse", f"{second}^@").split() == [git(ran, "rev-parse", "HEAD"), first]
    assert git(ran, "diff", "--name-only", "HEAD", second).split() == ["dvc.lock", "params.yaml"]


def test_where_head_contains_the_runs_before_it_is_the_only_parent(ran):
    run("git", "update-ref", f"refs/heads/{BRANCH}", "HEAD", cwd=ran.root)

    assert git(ran, "rev-parse", f"{record_run(ran).sha}^@").split() == [git(ran, "rev-parse", "HEAD")]


def test_a_file_that_is_gone_is_gone_from_the_commit(project):
    (project.root / "data.dvc").unlink()

    assert "data.dvc" not in git(project, "ls-tree", "--name-only", record_run(project).sha).split()


def test_other_changes_make_a_run_not_reproducible_and_are_named(ran):
    (ran.root / "stage.py").write_text("")
    for name in ("a.py", "b.py", "c.py", "d.py", "e.py"):
        (ran.root / name).touch()

    recorded = record_run(ran)

    assert recorded.problem == "made with uncommitted changes of stage.py, a.py, b.py, c.py, d.py and 1 more"
    assert git(ran, "diff", "--name-only", "HEAD", recorded.sha).split() == ["dvc.lock", "params.yaml"]


def test_what_git_ignores_is_no_change(ran):
    (ran.root / "ran.txt").touch()

    assert not record_run(ran).problem


def test_the_project_may_be_a_folder_of_a_repository(ran, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    (ran.root / ".git").rename(outer / ".git")
    inner = Workspace(ran.root.rename(outer / "inner"))
    (inner.root / "dvc.lock").unlink()
    commit(outer)
    (inner.root / "dvc.lock").write_text("schema: '2.0'\n")
    (outer / "elsewhere").touch()

    recorded = record_run(inner)

    assert not recorded.problem
    assert git(outer, "diff", "--name-only", "HEAD", recorded.sha).split() == ["inner/dvc.lock"]


def test_the_author_is_who_git_says(ran):
    run("git", "config", "user.name", "Ada", cwd=ran.root)
    run("git", "config", "user.email", "ada@example.org", cwd=ran.root)

    assert git(ran, "log", "-1", "--format=%an <%ae> %cn", record_run(ran).sha) == "Ada <ada@example.org> Ada"


def test_or_nobody_in_particular(ran, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR_", "GIT_COMMITTER_", "EMAIL"))]:
        monkeypatch.delenv(name)

    assert git(ran, "log", "-1", "--format=%an <%ae>", record_run(ran).sha) == "diptych <diptych@localhost>"


def test_runs_that_are_recorded_at_once_are_all_on_the_branch(ran, monkeypatch):
    """Another run is recorded after this one has read the branch and before it commits."""
    others: list[str] = []

    def intervene(folder, command, *arguments, **options):
        if command == "commit-tree" and not others:
            others.append("begun")
            content = ran.params.read_text()
            ran.params.write_text(content.replace("seed: 7", "seed: 8"))
            others.append(record_run(ran).sha)
            ran.params.write_text(content)
        return run_git(folder, command, *arguments, **options)

    monkeypatch.setattr(recording, "git", intervene)

    recorded = record_run(ran)

    assert commits(ran) == [recorded.sha, others[1]]
    assert "seed: 7" in git(ran, "show", f"{recorded.sha}:params.yaml")


def test_outside_of_git_and_without_it_nothing_is_recorded(tmp_path, monkeypatch):
    sha, problem = record_run(Workspace(tmp_path))
    assert sha == "unknown"
    assert problem.startswith("git has no record of it (not a git repository")

    monkeypatch.setenv("PATH", str(tmp_path))
    assert record_run(Workspace(tmp_path)) == ("unknown", "git has no record of it (git is not installed)")


def test_where_the_branch_is_checked_out_it_is_left_alone(ran):
    run("git", "checkout", "-qb", BRANCH, cwd=ran.root)
    head = git(ran, "rev-parse", "HEAD")

    sha, problem = record_run(ran)

    assert (sha, git(ran, "rev-parse", BRANCH)) == (head, head)
    assert f"the branch {BRANCH} is checked out here" in problem


def test_a_version_bears_the_commit_of_its_run(ran, monkeypatch):
    monkeypatch.setattr(dvc, "status", lambda workspace: {})

    tags = recorded_provenance(ran)
    assert (tags["git_sha"], tags["git_dirty"]) == (git(ran, "rev-parse", BRANCH), "false")
    assert "not_reproducible" not in tags

    (ran.root / "new.py").touch()
    tags = recorded_provenance(ran)
    assert tags["git_dirty"] == "true"
    assert tags["not_reproducible"] == "made with uncommitted changes of new.py"


def test_a_version_of_code_that_was_changed_and_committed_since_is_not_reproducible(ran):
    commit(ran.root)

    tags = recorded_provenance(ran)

    assert tags["git_dirty"] == "true"
    assert tags["not_reproducible"] == (
        "made by other code, data or parameters: baselines, controls, evaluate, preprocess, train and 1 more changed"
    )


@pytest.fixture
def quick(monkeypatch):
    """No waiting between attempts."""
    monkeypatch.setattr(recording, "WAITS", (0.0,))


def published(workspace: Workspace, remote: str | None = None) -> list[str]:
    return publish_run(workspace, Params.model_validate({"retrain": {"git_remote": remote}}), lambda line: None)


@pytest.mark.parametrize(("seconds", "recorded"), [(120, True), (0, False)])
def test_a_lock_on_the_branch_is_removed_where_the_git_behind_it_was_killed(ran, monkeypatch, seconds, recorded):
    monkeypatch.setattr(recording, "_ATTEMPTS", 2)
    lock = ran.root / ".git" / "refs" / "heads" / f"{BRANCH}.lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - seconds,) * 2)

    assert (not record_run(ran).problem) is recorded


def test_without_remotes_nothing_is_sent(ran):
    record_run(ran)

    assert published(ran) == []


def test_data_go_to_the_default_remote_and_runs_to_the_git_remote(project, tmp_path):
    project.params.write_text(project.params.read_text().replace("seed: 0", "seed: 7"))
    sha = record_run(project).sha
    run("git", "init", "--quiet", "--bare", str(tmp_path / "far.git"), cwd=tmp_path)
    run("git", "remote", "add", "origin", str(tmp_path / "far.git"), cwd=project.root)
    run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"), cwd=project.root)

    assert published(project, "origin") == []

    assert git(tmp_path / "far.git", "rev-parse", BRANCH) == sha
    assert any((tmp_path / "store").rglob("*.dir"))


def test_what_was_sent_is_sent_again_only_when_it_or_the_place_is_another(project, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(dvc, "push", lambda workspace, on_line: sent.append(workspace))
    run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"), cwd=project.root)

    assert not is_published(project, Params())
    assert published(project) == published(project) == []
    assert len(sent) == 1
    assert is_published(project, Params())

    (project.root / "data.dvc").write_text("outs: []\n")
    assert not is_published(project, Params())
    published(project)
    assert len(sent) == 2

    run("dvc", "remote", "modify", "store", "url", str(tmp_path / "elsewhere"), cwd=project.root)
    published(project)
    assert len(sent) == 3


def test_what_was_not_reached_is_tried_again_by_the_next_run(ran, tmp_path, quick):
    record_run(ran)
    far = tmp_path / "far.git"

    assert len(published(ran, str(far))) == 1
    run("git", "init", "--quiet", "--bare", str(far), cwd=tmp_path)

    assert published(ran, str(far)) == []
    assert git(far, "rev-parse", BRANCH) == git(ran, "rev-parse", BRANCH)


def test_runs_of_another_machine_are_kept_beside_those_of_this_one(ran, tmp_path):
    far = tmp_path / "far.git"
    run("git", "clone", "--quiet", "--bare", str(ran.root), str(far), cwd=tmp_path)
    run("git", "clone", "--quiet", str(far), str(tmp_path / "other"), cwd=tmp_path)
    other = Workspace(tmp_path / "other")
    other.params.write_text(other.params.read_text().replace("seed: 0", "seed: 8"))
    shas = {record_run(one).sha for one in (ran, other)}

    assert published(other, str(far)) == []
    assert published(ran, str(far)) == []

    assert shas < set(git(far, "rev-list", BRANCH).split())
    assert record_run(ran).sha == git(far, "rev-parse", BRANCH)


def test_what_cannot_be_reached_is_said_and_holds_no_secret(ran, tmp_path, quick):
    record_run(ran)
    (tmp_path / "file").touch()
    run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "file" / "store"), cwd=ran.root)

    run("git", "remote", "add", "far", "http://ada:hunter2@127.0.0.1:9/far.git", cwd=ran.root)

    store, far = published(ran, "far")

    assert store.startswith("the DVC remote was not reached: ")
    assert store.endswith("; `dvc push` sends what is missing")
    assert far.startswith("the git remote does not have the run: ")
    assert far.endswith(f"; `git push far {BRANCH}` sends what is missing")
    assert "hunter2" not in far


def test_a_remote_that_comes_back_is_reached_by_the_next_attempt(ran, tmp_path, quick, monkeypatch):
    record_run(ran)
    far = tmp_path / "far.git"

    def fail_once(folder, command, *arguments, **options):
        if command == "push" and not far.exists():
            run("git", "init", "--quiet", "--bare", str(far), cwd=tmp_path)
            raise GitError("the network is away")
        return run_git(folder, command, *arguments, **options)

    monkeypatch.setattr(recording, "git", fail_once)

    assert published(ran, str(far)) == []


@pytest.fixture
def with_crlf(project: Workspace) -> Workspace:
    """A project whose files git has converted to CRLF, and says nothing of it; dvc.lock is as DVC writes it."""
    run("git", "config", "core.autocrlf", "true", cwd=project.root)
    run("git", "rm", "-rq", "--cached", ".", cwd=project.root)
    run("git", "reset", "--quiet", "--hard", cwd=project.root)
    (project.root / "dvc.lock").write_bytes(b"schema: '2.0'\n")
    return project


@pytest.mark.parametrize("setting", ["core.autocrlf true", "core.autocrlf false", "core.eol crlf"])
def test_line_endings_that_git_converts_are_recorded_and_checked_out_as_they_are(with_crlf, setting):
    files = {name: (with_crlf.root / name).read_bytes() for name in ("dvc.lock", "params.yaml", "stage.py")}
    assert b"\r\n" in files["stage.py"]

    recorded = record_run(with_crlf)
    run("git", "config", *setting.split(), cwd=with_crlf.root)

    assert not recorded.problem
    with checked_out(with_crlf, recorded.sha, "x") as there:
        assert {name: (there.root / name).read_bytes() for name in files} == files


def test_an_edit_of_a_file_with_converted_line_endings_is_not_recorded(with_crlf):
    with (with_crlf.root / "stage.py").open("a") as file:
        file.write("# mine\n")

    recorded = record_run(with_crlf)

    assert recorded.problem == "made with uncommitted changes of stage.py"
    assert "mine" not in git(with_crlf, "show", f"{recorded.sha}:stage.py")
