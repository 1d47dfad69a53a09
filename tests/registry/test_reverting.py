"""Back to an earlier dataset version, by a version of the model or by a commit."""

import json
import shutil
import subprocess
from typing import Any

import pytest
from fake_project import commit, run
from versions import make_version, open_registry

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.changing import changing
from diptych.project.dataset import record_dataset, switch_dataset
from diptych.project.record import dataset_version
from diptych.project.recording import record_run
from diptych.project.workspace import Workspace
from diptych.registry.reverting import find_commit, revert_dataset

pytestmark = pytest.mark.slow

HASHES = ("dvc_lock_sha256", "params_sha256", "weights_sha256", "model_sha256")


def head(workspace: Workspace) -> str:
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=workspace.root, text=True).strip()


def version_of(workspace: Workspace) -> str:
    version = dataset_version(workspace)
    assert version
    return version


def captions(workspace: Workspace) -> dict[str, Any]:
    return json.loads((workspace.data / "captions.json").read_text())


@pytest.fixture
def grown(project: Workspace) -> Workspace:
    """A project whose dataset has become another one since HEAD."""
    (project.data / "captions.json").write_text('{"info": {"seed": 7}, "images": [], "annotations": []}')
    record_dataset(project)
    return project


def test_data_is_what_the_commit_records_and_git_stays_as_it_is(grown):
    later, before = dataset_version(grown), head(grown)

    reverted = revert_dataset(grown, "HEAD")

    assert captions(grown)["info"] == {}
    assert (reverted.before, reverted.after) == (later, dataset_version(grown))
    assert reverted.commit == before == head(grown)
    assert not dvc.status(grown, "data.dvc")


def test_the_way_back_is_the_same(grown):
    run_commit = record_run(grown).sha
    revert_dataset(grown, "HEAD")

    revert_dataset(grown, run_commit)

    assert captions(grown)["info"] == {"seed": 7}


def test_a_version_that_the_cache_lacks_comes_from_the_remote(grown, tmp_path):
    run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"), cwd=grown.root)
    recorded = (grown.root / "data.dvc").read_text()
    revert_dataset(grown, "HEAD")
    dvc.push(grown, print)
    switch_dataset(grown, recorded)
    dvc.push(grown, print)
    shutil.rmtree(grown.root / ".dvc" / "cache")
    shutil.rmtree(grown.data)

    revert_dataset(grown, "HEAD")

    assert captions(grown)["info"] == {}


def test_a_version_that_nobody_has_leaves_all_as_it_was(grown):
    recorded = (grown.root / "data.dvc").read_text()
    (first,) = subprocess.check_output(["git", "show", "HEAD:data.dvc"], cwd=grown.root, text=True).split("md5: ")[1:2]
    md5 = first.split()[0]
    next((grown.root / ".dvc" / "cache").rglob(md5[2:])).unlink()

    with pytest.raises(DiptychError, match="data/ stays as it is"):
        revert_dataset(grown, "HEAD")

    assert (grown.root / "data.dvc").read_text() == recorded
    assert captions(grown)["info"] == {"seed": 7}


def test_where_the_images_stay_in_the_remote_only_a_version_that_it_has_is_gone_back_to(grown, tmp_path, monkeypatch):
    run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"), cwd=grown.root)
    later = (grown.root / "data.dvc").read_text()
    revert_dataset(grown, "HEAD")
    dvc.push(grown, print)
    (grown.root / "data.dvc").write_text(later)
    for folder in (grown.data, grown.root / ".dvc" / "cache"):
        shutil.rmtree(folder)
    monkeypatch.setenv("DIPTYCH_PIXELS", "remote")

    assert revert_dataset(grown, "HEAD").after == dataset_version(grown)
    assert not grown.data.exists()
    earlier = (grown.root / "data.dvc").read_text()
    stays = r"data\.dvc stays as it was: .*neither on this disk nor in the DVC remote storage"
    with pytest.raises(DiptychError, match=stays), changing(grown):
        switch_dataset(grown, later)
    assert (grown.root / "data.dvc").read_text() == earlier
    files = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    [captions_file] = [path for path in files if b"info" in path.read_bytes()]
    captions_file.unlink()
    with pytest.raises(DiptychError, match=r"captions\.json \([0-9a-f]{32}\) is not in the DVC remote storage"):
        switch_dataset(grown, earlier)


def test_changes_that_no_version_holds_are_not_lost(grown):
    (grown.data / "captions.json").write_text('{"info": {"seed": 8}, "images": [], "annotations": []}')

    with pytest.raises(DiptychError, match="dvc add data"):
        revert_dataset(grown, "HEAD")

    assert captions(grown)["info"] == {"seed": 8}


@pytest.mark.parametrize("unknown", ["nowhere", "--help", "HEAD~7"])
def test_a_commit_that_is_not_there_is_said_so(grown, unknown):
    with pytest.raises(DiptychError, match="knows no commit"):
        revert_dataset(grown, unknown)


def test_a_commit_without_a_dataset_is_said_so(grown):
    recorded = (grown.root / "data.dvc").read_text()
    (grown.root / "data.dvc").unlink()
    commit(grown.root)
    (grown.root / "data.dvc").write_text(recorded)

    with pytest.raises(DiptychError, match="records no dataset"):
        revert_dataset(grown, "HEAD")


@pytest.mark.parametrize("content", ["<<<<<<< ours\nouts:\n=======\n", "outs: none\n", "[]\n", "outs: []\n"])
def test_a_commit_whose_data_dvc_is_damaged_leaves_all_as_it_was(grown, content):
    recorded = (grown.root / "data.dvc").read_text()
    (grown.root / "data.dvc").write_text(content)
    commit(grown.root)
    (grown.root / "data.dvc").write_text(recorded)

    with pytest.raises(DiptychError, match=r"Commit .* records no dataset"):
        revert_dataset(grown, "HEAD")

    assert (grown.root / "data.dvc").read_text() == recorded
    assert captions(grown)["info"] == {"seed": 7}


def test_a_version_of_the_model_leads_to_the_commit_of_its_run(grown, mlflow_store):
    model = open_registry(grown, mlflow_store)
    version = make_version(model, grown.local, alias="champion")
    sha = record_run(grown).sha
    model.tag(version, {"git_sha": sha, "git_dirty": "false", "data_md5": version_of(grown)})
    model.tag(version, dict.fromkeys(HASHES, "0" * 64))

    found, commit_sha = find_commit(grown, Params(), "champion")

    assert (found.version, commit_sha) == ("1", sha)
