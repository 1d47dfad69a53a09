"""Taking drops with DVC itself: no failure and no kill leaves half a version."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from click.testing import CliRunner
from dropping import photos, write_drop
from fake_project import run
from ingesting_drops import NOT_AN_IMAGE, refused, take

from diptych.cli.main import cli
from diptych.data.captions import read_dataset
from diptych.data.scenes.drawing import write_scenes
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.changing import begin, recover
from diptych.project.dataset import record_dataset
from diptych.project.record import dataset_version

pytestmark = pytest.mark.slow


def test_a_drop_becomes_part_of_the_dataset(stocked):
    before = dataset_version(stocked)
    write_drop(stocked.root / "inbox" / "monday", photos(10, 11, 12))

    (taken,) = take(stocked)

    assert (taken.name, taken.outcome, taken.images, taken.captions) == ("monday", "taken", 3, 6)
    assert len(read_dataset(stocked.data).images) == 9
    assert {image["split"] for image in read_dataset(stocked.data).images} <= {"train", "val", "test"}
    assert dataset_version(stocked) != before
    assert dvc.status(stocked) == {}
    assert not (stocked.local / "taking.json").exists()


def test_a_drop_of_images_that_do_not_decode_is_refused(stocked, unchanged):
    write_drop(stocked.root / "inbox" / "bad", [*photos(10, 11), *NOT_AN_IMAGE])

    reason = refused(stocked)

    assert "1 of its 3 new images (33.3%) are bad, more than validate.max_quarantined_share allows (2.0%)" in reason
    assert "broken.png: no image" in reason
    assert unchanged()


def test_a_drop_that_breaks_the_dataset_is_refused_with_what_validation_says(stocked, unchanged):
    bad = [(f"{n}.png", f"no image {n}".encode(), ["a thing"]) for n in range(9)]
    write_drop(stocked.root / "inbox" / "bad", bad)

    assert refused(stocked) == "7 of 12 images are bad"
    assert unchanged()


def test_onto_generated_scenes_a_drop_is_added_and_a_refusal_leaves_them_drawable(stocked):
    shutil.rmtree(stocked.data)
    write_scenes(stocked.data, train=4, val=1, test=1, size=32)
    # These are JPEGs, which the validation of these tests does not know.
    stage = stocked.root / "stage.py"
    stage.write_text(stage.read_text().replace('== b"\\x89PNG"', 'in (b"\\x89PNG", b"\\xff\\xd8\\xff\\xe0")'))
    record_dataset(stocked)
    recorded = yaml.safe_load((stocked.root / "data.dvc").read_text())
    write_drop(stocked.root / "inbox" / "a", NOT_AN_IMAGE)

    assert [taken.outcome for taken in take(stocked)] == ["refused"]
    assert yaml.safe_load((stocked.root / "data.dvc").read_text()) == recorded
    assert recorded["meta"]["scenes"]["train"] == 4

    write_drop(stocked.root / "inbox" / "b", photos(10))
    assert [taken.outcome for taken in take(stocked)] == ["taken"]
    assert "meta" not in yaml.safe_load((stocked.root / "data.dvc").read_text())


def test_a_dataset_that_is_not_here_is_brought_first(stocked):
    shutil.rmtree(stocked.data)
    write_drop(stocked.root / "inbox" / "a", photos(10))

    assert [taken.outcome for taken in take(stocked)] == ["taken"]
    assert len(read_dataset(stocked.data).images) == 7


def test_where_the_images_stay_in_the_remote_a_drop_is_added_there(stocked, tmp_path, monkeypatch):
    stage = stocked.root / "stage.py"
    from_anywhere = """
from diptych.data.shards import list_members, read_member
from diptych.data.stored import local_path
here = pathlib.Path("data")
dataset = json.loads(local_path(here / "captions.json").read_text())
sound = {one.name for one in list_members(here) if read_member(here, one)[:4] == b"\\x89PNG"}
"""
    script = stage.read_text()
    reading = script[script.index("dataset =") : script.index("source =")]
    stage.write_text(script.replace(reading, from_anywhere))
    run("dvc", "repro", "--quiet", cwd=stocked.root)
    run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=stocked.root)
    run("dvc", "push", "--quiet", cwd=stocked.root)
    for folder in (stocked.data, stocked.artifacts, stocked.reports, stocked.root / ".dvc" / "cache"):
        shutil.rmtree(folder)
    monkeypatch.setenv("DIPTYCH_PIXELS", "remote")
    write_drop(stocked.root / "inbox" / "a", photos(10, 11))
    write_drop(stocked.root / "inbox" / "b", NOT_AN_IMAGE)
    write_drop(stocked.root / "inbox" / "c", photos(11))

    assert [taken.outcome for taken in take(stocked)] == ["taken", "refused", "known"]

    assert not stocked.data.exists()
    assert len(read_dataset(stocked.data).images) == 8
    assert (stocked.root / "artifacts" / "manifest.txt").read_text() == "1 2 3 4 5 6 7 8"
    assert dvc.status(stocked) == {}
    monkeypatch.delenv("DIPTYCH_PIXELS")
    run("dvc", "pull", "--quiet", cwd=stocked.root)
    assert len(list(stocked.data.glob("*.tar"))) == 2
    assert dvc.status(stocked) == {}


def test_changes_that_no_version_holds_are_not_overwritten(stocked):
    (stocked.data / "mine.txt").write_text("precious")
    write_drop(stocked.root / "inbox" / "a", photos(10))

    with pytest.raises(DiptychError, match="not the version that"):
        take(stocked)

    assert (stocked.data / "mine.txt").read_text() == "precious"


def test_a_stage_that_breaks_is_no_fault_of_the_drop(stocked, unchanged, monkeypatch):
    write_drop(stocked.root / "inbox" / "a", photos(10))
    reproduce = dvc.reproduce

    def broken(*arguments, **options):
        monkeypatch.setenv("BREAK", "1")
        return reproduce(*arguments, **options)

    monkeypatch.setattr(dvc, "reproduce", broken)
    with pytest.raises(DiptychError, match="it broke"):
        take(stocked)

    assert unchanged()
    assert not (stocked.local / "inbox.json").exists()


def test_a_version_that_is_in_no_cache_is_named(stocked):
    begin(stocked)
    shutil.rmtree(stocked.root / ".dvc" / "cache")
    write_scenes(stocked.data, train=1, val=1, test=1, size=32, replace=True)

    with pytest.raises(DiptychError, match="dvc pull"):
        recover(stocked)

    assert (stocked.local / "taking.json").exists()


TAKE = """
import os, signal, sys
from pathlib import Path
from diptych.config import Params
from diptych.data import importing
from diptych.inbox import ingesting
from diptych.project.workspace import Workspace
from diptych import files
from diptych.project import changing, dataset, dvc
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
def before(module, name):
    setattr(module, name, die)
