"""Status: counts per split, shards, bytes and the version."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_store import MemoryStore

from diptych.data.captions import read_dataset, write_dataset
from diptych.data.scenes.drawing import write_scenes
from diptych.errors import DiptychError
from diptych.project.dataset_status import dataset_status
from diptych.project.workspace import Workspace


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "data", train=3, val=2, test=1)
    return tmp_path / "data"


def record_version(data: Path) -> None:
    files = list(data.iterdir())
    size = sum(path.stat().st_size for path in files)
    data.with_name("data.dvc").write_text(
        f"outs:\n- md5: abc.dir\n  size: {size}\n  nfiles: {len(files)}\n  path: data\n"
    )


def test_images_and_captions_are_counted_by_split(data: Path) -> None:
    status = dataset_status(Workspace(data.parent))
    assert status.images == {"train": 3, "val": 2, "test": 1}
    assert status.captions == {"train": 15, "val": 10, "test": 5}
    assert (status.shards, status.bytes) == (1, sum(path.stat().st_size for path in data.iterdir()))


def test_the_version_is_that_of_the_dvc_file(data: Path) -> None:
    assert dataset_status(Workspace(data.parent)).version is None
    record_version(data)
    status = dataset_status(Workspace(data.parent))
    assert (status.version, status.changed) == ("abc.dir", False)
    assert status.to_json()["version"] == "abc.dir"


def test_files_that_changed_since_are_noticed(data: Path) -> None:
    record_version(data)
    (data / "images-00001.tar").write_bytes(b"")
    assert dataset_status(Workspace(data.parent)).changed
    assert "files have changed since" in "\n".join(dataset_status(Workspace(data.parent)).render())


def test_a_dataset_that_only_a_store_has_is_as_it_was_recorded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_version(data)
    expected = dataset_status(Workspace(data.parent))
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    store.take(*data.iterdir())
    data.rmdir()
    assert dataset_status(Workspace(data.parent)) == expected


def test_an_interrupted_change_is_told_in_place_of_advice_to_record_it(data: Path) -> None:
    workspace = Workspace(data.parent)
    record_version(data)
    (data / "images-00001.tar").touch()
    assert "`dvc add data` makes a new version" in "\n".join(dataset_status(workspace).render())
    workspace.journal.parent.mkdir()
    workspace.journal.write_text("{}")
    lines = "\n".join(dataset_status(workspace).render())
    assert "a change of it was interrupted: the next `diptych run` undoes it" in lines
    assert "dvc add" not in lines


def test_lines_for_people_have_the_totals(data: Path) -> None:
    lines = dataset_status(Workspace(data.parent)).render()
    assert lines[4].split() == ["total", "6", "30"]
    assert lines[-1] == "version  none yet: `dvc add data` makes one"


def test_captions_without_image_and_images_without_split_are_counted(data: Path) -> None:
    dataset = read_dataset(data)
    del dataset.images[0]["split"]
    dataset.annotations.append({"id": 99, "image_id": 99, "caption": "x"})
    write_dataset(data, dataset)
    status = dataset_status(Workspace(data.parent))
    assert status.images["(none)"] == 1
    assert status.captions["(no image)"] == 1


def test_a_damaged_version_file_is_named(data: Path) -> None:
    data.with_name("data.dvc").write_text("outs: []")
    with pytest.raises(DiptychError, match=r"data\.dvc is damaged"):
        dataset_status(Workspace(data.parent))


def test_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="data"):
        dataset_status(Workspace(tmp_path))
