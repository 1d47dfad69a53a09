"""Stages of a project whose images only the remote has: dvc.lock is as if they were here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_project import commit, keep_in_remote, run

from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.dvc_remote import SENT
from diptych.project.pixels import READERS, VARIABLE
from diptych.project.workspace import Workspace

SENDING = """
if name == "preprocess" and not (here / "data").exists():
    from diptych.data.stored import Sent, find_stored
    folder = here.absolute() / "artifacts/prepared"
    if os.environ.get("SEND") != "nothing":
        store = find_stored(here.absolute() / "data/captions.json").store
        (here / "pixels").write_text("pixels")
        files = {"images-00000.npy": Sent(store.send(here / "pixels"), 6)}
        store.send_folder(folder / "images", files)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.parquet").write_text("prepared")
    sys.exit()
if name =="""


@pytest.fixture
def remote(project: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project whose stages send what they make of images, and whose files only the remote has."""
    script = project.root / "stage.py"
    script.write_text(script.read_text().replace("\nif name ==", SENDING, 1))
    commit(project.root)
    keep_in_remote(project, tmp_path / "store")
    monkeypatch.setenv(VARIABLE, "remote")
    return project


def lock(workspace: Workspace) -> Any:
    return yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"]


def make_all(workspace: Workspace) -> list[bool]:
    return [dvc.reproduce(workspace, stage, force=False, on_line=print) for stage in READERS]


def test_the_lock_is_that_of_a_run_with_the_images_here(remote: Workspace) -> None:
    expected = lock(remote)
    (remote.root / "dvc.lock").unlink()

    assert make_all(remote) == [True, True]

    assert lock(remote) == expected
    assert not (remote.root / SENT).exists()
    assert [path.name for path in remote.prepared.iterdir()] == ["images.parquet"]
    assert not set(READERS).intersection(dvc.status(remote))
    assert make_all(remote) == [False, False]
    assert dvc.reproduce(remote, "preprocess", force=True, on_line=print)
    # Nothing is left for a push: the remote has all that it needs.
    run("dvc", "push", "preprocess", cwd=remote.root)
    shutil.rmtree(remote.root / ".dvc" / "cache")
    run("dvc", "pull", "--force", "preprocess", cwd=remote.root)
    assert (remote.prepared / "images" / "images-00000.npy").read_text() == "pixels"


def test_tables_that_are_lost_are_made_again(remote: Workspace) -> None:
    assert make_all(remote) == [True, True]
    (remote.prepared / "images.parquet").unlink()
    assert make_all(remote) == [False, True]


@pytest.mark.parametrize("content", ["pixels", "images-00000.npy"])
def test_pixels_that_the_remote_has_lost_are_made_again(remote: Workspace, tmp_path: Path, content: str) -> None:
    assert make_all(remote) == [True, True]
    before = lock(remote)
    shutil.rmtree(remote.root / ".dvc" / "cache")
    # The file, or the list of the folder's files.
    [lost] = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and content in path.read_text()]
    lost.unlink()
    assert make_all(remote) == [False, True]
    assert lost.exists()
    assert lock(remote) == before


def test_a_remote_that_cannot_be_reached_is_no_reason_to_make_anything_again(remote: Workspace, tmp_path: Path) -> None:
    assert make_all(remote) == [True, True]
    tables = {path: path.read_bytes() for path in remote.prepared.rglob("*") if path.is_file()}
    shutil.rmtree(remote.root / ".dvc" / "cache")
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(DiptychError, match=r"stage preprocess failed: .*the DVC remote store .*cannot be read"):
        dvc.reproduce(remote, "preprocess", force=False, on_line=print)
    assert {path: path.read_bytes() for path in remote.prepared.rglob("*") if path.is_file()} == tables


def test_another_version_of_the_dataset_is_recorded_with_its_results(
    remote: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_all(remote)
    other = tmp_path / "other"
    run("git", "clone", "--quiet", str(remote.root), str(other), cwd=tmp_path)
    (other / "data").mkdir()
    (other / "data" / "captions.json").write_text("{}")
    shutil.copy(remote.root / ".dvc" / "config", other / ".dvc" / "config")
    run("dvc", "add", "--quiet", "data", cwd=other)
    run("dvc", "push", "--quiet", "data.dvc", cwd=other)
    shutil.copy(other / "data.dvc", remote.root)

    assert make_all(remote) == [True, True]

    [recorded] = yaml.safe_load((remote.root / "data.dvc").read_text())["outs"]
    for stage in READERS:
        [read] = [entry for entry in lock(remote)[stage]["deps"] if entry["path"] == "data"]
        assert (read["md5"], read["size"], read["nfiles"]) == (recorded["md5"], 2, 1)
    assert make_all(remote) == [False, False]


def test_a_stage_that_fails_says_why_and_records_nothing(remote: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (remote.root / "dvc.lock").read_bytes()
    monkeypatch.setenv("FAIL", "validate")
    with pytest.raises(DiptychError) as caught:
        dvc.reproduce(remote, "validate", force=True, on_line=print)
    assert str(caught.value) == "stage validate failed: captions.json, row 3: it is broken\n  mend it"
    assert (remote.root / "dvc.lock").read_bytes() == before


def test_an_output_that_was_not_sent_is_an_error_whatever_was_sent_before(
    remote: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (remote.root / "dvc.lock").read_bytes()
    note = {"artifacts/prepared/images": {"md5": "0" * 32 + ".dir", "size": 1, "nfiles": 1}}
    (remote.root / SENT).parent.mkdir(exist_ok=True)
    (remote.root / SENT).write_text(json.dumps(note))
    monkeypatch.setenv("SEND", "nothing")
    with pytest.raises(DiptychError, match=r"has neither written artifacts/prepared/images nor sent it"):
        dvc.reproduce(remote, "preprocess", force=True, on_line=print)
    assert (remote.root / "dvc.lock").read_bytes() == before
