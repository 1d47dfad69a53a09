"""What git says, and what is not to be said of it."""

import re
import shutil

import pytest
from fake_project import commit, run

from diptych.errors import DiptychError
from diptych.project import git
from diptych.project.git import GitError, git_or_empty


def test_it_answers_in_the_folder_whatever_a_hook_has_set(project, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path))

    assert len(git.git(project.root, "rev-parse", "HEAD")) == 40


def test_its_own_words_are_the_reason(tmp_path):
    with pytest.raises(GitError, match=r"^not a git repository"):
        git.git(tmp_path, "status")
    assert git_or_empty(tmp_path, "status") == ""


def test_a_folder_in_no_repository_may_get_one(tmp_path):
    with pytest.raises(GitError) as caught:
        git.head(tmp_path)
    assert "git init" in caught.value.advice


def _empty_head(root):
    (root / ".git" / "HEAD").write_text("")


def _leads_nowhere(root):
    shutil.rmtree(root / ".git")
    (root / ".git").write_text("gitdir: /nowhere/.git/worktrees/x\n")


def _bare(root):
    git.git(root, "config", "core.bare", "true")


def _index(root):
    (root / ".git" / "index").write_text("DIRC")


def _configuration(root):
    (root / ".git" / "config").write_text("[core\n")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_empty_head, r"^not a git repository .*\. \S+/project/\.git is there, but damaged"),
        (
            _leads_nowhere,
            r"^not a git repository: /nowhere/\S+\. \S+/project/\.git leads nowhere: `git worktree repair`",
        ),
        (_bare, r"must be run in a work tree\. `git config core\.bare false`"),
        (_index, r"index file smaller than expected\. `rm \.git/index`, then `git reset`"),
        (_configuration, r"^bad config line 1 in file \.git/config$"),
    ],
)
def test_a_repository_that_is_damaged_is_told_with_what_to_do(project, damage, told):
    damage(project.root)

    with pytest.raises(GitError, match=told) as caught:
        git.head(project.root)

    assert "git init" not in str(caught.value)


def test_a_repository_of_another_user_is_told_with_gits_own_command(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")

    with pytest.raises(GitError, match=f"dubious ownership.*`git config --global --add safe.directory {project.root}`"):
        git.head(project.root)


def test_it_does_not_wait_for_ever(project, monkeypatch):
    monkeypatch.setattr(git, "PATIENCE", 0.0)

    with pytest.raises(GitError, match="git rev-parse took more than 0 seconds"):
        git.git(project.root, "rev-parse", "HEAD")


def _conflict(project, name):
    """Both sides have changed the file `name`."""
    _commit_change(project.root, name, "ours")
    git.git(project.root, "checkout", "-q", "-b", "other", "HEAD~1")
    _commit_change(project.root, name, "theirs")
    with pytest.raises(GitError):
        git.git(project.root, "merge", "-q", "-")


def _commit_change(root, name, content):
    (root / name).write_text(f"# {content}\n")
    commit(root)


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_merge_conflict_is_told_with_commands_that_resolve_it(project, side):
    _conflict(project, "data.dvc")

    with pytest.raises(DiptychError, match=r"data\.dvc, line 1: a merge conflict is not resolved") as caught:
        git.refuse_conflict(project.root / "data.dvc")

    commands = re.findall("`(.*?)`", str(caught.value))
    (chosen,) = [one for one in commands if side in one]
    for command in (chosen, commands[-1], "git commit -qm merged"):
        run(
            *command.split()[:1],
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@localhost",
            *command.split()[1:],
            cwd=project.root,
        )
    git.refuse_conflict(project.root / "data.dvc")
    assert git.changed_paths(project.root) == []


def test_a_conflict_that_was_added_as_if_resolved_goes_by_what_git_still_has(project):
    _conflict(project, "data.dvc")
    run("git", "add", "data.dvc", cwd=project.root)

    advice = git.how_to_restore(project.root / "data.dvc")

    assert advice.startswith(f"`git -C {project.root} checkout HEAD -- data.dvc`")
    run(*advice.split("`")[1].split(), cwd=project.root)
    git.refuse_conflict(project.root / "data.dvc")


def test_of_a_file_that_only_one_side_has_only_that_can_be_kept(project):
    (project.root / "data.dvc").unlink()
    commit(project.root)
    git.git(project.root, "checkout", "-q", "-b", "other", "HEAD~1")
    _commit_change(project.root, "data.dvc", "theirs")
    with pytest.raises(GitError):
        git.git(project.root, "merge", "-q", "-")

    advice = git.how_to_restore(project.root / "data.dvc")

    assert ("--ours" in advice, "--theirs" in advice) == (True, False)


def test_what_git_does_not_have_is_not_said_to_come_from_it(tmp_path):
    assert "checkout" not in git.how_to_restore(tmp_path / "data.dvc")


def test_a_folder_that_is_gone_comes_back_by_the_command(project):
    (project.root / "flows").mkdir()
    (project.root / "flows" / "retrain.py").touch()
    commit(project.root)
    shutil.rmtree(project.root / "flows")

    run(*git.how_to_restore(project.root / "flows" / "retrain.py").split("`")[1].split(), cwd=project.root.parent)

    assert (project.root / "flows" / "retrain.py").is_file()


def test_changes_in_a_project_below_the_top_of_its_repository_are_named_as_seen_from_it(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "new.py").touch()
    run("git", "init", "--quiet", cwd=tmp_path)
    assert git.changed_paths(folder) == ["."]

    run("git", "add", "project/new.py", cwd=tmp_path)

    assert git.changed_paths(folder) == ["new.py"]
