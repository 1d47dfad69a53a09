"""What git says, and what is not to be said of it."""

import pytest

from diptych import git
from diptych.git import GitError, git_or_empty, without_secrets


def test_it_answers_in_the_folder_whatever_a_hook_has_set(project, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path))

    assert len(git.git(project.root, "rev-parse", "HEAD")) == 40


def test_its_own_words_are_the_reason(tmp_path):
    with pytest.raises(GitError, match=r"^not a git repository"):
        git.git(tmp_path, "status")
    assert git_or_empty(tmp_path, "status") == ""


def test_it_does_not_wait_for_ever(project, monkeypatch):
    monkeypatch.setattr(git, "PATIENCE", 0.0)

    with pytest.raises(GitError, match="git rev-parse took more than 0 seconds"):
        git.git(project.root, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no access to https://ada:p@ss@host/x.git", "no access to https://host/x.git"),
        ("s3://bucket/x?X-Amz-Signature=abc failed", "s3://bucket/x failed"),
        ("'http://token@host/?key=abc': 403", "'http://host/': 403"),
        ("nothing of the kind @ all?", "nothing of the kind @ all?"),
    ],
)
def test_addresses_are_shown_without_their_secrets(said, shown):
    assert without_secrets(said) == shown
