"""Ingesting drops: all of one or nothing of it, and what becomes of it."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from dropping import photos, write_drop
from ingesting_drops import NOT_AN_IMAGE, ledger, refused, take

from diptych.config import Params
from diptych.data import importing
from diptych.data.captions import read_dataset
from diptych.errors import DiptychError
from diptych.inbox import ingesting
from diptych.inbox.ingesting import ingest_drops, open_inbox
from diptych.project import dvc, growing
from diptych.project.changing import recover
from diptych.project.record import dataset_version

pytestmark = pytest.mark.usefixtures("instant")


def test_a_table_with_its_images_beside_it_is_a_drop(stocked):
    folder = stocked.root / "inbox" / "table"
    folder.mkdir()
    for name, content, _ in photos(10, 11):
        (folder / name).write_bytes(content)
    (folder / "captions.tsv").write_text("file\tcaption\tsplit\n10.png\tone\ttrain\n11.png\ttwo\ttrain\n")

    (taken,) = take(stocked)

    assert (taken.outcome, taken.images) == ("taken", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('file,caption\n10.png,"open\n11.png,he said "\n', "captions.csv, line 2: the cell that a quote opens here"),
        ('file,caption\n10.png,one\n11.png,"open\n', "captions.csv, line 3: the quote that opens a cell here is never"),
    ],
)
def test_a_table_whose_cell_takes_in_rows_is_refused_with_the_line(stocked, unchanged, text, words):
    folder = stocked.root / "inbox" / "table"
    folder.mkdir()
    for name, content, _ in photos(10, 11):
        (folder / name).write_bytes(content)
    (folder / "captions.csv").write_text(text)

    assert words in refused(stocked)
    assert unchanged()


def test_drops_are_taken_in_the_order_of_their_names_and_once(stocked):
    for name, seed in (("b", 11), ("a", 10)):
        write_drop(stocked.root / "inbox" / name, photos(seed))

    assert [taken.name for taken in take(stocked)] == ["a", "b"]
    assert take(stocked) == []


def test_without_the_ledger_a_drop_is_found_known(stocked):
    write_drop(stocked.root / "inbox" / "a", photos(10))
    take(stocked)
    version = dataset_version(stocked)
    (stocked.local / "inbox.json").unlink()

    (taken,) = take(stocked)

    assert (taken.outcome, taken.images) == ("known", 0)
    assert dataset_version(stocked) == version
    assert dvc.status(stocked) == {}


def test_images_known_in_another_split_stay_there(stocked):
    known = [("old.png", photos(1)[0][1], ["a new word for it"])]
    write_drop(stocked.root / "inbox" / "a", [*known, *photos(10)], split="test")

    (taken,) = take(stocked)

    assert (taken.outcome, taken.images, taken.captions) == ("taken", 1, 3)
    assert read_dataset(stocked.data).images[0]["split"] == "val"


def test_a_drop_of_captions_without_words_is_refused(stocked, unchanged):
    write_drop(stocked.root / "inbox" / "bad", [("10.png", photos(10)[0][1], ["a thing", "  "])])

    assert "1 of its 2 new captions (50.0%)" in refused(stocked)
    assert unchanged()


def test_few_bad_rows_of_a_drop_are_set_aside(stocked):
    write_drop(stocked.root / "inbox" / "a", [*photos(10, 11), *NOT_AN_IMAGE])
    params = Params.model_validate({"validate": {"max_quarantined_share": 0.5}})

    (taken,) = ingest_drops(stocked, params, "inbox", lambda line: None)

    assert (taken.outcome, taken.images, taken.quarantined) == ("taken", 3, 1)


def test_what_was_bad_before_is_not_put_down_to_a_drop(stocked):
    params = Params.model_validate({"validate": {"max_quarantined_share": 0.5}})
    write_drop(stocked.root / "inbox" / "a", [*photos(10), *NOT_AN_IMAGE])
    ingest_drops(stocked, params, "inbox", lambda line: None)
    write_drop(stocked.root / "inbox" / "b", photos(11))

    (taken,) = take(stocked)

    assert (taken.name, taken.outcome, taken.quarantined) == ("b", "taken", 0)


def test_a_drop_without_its_images_is_refused(stocked, unchanged):
    folder = write_drop(stocked.root / "inbox" / "bad", photos(10))
    (folder / "images" / "10.png").unlink()

    assert "1 of 1 image files are not in" in refused(stocked)
    assert unchanged()


@pytest.mark.parametrize("name", ["../../data/captions.json", "/etc/hostname", "a/../../../x.png"])
def test_a_captions_file_that_points_elsewhere_is_refused(stocked, unchanged, name):
    folder = write_drop(stocked.root / "inbox" / "bad", photos(10))
    (folder / "captions.json").unlink()
    (folder / "captions.csv").write_text(f"file,caption\n{name},a thing\n")

    assert "leads out of the images folder" in refused(stocked)
    assert unchanged()


def test_a_missing_file_whose_name_no_file_can_have_is_refused(stocked, unchanged):
    folder = write_drop(stocked.root / "inbox" / "bad", photos(10))
    captions = (folder / "captions.json").read_text()
    (folder / "captions.json").write_text(captions.replace("10.png", "\\ud800.png"))

    assert "?.png" in refused(stocked)
    assert unchanged()
    assert take(stocked) == []


def test_a_file_whose_name_is_no_text_is_refused(stocked, unchanged):
    folder = write_drop(stocked.root / "inbox" / "bad", photos(10))
    (folder / "images" / "10.png").rename(folder / "images" / os.fsdecode(b"caf\xe9.png"))
    captions = (folder / "captions.json").read_text()
    (folder / "captions.json").write_text(captions.replace("10.png", "caf\\udce9.png"))

    assert "'caf?.png' is not in UTF-8" in refused(stocked)
    assert unchanged()


def test_a_problem_of_a_drop_is_its_reason(stocked, unchanged, tmp_path):
    (stocked.root / "inbox" / "bad").symlink_to(write_drop(tmp_path / "elsewhere", photos(10)))

    assert "leads out of the inbox" in refused(stocked)
    assert unchanged()


def test_a_drop_that_becomes_a_link_to_elsewhere_while_others_are_taken_is_left_for_the_next_run(
    stocked, instant, tmp_path, monkeypatch
):
    elsewhere = write_drop(tmp_path / "elsewhere", photos(11))
    write_drop(stocked.root / "inbox" / "a", photos(10))
    later = write_drop(stocked.root / "inbox" / "b", photos(11))
    record, said = instant.record_dataset, list[str]()

    def record_and_wait(workspace):
        record(workspace)
        shutil.rmtree(later / "images")
        (later / "images").symlink_to(elsewhere / "images")

    monkeypatch.setattr(growing, "record_dataset", record_and_wait)

    (taken,) = ingest_drops(stocked, Params(), "inbox", said.append)

    assert taken.name == "a"
    assert "drop b is being changed; the next run reads it again" in said
    assert len(ledger(stocked)) == 1
    assert "leads out of the inbox" in open_inbox(stocked, "inbox").drops()[1].problem


def test_a_refused_drop_leaves_those_after_it_alone(stocked):
    write_drop(stocked.root / "inbox" / "a", NOT_AN_IMAGE)
    write_drop(stocked.root / "inbox" / "b", photos(10))

    assert [taken.outcome for taken in take(stocked)] == ["refused", "taken"]
    assert len(read_dataset(stocked.data).images) == 7
    assert dvc.status(stocked) == {}


def test_a_refused_drop_that_was_mended_is_taken(stocked):
    folder = write_drop(stocked.root / "inbox" / "a", NOT_AN_IMAGE)
    take(stocked)
    shutil.rmtree(folder)
    write_drop(folder, photos(10))

    assert [taken.outcome for taken in take(stocked)] == ["taken"]


def test_what_is_no_drop_is_told_of(stocked):
    for number in range(5):
        (stocked.root / "inbox" / f"copying-{number}").mkdir()
    said: list[str] = []

    assert ingesting.ingest_drops(stocked, Params(), "inbox", said.append) == []

    assert [line.split()[0] for line in said] == ["copying-0", "copying-1", "copying-2", "and"]


def test_no_inbox_means_nothing_to_take(stocked):
    assert ingest_drops(stocked, Params(), None, lambda line: None) == []


def test_nothing_is_recovered_where_nothing_was_interrupted(stocked):
    assert recover(stocked) is False


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_is_no_fault_of_the_drop(stocked, unchanged, monkeypatch, number):
    write_drop(stocked.root / "inbox" / "a", photos(10))

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(importing, "write_dataset", fail)
    with pytest.raises((DiptychError, OSError), match=os.strerror(number)):
        take(stocked)

    assert unchanged()
    assert not (stocked.local / "inbox.json").exists()
