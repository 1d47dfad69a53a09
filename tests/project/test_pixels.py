"""What is fetched and which differences remain where pixels stay in the remote."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fake_project import keep_in_remote

from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.pixels import READERS, VARIABLE, stay_remote, without_pixels
from diptych.project.workspace import Workspace

NOWHERE = {"data": False, "artifacts/prepared/images": False}


@pytest.mark.parametrize(("value", "stay"), [(None, False), ("", False), ("remote", True)])
def test_the_variable_says_whether_they_stay(monkeypatch: pytest.MonkeyPatch, value: str | None, stay: bool) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert stay_remote() == stay


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "local")
    with pytest.raises(DiptychError, match=r"DIPTYCH_PIXELS is 'local': set it to `remote`, or unset it"):
        stay_remote()


def test_the_absence_of_pixels_is_no_difference() -> None:
    changes = {
        "data.dvc": [{"changed outs": {"data": "not in cache"}}],
        "validate": [{"changed deps": {"data": "deleted"}}],
        "preprocess": [
            {"changed deps": {"data": "deleted"}},
            {"changed outs": {"artifacts/prepared/images": "deleted"}},
        ],
    }
    assert without_pixels(changes, NOWHERE) == {}


def test_what_is_here_and_differs_and_all_else_remains() -> None:
    changes = {
        "validate": [{"changed deps": {"data": "deleted", "src/diptych/config.py": "modified"}}, "changed command"],
        "preprocess": [{"changed outs": {"artifacts/prepared/images": "not in cache"}}],
        "train": [{"changed deps": {"artifacts/prepared/tokens.npy": "deleted", "params.yaml": {"seed": "modified"}}}],
    }
    assert without_pixels(changes, NOWHERE | {"artifacts/prepared/images": True}) == {
        **changes,
        "validate": [{"changed deps": {"src/diptych/config.py": "modified"}}, "changed command"],
    }


@pytest.fixture
def remote(project: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project whose first two stages have run, and whose files only the remote has."""
    keep_in_remote(project, tmp_path / "store")
    monkeypatch.setenv(VARIABLE, "remote")
    return project


def test_only_tables_are_fetched(remote: Workspace) -> None:
    dvc.fetch_without_pixels(remote)
    found = {str(path.relative_to(remote.root)) for path in remote.artifacts.rglob("*") if path.is_file()}
    assert found == {"artifacts/prepared/images.parquet"}
    assert not remote.data.exists()
    assert not set(READERS).intersection(dvc.status(remote))


def test_another_version_of_the_dataset_is_a_change_for_the_stages_that_read_it(remote: Workspace) -> None:
    dvc.fetch_without_pixels(remote)
    record = remote.root / "data.dvc"
    content = yaml.safe_load(record.read_text())
    content["outs"][0]["md5"] = "0" * 32 + ".dir"
    record.write_text(yaml.safe_dump(content))
    changes = dvc.status(remote)
    assert [changes[stage] for stage in READERS] == [[{"changed deps": {"data": "modified"}}]] * len(READERS)


def test_tables_that_nobody_has_are_a_change(remote: Workspace, tmp_path: Path) -> None:
    for path in (tmp_path / "store" / "files" / "md5").rglob("*"):
        if path.is_file() and path.read_text() == "prepared":
            path.unlink()
    dvc.fetch_without_pixels(remote)
    assert dvc.status(remote)["preprocess"] == [{"changed outs": {"artifacts/prepared/images.parquet": "not in cache"}}]


def test_without_a_remote_it_is_said(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "remote")
    with pytest.raises(DiptychError, match=r"DIPTYCH_PIXELS is `remote`, and DVC has no default remote.*remote add"):
        dvc.fetch_without_pixels(project)
