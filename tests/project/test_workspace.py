"""Where a project begins, and who is at work in it."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from diptych.errors import DiptychError
from diptych.project.workspace import Workspace, find_workspace


def test_a_project_is_found_from_the_folders_below_it(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    below = tmp_path / "data" / "deep"
    below.mkdir(parents=True)

    assert find_workspace(below) == Workspace(tmp_path.resolve())


def test_a_folder_outside_of_a_project_is_named(tmp_path):
    with pytest.raises(DiptychError, match=f"{tmp_path} is not in a diptych project"):
        find_workspace(tmp_path)


def test_all_that_may_be_deleted_lies_in_one_folder_and_all_else_beside_it(tmp_path):
    workspace = Workspace(tmp_path)
    places = [workspace.data, workspace.manifest, workspace.captions, workspace.prepared, workspace.tokenizer]
    places += [workspace.model, workspace.reports, workspace.params, workspace.presets]

    assert all(place.is_relative_to(tmp_path) and not place.is_relative_to(workspace.local) for place in places)


def test_a_hold_ends_with_an_exception(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(RuntimeError), workspace.held("first"):
        raise RuntimeError

    with workspace.held("second"):
        assert (workspace.local / "holder.json").exists()

    assert not (workspace.local / "holder.json").exists()


def test_the_lock_of_a_killed_run_is_waited_for(tmp_path, monkeypatch):
    """The kernel releases it when the last thread of the process has ended, which takes a moment on a busy machine."""
    ending = Workspace(tmp_path).held("first")
    ending.__enter__()

    def died(holder):
        assert holder["purpose"] == "first"
        ending.__exit__(None, None, None)
        return True

    monkeypatch.setattr("diptych.project.workspace.has_died", died)

    with Workspace(tmp_path).held("second"):
        assert Workspace(tmp_path).holder()["purpose"] == "second"


def test_a_holder_that_has_left_no_note_yet_is_called_so(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.held("first"):
        (workspace.local / "holder.json").unlink()

        with pytest.raises(DiptychError, match="another process that has just started"), workspace.held("second"):
            pass


@pytest.mark.parametrize("note", [b'{"pid": 1}', b"[1]", b"[]", b'{"pid', b"\xff", b""])
def test_a_holder_whose_note_is_damaged_is_reported_without_its_name(tmp_path, note):
    workspace = Workspace(tmp_path)
    with workspace.held("first"):
        (workspace.local / "holder.json").write_bytes(note)

        with pytest.raises(DiptychError, match="another process that has just started"), workspace.held("second"):
            pass


@pytest.mark.parametrize(("number", "advice"), [(errno.EROFS, "mount it writable"), (errno.EACCES, "chown -R")])
def test_a_project_that_cannot_be_written_is_told_with_what_to_do(tmp_path, monkeypatch, number, advice):
    def refuse(path: Path, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)

    with (
        pytest.raises(DiptychError, match=f"diptych cannot be written: {os.strerror(number)}.*{advice}"),
        Workspace(tmp_path).held("diptych run"),
    ):
        pass


def test_a_file_where_the_project_keeps_its_files_is_told(tmp_path):
    (tmp_path / ".diptych").touch()

    with (
        pytest.raises(DiptychError, match=r"\.diptych cannot be written: File exists.*move this file away"),
        Workspace(tmp_path).held("diptych run"),
    ):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(DiptychError, match="file system has no locks"), Workspace(tmp_path).held("diptych run"):
        pass


def test_a_full_disk_is_left_to_whoever_tells_of_full_disks(tmp_path, monkeypatch):
    def refuse(path: Path, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), Workspace(tmp_path).held("diptych run"):
        pass
