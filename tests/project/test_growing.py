"""Growth of the dataset: the same version, whether its images are here or only in the remote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dropping import photos, write_drop
from fake_project import commit, run

from diptych.data.growth import Rules
from diptych.data.images_folder import ImagesFolder
from diptych.data.importing import CocoSource, import_coco
from diptych.data.scenes.drawing import write_scenes
from diptych.data.shards import list_members, read_members
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.dataset import record_dataset
from diptych.project.growing import growing
from diptych.project.pixels import VARIABLE
from diptych.project.record import read_record
from diptych.project.workspace import Workspace


@pytest.fixture
def here(project: Workspace, tmp_path: Path) -> Workspace:
    """A project with six scenes, which its remote has too."""
    shutil.rmtree(project.data)
    write_scenes(project.data, train=4, val=1, test=1, size=32)
    record_dataset(project)
    run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=project.root)
    run("dvc", "push", "--quiet", "data.dvc", cwd=project.root)
    commit(project.root)
    return project


@pytest.fixture
def remote(here: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the project whose files only the remote has."""
    root = shutil.copytree(here.root, tmp_path / "remote", symlinks=True)
    for folder in ("data", ".dvc/cache"):
        shutil.rmtree(root / folder)
    monkeypatch.setenv(VARIABLE, "remote")
    return Workspace(root)


def add(workspace: Workspace, folder: Path) -> None:
    source = CocoSource(folder / "captions.json", ImagesFolder(folder / "images"), "train")
    import_coco(workspace.data, [source], Rules(onto_scenes="add"))


def test_the_version_is_that_of_the_same_import_with_the_images_here(
    here: Workspace, remote: Workspace, tmp_path: Path
) -> None:
    for number in (1, 2):
        folder = write_drop(tmp_path / f"drop{number}", photos(10 * number, 10 * number + 1))
        with growing(here) as record:
            add(here, folder)
            record()
        with growing(remote) as record:
            add(remote, folder)
            assert {path.suffix for path in remote.data.iterdir()} == {".json", ".tar"}
            record()

        assert not remote.data.exists()
        assert read_record(remote) == read_record(here)
        members = list_members(here.data)
        assert list_members(remote.data) == members
        assert list(read_members(remote.data, members)) == list(read_members(here.data, members))
    assert [path.name for path in sorted(here.data.glob("*.tar"))] == [f"images-0000{n}.tar" for n in range(3)]
    assert "data.dvc" not in dvc.status(remote)


def test_what_is_not_recorded_leaves_the_version_before(remote: Workspace, tmp_path: Path) -> None:
    before, drop = read_record(remote), write_drop(tmp_path / "drop", photos(10))
    with growing(remote):
        add(remote, drop)
    assert not remote.data.exists()
    with pytest.raises(DiptychError, match="in the middle"), growing(remote):
        add(remote, drop)
        raise DiptychError("in the middle")
    assert not remote.data.exists()
    assert read_record(remote) == before
    with growing(remote) as record:
        add(remote, drop)
        record()
    assert len(list_members(remote.data)) == 7


def test_an_import_that_begins_anew_has_its_images_here(remote: Workspace, tmp_path: Path) -> None:
    drop = write_drop(tmp_path / "drop", photos(10, 11, 12))
    with growing(remote, anew=True) as record:
        add(remote, drop)
        record()
    assert [path.name for path in sorted(remote.data.glob("*.tar"))] == ["images-00000.tar"]
    assert read_record(remote)["outs"][0]["nfiles"] == 2


def test_a_remote_that_lacks_the_dataset_is_named(remote: Workspace, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(DiptychError, match=r"neither on this disk nor in the DVC remote store"), growing(remote):
        pytest.fail("it was begun")
    assert not remote.data.exists()


def test_without_a_remote_nothing_is_begun(remote: Workspace) -> None:
    run("dvc", "remote", "remove", "store", cwd=remote.root)
    with pytest.raises(DiptychError, match="DVC has no default remote"), growing(remote):
        pytest.fail("it was begun")
    assert not remote.data.exists()
