"""The dataset version: recorded as it is, and fetched from wherever it can be."""

import shutil
from typing import Any

import pytest
import yaml
from fake_project import commit, run

from diptych.data.scenes.drawing import write_scenes
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.dataset import fetch_before_import, fetch_dataset, record_dataset
from diptych.project.git import git
from diptych.project.workspace import Workspace


@pytest.fixture
def scenes(project):
    """The project with six scenes as its dataset, recorded as such."""
    shutil.rmtree(project.data)
    write_scenes(project.data, train=4, val=1, test=1, size=32)
    record_dataset(project)
    return project


def recorded(project) -> dict[str, Any]:
    return yaml.safe_load((project.root / "data.dvc").read_text())


def forget_cache(project) -> None:
    shutil.rmtree(project.root / ".dvc" / "cache")


def test_a_dataset_that_is_there_is_present(project):
    assert fetch_dataset(project) == "present"


def test_a_project_without_a_dataset_says_how_to_get_one(project):
    (project.root / "data.dvc").unlink()

    with pytest.raises(DiptychError, match="diptych data import"):
        fetch_dataset(project)


def test_a_missing_dataset_comes_from_the_cache(project):
    shutil.rmtree(project.data)

    assert fetch_dataset(project) == "taken from DVC's cache"
    assert (project.data / "captions.json").exists()


def test_a_version_that_nobody_has_costs_nothing_of_what_is_there(scenes):
    """As after `git checkout` of another data.dvc, whose files DVC's cache has lost."""
    other = scenes.root / "data.dvc"
    before = other.read_bytes()
    write_scenes(scenes.data, train=5, val=1, test=1, size=32, replace=True)
    record_dataset(scenes)
    files = {path.name: path.read_bytes() for path in scenes.data.iterdir()}
    lost = {out["md5"] for out in yaml.safe_load(before)["outs"]}
    other.write_bytes(before)
    for md5 in lost:
        (scenes.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(DiptychError, match="not the version that"):
        fetch_dataset(scenes)
    assert {path.name: path.read_bytes() for path in scenes.data.iterdir()} == files


def test_a_missing_dataset_comes_from_the_remote(project, tmp_path):
    run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=project.root)
    run("dvc", "push", "--quiet", cwd=project.root)
    forget_cache(project)
    shutil.rmtree(project.data)

    assert fetch_dataset(project) == "pulled from the DVC remote"
    assert (project.data / "captions.json").exists()


def test_a_dataset_that_nothing_can_fetch_is_an_error(project):
    forget_cache(project)
    shutil.rmtree(project.data)

    with pytest.raises(DiptychError, match="neither DVC's cache nor a remote"):
        fetch_dataset(project)


def test_missing_scenes_are_drawn_again_to_the_very_bytes(scenes):
    forget_cache(scenes)
    shutil.rmtree(scenes.data)
    before = (scenes.root / "data.dvc").read_bytes()

    assert fetch_dataset(scenes) == "drawn: the embedded scenes"

    assert (scenes.root / "data.dvc").read_bytes() == before
    assert dvc.status(scenes, "data.dvc") == {}


def test_scenes_that_come_out_otherwise_are_not_kept(scenes):
    content = recorded(scenes)
    content["meta"]["scenes"]["seed"] = 7
    (scenes.root / "data.dvc").write_text(yaml.safe_dump(content))
    forget_cache(scenes)
    shutil.rmtree(scenes.data)

    with pytest.raises(DiptychError, match="The scenes drawn here are not those"):
        fetch_dataset(scenes)

    assert not scenes.data.exists()


def test_data_that_no_version_holds_is_not_overwritten(project):
    (project.data / "captions.json").unlink()
    (project.data / "captions.json").write_text("mine")

    with pytest.raises(DiptychError, match="`dvc add data`"):
        fetch_dataset(project)

    assert (project.data / "captions.json").read_text() == "mine"


def test_a_dataset_whose_cache_is_gone_is_kept_again(project):
    forget_cache(project)

    assert fetch_dataset(project) == "present"

    assert dvc.status(project, "data.dvc") == {}


def test_changed_data_whose_cache_is_gone_is_not_taken_for_the_recorded(project):
    forget_cache(project)
    before = (project.root / "data.dvc").read_bytes()
    (project.data / "captions.json").unlink()
    (project.data / "captions.json").write_text("mine")

    with pytest.raises(DiptychError, match="`dvc add data`"):
        fetch_dataset(project)

    assert (project.root / "data.dvc").read_bytes() == before


def test_the_record_tells_what_scenes_are_drawn_from(scenes):
    assert recorded(scenes)["meta"] == {"scenes": {"train": 4, "val": 1, "test": 1, "seed": 0, "size": 32}}


def test_data_that_replaces_scenes_is_not_recorded_as_scenes(scenes):
    (scenes.data / "captions.json").unlink()
    (scenes.data / "captions.json").write_text('{"info": {}, "images": [], "annotations": []}')

    record_dataset(scenes)

    assert "meta" not in recorded(scenes)


def test_without_dvc_nothing_is_recorded(tmp_path):
    record_dataset(Workspace(tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_scenes_are_not_fetched_before_an_import(scenes):
    shutil.rmtree(scenes.data)

    fetch_before_import(scenes)

    assert not scenes.data.exists()


def test_a_recorded_dataset_is_fetched_before_an_import(project):
    shutil.rmtree(project.data)

    fetch_before_import(project)

    assert project.data.exists()


def test_a_damaged_record_is_an_error(project):
    (project.root / "data.dvc").write_text("outs: [")

    with pytest.raises(DiptychError, match=r"data\.dvc is damaged"):
        fetch_dataset(project)


def test_what_dvc_stages_for_git_says_what_the_data_are(scenes):
    commit(scenes.root)
    run("dvc", "config", "core.autostage", "true", cwd=scenes.root)
    (scenes.data / "captions.json").unlink()
    (scenes.data / "captions.json").write_text('{"info": {}, "images": [], "annotations": []}')

    record_dataset(scenes)

    assert "scenes" not in git(scenes.root, "show", ":data.dvc")
