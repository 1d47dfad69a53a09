"""What a version was made of is read from its tags, and nothing that is no hash gets further."""

from __future__ import annotations

import pytest
from fake_project import commit, run

from diptych.errors import DiptychError
from diptych.project.git import git
from diptych.project.workspace import Workspace
from diptych.registry.origin import Origin, origin_of
from diptych.registry.registered_model import Version

HASHES = {
    "git_sha": "a" * 40,
    "data_md5": "b" * 32 + ".dir",
    "dvc_lock_sha256": "c" * 64,
    "params_sha256": "d" * 64,
    "weights_sha256": "e" * 64,
    "model_sha256": "f" * 64,
}


def version(**tags: str) -> Version:
    return Version("diptych", "1", [], {"git_dirty": "false", **HASHES, **tags}, {}, "")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project with one commit of one file."""
    root = tmp_path_factory.mktemp("repository")
    (root / "a").write_text("a")
    run("git", "init", "--quiet", cwd=root)
    commit(root)
    return Workspace(root)


@pytest.fixture
def head(repository: Workspace) -> str:
    return git(repository.root, "rev-parse", "HEAD")


def test_the_origin_of_a_version_is_its_tags(repository, head):
    expected = Origin(**{**HASHES, "git_sha": head}, threads=2)

    assert origin_of(version(git_sha=head, threads="2", gate="accepted"), repository) == expected


def test_the_hash_of_a_dataset_of_one_file_has_no_ending(repository, head):
    assert origin_of(version(git_sha=head, data_md5="b" * 32), repository).data_md5 == "b" * 32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("git_sha", "--upload-pack=touch hacked"),
        ("git_sha", "HEAD"),
        ("git_sha", "0" * 39 + "\n0"),
        ("git_sha", "0" * 40 + "\n"),
        ("data_md5", "../../etc/passwd"),
        ("weights_sha256", "$(touch hacked)"),
        ("dvc_lock_sha256", "\x1b[2J"),
        ("params_sha256", ""),
        ("model_sha256", "unknown"),
    ],
)
def test_a_tag_that_is_no_hash_is_refused_by_its_name(repository, name, value):
    with pytest.raises(DiptychError, match=f"its tag {name} is .*, which is no hash") as error:
        origin_of(version(**{name: value}), repository)

    assert str(error.value).isprintable()


def test_a_tag_that_is_missing_is_no_hash(repository):
    tags = {name: value for name, value in version().tags.items() if name != "params_sha256"}

    with pytest.raises(DiptychError, match="its tag params_sha256 is '', which is no hash"):
        origin_of(version()._replace(tags=tags), repository)


def test_a_long_tag_is_shown_in_part(repository):
    with pytest.raises(DiptychError) as error:
        origin_of(version(git_sha="x" * 5000), repository)

    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"git_dirty": "true"}, "made with uncommitted changes"),
        ({"git_dirty": "unknown"}, "made outside of git"),
        ({"git_dirty": ""}, "made outside of git"),
        ({"not_reproducible": "changes of src/x.py\x1b[2J"}, r"changes of src/x\.py\?\[2J"),
        ({"git_dirty": "true", "not_reproducible": "changes of a.py"}, r"changes of a\.py"),
    ],
)
def test_a_version_that_no_commit_holds_is_refused_with_the_reason(repository, tags, why):
    with pytest.raises(DiptychError, match=rf"^diptych version 1 cannot be made again: {why}\.$"):
        origin_of(version(**tags), repository)


@pytest.mark.parametrize("threads", ["", "0", "-1", "1; touch hacked", "99999", "1.5"])
def test_a_number_of_threads_that_is_none_is_not_known(repository, head, threads):
    assert origin_of(version(git_sha=head, threads=threads), repository).threads is None


def test_a_commit_has_to_be_in_the_repository(repository):
    with pytest.raises(DiptychError, match="commit 0000000000, which this repository does not have: `git fetch`"):
        origin_of(version(git_sha="0" * 40), repository)


def test_the_hash_of_a_file_is_no_commit(repository):
    with pytest.raises(DiptychError, match="which this repository does not have"):
        origin_of(version(git_sha=git(repository.root, "rev-parse", "HEAD:a")), repository)