def after(module, name):
    function = getattr(module, name)
    setattr(module, name, lambda *arguments, **options: die(function(*arguments, **options)))
where = sys.argv[1]
if where == "with the journal": after(changing, "begin")
elif where == "with the shards stored": before(importing, "write_dataset")
elif where == "with the captions written": after(importing, "write_dataset")
elif where == "with dvc add done": after(dataset, "note_scenes")
elif where == "before the judgement": before(ingesting, "_judge")
elif where == "while going back": before(dvc, "failure")
elif where == "before the ledger": before(ingesting, "record_result")
ingesting.ingest_drops(Workspace(Path.cwd()), Params(), "inbox", print)
"""
MOMENTS = [
    "with the journal",
    "with the shards stored",
    "with the captions written",
    "with dvc add done",
    "before the judgement",
]


@pytest.fixture
def killed(stocked, forks):
    """Ingests in a process that is killed."""

    def ingest(where):
        environment = os.environ | forks.everywhere()
        process = subprocess.run(
            forks.python("-c", TAKE, where), cwd=stocked.root, env=environment, capture_output=True
        )
        assert process.returncode == -signal.SIGKILL, process.stderr

    return ingest


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_the_version_before(stocked, unchanged, moment, killed):
    write_drop(stocked.root / "inbox" / "a", photos(10))
    killed(moment)

    assert recover(stocked)

    assert unchanged()


def test_a_kill_while_the_stage_runs_leaves_the_version_before_and_the_drop_to_be_taken(stocked, unchanged, forks):
    write_drop(stocked.root / "inbox" / "a", photos(10))
    # DVC is no fork here: it has to end with the process that has started it.
    code = f"import os; print(os.getpid(), flush=True)\n{TAKE}"
    environment = os.environ | {"SLEEP": "1"}
    process = subprocess.Popen(
        forks.python("-c", code, ""), cwd=stocked.root, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    number = int(process.stdout.readline())
    while not (stocked.root / "sleeping").exists():
        time.sleep(0.05)
    os.kill(number, signal.SIGKILL)
    process.communicate()
    (stocked.root / "sleeping").unlink()

    assert recover(stocked)
    assert unchanged()
    assert [taken.outcome for taken in take(stocked)] == ["taken"]


def test_a_kill_while_going_back_is_recovered_from(stocked, unchanged, killed):
    write_drop(stocked.root / "inbox" / "a", NOT_AN_IMAGE)
    killed("while going back")

    assert recover(stocked)
    assert unchanged()
    assert "are bad" in refused(stocked)


def test_a_kill_before_the_ledger_is_written_stores_nothing_twice(stocked, killed):
    write_drop(stocked.root / "inbox" / "a", photos(10))
    killed("before the ledger")

    assert recover(stocked) is False
    assert [taken.outcome for taken in take(stocked)] == ["known"]
    assert len(read_dataset(stocked.data).images) == 7


def test_an_import_by_hand_begins_with_the_version_before(stocked, monkeypatch, killed):
    """Lest what it brings be undone with the drop."""
    write_drop(stocked.root / "inbox" / "a", photos(10))
    killed("with dvc add done")
    mine = write_drop(stocked.root / "mine", photos(20, 21))
    monkeypatch.chdir(stocked.root)

    source = ["--coco", str(mine / "captions.json"), "--images", str(mine / "images")]
    done = CliRunner().invoke(cli, ["data", "import", *source])

    assert done.exit_code == 0, done.output
    sources = [image["source"] for image in read_dataset(stocked.data).images]
    assert (len(sources), sources[6:]) == (8, ["20.png", "21.png"])
    assert recover(stocked) is False
