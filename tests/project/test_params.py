"""A preset goes into force, and edits are never lost."""

import subprocess
from pathlib import Path

import pytest

from diptych.errors import DiptychError
from diptych.project.params import refuse_lost_edits, sealed, use_preset
from diptych.project.workspace import Workspace

TINY = (Path(__file__).parents[2] / "presets" / "tiny.yaml").read_text(encoding="utf-8")


def settings(seed: int) -> str:
    return TINY.replace("seed: 0", f"seed: {seed}")


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.presets.mkdir()
    (workspace.presets / "small.yaml").write_text(settings(1))
    (workspace.presets / "large.yaml").write_text(settings(2))
    return workspace


def commit(workspace) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "x"]):
        subprocess.run([*git, *arguments], cwd=workspace.root, check=True)


def test_a_preset_becomes_params_yaml(workspace):
    use_preset(workspace, "small")

    assert workspace.params.read_text() == settings(1)


def test_one_preset_replaces_another(workspace):
    use_preset(workspace, "small")
    use_preset(workspace, "large")

    assert workspace.params.read_text() == settings(2)


def test_a_preset_that_is_in_force_stays(workspace):
    use_preset(workspace, "small")
    before = workspace.params.stat()

    use_preset(workspace, "small")

    assert workspace.params.stat().st_ino == before.st_ino


def test_a_preset_that_is_refused_replaces_nothing(workspace):
    use_preset(workspace, "small")
    old = settings(1).replace("\ntrain: {", "\ntrain: {image_tower_factor: 1.0, ")
    (workspace.presets / "old.yaml").write_text(old)

    with pytest.raises(DiptychError, match=r"(?s)old\.yaml.*train\.image_tower\.lr_multiplier"):
        use_preset(workspace, "old")

    assert workspace.params.read_text() == settings(1)


@pytest.mark.parametrize("name", ["medium", "../small", ""])
def test_an_unknown_preset_is_answered_with_those_there_are(workspace, name):
    with pytest.raises(DiptychError, match=r"presets/ has large, small"):
        use_preset(workspace, name)


def test_edits_that_nothing_else_holds_are_not_overwritten(workspace):
    workspace.params.write_text("seed: 3\n")

    with pytest.raises(DiptychError, match="has edits that would be lost"):
        use_preset(workspace, "small")

    assert workspace.params.read_text() == "seed: 3\n"


def test_edits_that_git_holds_give_way(workspace):
    workspace.params.write_text("seed: 3\n")
    commit(workspace)

    use_preset(workspace, "small")

    assert workspace.params.read_text() == settings(1)


def test_edits_after_the_commit_are_not_overwritten(workspace):
    workspace.params.write_text("seed: 3\n")
    commit(workspace)
    workspace.params.write_text("seed: 4\n")

    with pytest.raises(DiptychError, match="has edits that would be lost"):
        use_preset(workspace, "small")


def test_without_git_edits_are_not_overwritten(workspace, monkeypatch):
    monkeypatch.setenv("PATH", str(workspace.root))
    workspace.params.write_text("seed: 3\n")

    with pytest.raises(DiptychError, match="has edits that would be lost"):
        use_preset(workspace, "small")


def test_what_git_is_told_not_to_list_is_not_overwritten(workspace):
    commit(workspace)
    subprocess.run(["git", "config", "status.showUntrackedFiles", "no"], cwd=workspace.root, check=True)
    workspace.params.write_text("seed: 3\n")

    with pytest.raises(DiptychError, match="has edits that would be lost"):
        use_preset(workspace, "small")


def test_what_was_advised_is_no_edit_until_it_is_edited(workspace: Workspace) -> None:
    advised = sealed("seed: 3\n")
    workspace.params.write_text(advised)
    refuse_lost_edits(workspace)
    workspace.params.write_text(advised.replace("3", "4"))
    with pytest.raises(DiptychError, match="has edits that would be lost"):
        refuse_lost_edits(workspace)


def test_a_folder_in_place_of_params_is_named(workspace: Workspace) -> None:
    workspace.params.unlink(missing_ok=True)
    workspace.params.mkdir()
    with pytest.raises(DiptychError, match=r"params\.yaml cannot be read"):
        refuse_lost_edits(workspace)
