"""An earlier commit is checked out with DVC's cache and remotes, wherever the project lies."""

import shutil

import pytest
from dvc.config import Config

from diptych.project.git import git
from diptych.project.workspace import Workspace
from diptych.registry.checkout import checked_out


@pytest.mark.parametrize("name", ["jürgen", "Mein Projekt", "50% off", "a#b", "a?b=c", "o'r", "a,b", "日本"])
def test_the_cache_and_the_remotes_are_found_whatever_the_folders_are_called(project, tmp_path, name):
    moved = Workspace(tmp_path / name / "project")
    shutil.move(project.root, moved.root)
    remote = tmp_path / name / "remote"
    (moved.root / ".dvc" / "config.local").write_text(
        f"['remote \"far\"']\n    url = '''{remote}'''\n", encoding="utf-8"
    )

    with checked_out(moved, git(moved.root, "rev-parse", "HEAD"), "x") as there:
        settings = Config(str(there.root / ".dvc")).load_config_to_level()
        assert settings["cache"]["dir"] == str(moved.root / ".dvc" / "cache")
        assert settings["remote"]["far"]["url"] == str(remote)
        assert (there.root / ".dvc" / "config.local").stat().st_mode & 0o777 == 0o600
