"""A change of the dataset is made as a whole, or not at all."""

import json
import shutil
from contextlib import ExitStack, suppress

import pytest
import zc.lockfile
from fake_project import commit, run

from diptych.cli.main import main
from diptych.errors import DiptychError
from diptych.project.changing import begin, changing, recover
from diptych.project.dataset import fetch_dataset, folder_md5, record_dataset
from diptych.project.record import dataset_version

SECOND = '{"info": {"seed": 2}, "images": [], "annotations": []}'


def change(workspace, content=SECOND):
    (workspace.data / "captions.json").unlink(missing_ok=True)
    workspace.data.mkdir(exist_ok=True)
    (workspace.data / "captions.json").write_text(content)


def agrees(workspace):
    """Whether data/ is what data.dvc records, or both are missing."""
    recorded = dataset_version(workspace)
    return recorded == (folder_md5(workspace.data) if workspace.data.exists() else None)


def test_a_change_that_succeeds_stays(project):
    with changing(project):
        change(project)
        record_dataset(project)

    assert (project.data / "captions.json").read_text() == SECOND
    assert agrees(project)
    assert not project.journal.exists()


@pytest.mark.parametrize("recorded", [False, True])
def test_a_change_that_fails_is_undone(project, recorded):
    before = (project.root / "data.dvc").read_bytes()

    with pytest.raises(OSError, match="disk"), changing(project):
        change(project)
        if recorded:
            record_dataset(project)
        raise OSError("the disk")

    assert (project.root / "data.dvc").read_bytes() == before
    assert agrees(project)
    assert not project.journal.exists()


def test_the_next_command_undoes_what_a_kill_left(project):
    begin(project)
    change(project)

    assert recover(project)

    assert agrees(project)


def test_data_that_were_not_here_before_are_gone_again(project):
    shutil.rmtree(project.data)
    before = (project.root / "data.dvc").read_bytes()

    with pytest.raises(DiptychError, match="a row"), changing(project):
        change(project)
        raise DiptychError("a row")

    assert (project.root / "data.dvc").read_bytes() == before
    assert not project.data.exists()


def test_a_first_dataset_that_fails_leaves_none(project):
    shutil.rmtree(project.data)
    (project.root / "data.dvc").unlink()
    commit(project.root)

    with pytest.raises(DiptychError, match="a row"), changing(project):
        change(project)
        record_dataset(project)
        raise DiptychError("a row")

    assert agrees(project)
    assert not project.data.exists()


def test_files_that_no_version_holds_are_not_lost(project):
    change(project)

    with pytest.raises(DiptychError, match="`dvc add data`"), changing(project):
        raise AssertionError

    assert (project.data / "captions.json").read_text() == SECOND


def no_git(project):
    shutil.rmtree(project.root / ".git")
    return "is not a git repository"


def broken_configuration(project):
    (project.root / ".dvc" / "config").write_text("[core\n")
    return "configuration error"


def a_link(project):
    project.data.rename(project.root / "elsewhere")
    project.data.symlink_to("elsewhere")
    return "data is a link"


def conflict(project):
    (project.root / "dvc.lock").write_text("<<<<<<< HEAD\n")
    return "dvc.lock, line 1: a merge conflict is not resolved"


@pytest.mark.parametrize("spoil", [no_git, broken_configuration, a_link, conflict])
def test_where_dvc_does_not_work_nothing_is_changed_and_its_reason_is_told(project, spoil, monkeypatch, capsys):
    files = (project.data / "captions.json", project.root / "data.dvc")
    before = [path.read_bytes() for path in files]
    reason = spoil(project)
    monkeypatch.chdir(project.root)

    with pytest.raises(SystemExit) as ended:
        main(["data", "scenes", "--train", "1", "--val", "1", "--test", "1", "--replace"])

    assert ended.value.code == 1
    assert reason in capsys.readouterr().err
    assert [path.read_bytes() for path in files] == before


@pytest.mark.slow
def test_a_lock_that_another_dvc_holds_is_told(project):
    lock = zc.lockfile.LockFile(str(project.root / ".dvc" / "tmp" / "lock"))

    with pytest.raises(DiptychError, match=r"Unable to acquire lock[^$]*Wait for that process"), changing(project):
        raise AssertionError

    lock.close()


def test_both_reasons_are_told_where_it_cannot_be_undone(project):
    with pytest.raises(DiptychError, match=r"a row\n.*data/ cannot go back to version"), changing(project):
        change(project)
        shutil.rmtree(project.root / ".dvc" / "cache")
        raise DiptychError("a row")

    assert json.loads(project.journal.read_text())["present"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_whose_folder_was_deleted_leaves_the_journal_of_the_next_one(project, fails):
    with ExitStack() as next_run:
        with suppress(DiptychError), project.held("the first run"), changing(project):
            change(project)
            shutil.rmtree(project.local)
            next_run.enter_context(project.held("the next run"))
            begin(project)
            if fails:
                raise DiptychError("a row")
        assert project.journal.exists()

    assert (project.data / "captions.json").read_text() == SECOND


def test_a_remote_whose_client_is_not_installed_is_told_as_dvc_tells_it(project):
    run("dvc", "remote", "add", "--default", "far", "gs://bucket/x", cwd=project.root)
    shutil.rmtree(project.root / ".dvc" / "cache")
    shutil.rmtree(project.data)

    with pytest.raises(DiptychError, match=r"DVC says: .*gs.*requires 'dvc-gs' to be installed"):
        fetch_dataset(project)
