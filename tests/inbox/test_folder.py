"""An inbox that is a folder: which drops are complete, and which are a problem."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from diptych.errors import DiptychError
from diptych.inbox.drops import ChangedError
from diptych.inbox.folder import FolderInbox
from diptych.inbox.ingesting import open_inbox
from diptych.project.workspace import Workspace


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def drop(inbox: Path, name: str, captions: str = "captions.csv") -> Path:
    folder = inbox / name
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    (folder / captions).write_text("file,caption\na.png,a thing\n")
    return folder


def drops(inbox: Path):
    return open_inbox(Workspace(inbox.parent), "inbox").drops()


def test_a_subfolder_with_a_captions_file_is_a_drop(inbox):
    for number, captions in enumerate(("captions.json", "captions.csv", "captions.tsv")):
        drop(inbox, f"drop-{number}", captions)
    (inbox / "captions.csv").write_text("beside the drops")

    assert [one.name for one in drops(inbox)] == ["drop-0", "drop-1", "drop-2"]
    assert drops(inbox)[1].files == ("a.png", "captions.csv")


def test_a_drop_without_a_captions_file_is_not_complete_yet(inbox):
    (inbox / "copying" / "images").mkdir(parents=True)
    (inbox / "copying" / "images" / "captions.json").write_text("not this one")

    assert drops(inbox) == []


def test_what_is_no_drop_is_told(inbox):
    drop(inbox, "good")
    drop(inbox, "_building")
    (inbox / "captions.csv").write_text("file,caption")
    (inbox / "copying").mkdir()

    table, copying = open_inbox(Workspace(inbox.parent), "inbox").strays()

    assert table == "captions.csv lies in the inbox itself and is left alone: a drop is a folder"
    assert copying.startswith("copying is left alone until its captions are there: captions.json or ")


@pytest.mark.parametrize("name", [".hidden", "_building"])
def test_hidden_and_underscored_names_are_left_alone(inbox, name):
    drop(inbox, name)

    assert drops(inbox) == []


def test_an_image_may_begin_with_an_underscore(inbox):
    (drop(inbox, "camera") / "_MG_1234.jpg").write_bytes(b"a")

    assert "_MG_1234.jpg" in drops(inbox)[0].files


def test_a_drop_that_changes_is_another_one(inbox):
    folder = drop(inbox, "one")
    seen = [drops(inbox)[0].fingerprint]

    (folder / "a.png").write_bytes(b"ab")
    seen.append(drops(inbox)[0].fingerprint)
    os.utime(folder / "a.png", ns=(1, 1))
    seen.append(drops(inbox)[0].fingerprint)
    (folder / "a.png").rename(folder / "b.png")
    seen.append(drops(inbox)[0].fingerprint)

    assert len(set(seen)) == 4
    assert drops(inbox)[0].fingerprint == seen[-1]


def test_a_drop_that_may_be_read_at_last_is_another_one(inbox, monkeypatch):
    drop(inbox, "one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        (before,) = drops(inbox)

    assert drops(inbox)[0].fingerprint != before.fingerprint


def test_of_two_captions_files_neither_is_chosen(inbox):
    (drop(inbox, "both") / "captions.json").write_text("{}")

    assert "captions.json and captions.csv" in drops(inbox)[0].problem


@pytest.mark.parametrize("name", ["", "images", "captions.csv"])
def test_a_link_out_of_the_inbox_is_a_problem(inbox, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    drop(elsewhere, "real")
    folder = inbox / "linked"
    if name:
        drop(inbox, "linked", "captions.json" if name == "captions.csv" else "captions.csv")
        (folder / name).symlink_to(elsewhere / "real")
    else:
        folder.symlink_to(elsewhere / "real")

    (found,) = drops(inbox)

    assert "link that leads out of the inbox" in found.problem


def test_a_link_to_another_drop_is_not_said_to_lead_out_of_the_inbox(inbox):
    drop(inbox, "a")
    (inbox / "b").symlink_to(inbox / "a")

    assert "b is a link that leads out of the drop. A drop holds the files themselves" in drops(inbox)[1].problem


@pytest.mark.parametrize("name", ["captions.csv", "images"])
def test_a_link_that_leads_round_in_a_circle_ends_nothing(inbox, name):
    folder = drop(inbox, "round", "captions.json" if name == "captions.csv" else "captions.csv")
    (folder / name).symlink_to(name)

    (found,) = drops(inbox)

    assert ("captions.csv is no file" in found.problem) is (name == "captions.csv")


def test_a_captions_file_that_is_a_pipe_is_a_problem(inbox):
    (inbox / "pipe").mkdir()
    os.mkfifo(inbox / "pipe" / "captions.csv")

    (found,) = drops(inbox)

    assert found.problem == "captions.csv is no file, or a link to none."


def test_a_name_that_is_no_text_is_a_drop_all_the_same(inbox):
    folder = os.fsencode(inbox) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/captions.csv")).write_text("")

    (found,) = drops(inbox)

    assert found.name == "caf?"
    json.dumps(found.name).encode()


def test_a_name_speaks_to_no_terminal_and_begins_no_line(inbox):
    drop(inbox, "one\nwarning: two\x1b[2J")

    (found,) = drops(inbox)

    assert found.name == "one?warning: two?[2J"
    assert found.folder == "one\nwarning: two\x1b[2J"


def test_a_file_that_is_renamed_meanwhile_keeps_no_other_drop_from_being_seen(inbox, monkeypatch):
    (inbox / "copying").mkdir()
    drop(inbox, "ready")
    walk = os.walk

    def late(folder):
        return [(top, folders, [*names, ".a.png.tmp"]) for top, folders, names in walk(folder)]

    monkeypatch.setattr(os, "walk", late)

    assert [(one.name, one.files) for one in drops(inbox)] == [("ready", ("a.png", "captions.csv"))]


def test_a_drop_that_may_not_be_looked_into_keeps_no_other_one_from_being_seen(inbox, monkeypatch):
    for name in ("private", "ready"):
        drop(inbox, name)
    is_symlink = Path.is_symlink

    def denied(path):
        if path.parent.name == "private":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return is_symlink(path)

    monkeypatch.setattr(Path, "is_symlink", denied)

    assert [(one.name, one.problem) for one in drops(inbox)] == [
        ("private", "It cannot be looked into: Permission denied."),
        ("ready", ""),
    ]


def test_an_inbox_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DiptychError, match=r"nowhere is no folder.*retrain\.inbox"):
        open_inbox(Workspace(tmp_path), "nowhere")


def test_an_absolute_inbox_lies_where_it_says(tmp_path, inbox):
    drop(inbox, "one")

    assert len(open_inbox(Workspace(tmp_path / "project"), str(inbox)).drops()) == 1


def test_a_folder_that_goes_away_cannot_be_read(inbox):
    opened = FolderInbox(inbox)
    inbox.rmdir()

    with pytest.raises(DiptychError, match=r"inbox cannot be read: .*No such file"):
        opened.drops()
    assert opened.strays() == []


def test_a_drop_is_opened_in_its_place(inbox):
    folder = drop(inbox, "one")
    (found,) = drops(inbox)

    with FolderInbox(inbox).opened(found) as path:
        assert path == folder
    assert folder.is_dir()


@pytest.mark.parametrize("change", ["other content", "a link", "gone"])
def test_a_drop_that_changed_since_it_was_listed_is_not_opened(inbox, tmp_path, change):
    folder = drop(inbox, "one")
    (found,) = drops(inbox)
    if change == "other content":
        (folder / "b.png").write_bytes(b"b")
    else:
        folder.rename(tmp_path / "elsewhere")
        if change == "a link":
            folder.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ChangedError, match="drop one is being changed"), FolderInbox(inbox).opened(found):
        pytest.fail("it was opened")
