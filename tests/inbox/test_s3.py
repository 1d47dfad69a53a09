"""An inbox in S3: fetched completely, and only into its own folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from dropping import photos, write_drop
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem  # type: ignore[import-untyped]

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.inbox.drops import ChangedError
from diptych.inbox.ingesting import ingest_drops, open_inbox
from diptych.project.workspace import Workspace

pytestmark = pytest.mark.slow

ADDRESS = "s3://bucket/new/pairs"
CSV = b"file,caption\n"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """Empty; found by the environment, as people have it."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("bucket")
    bucket.create()
    bucket.objects.all().delete()
    return bucket


def put(bucket, **objects: bytes) -> None:
    for key, content in objects.items():
        bucket.put_object(Key=f"new/pairs/{key}", Body=content)


def upload(bucket, drop: Path) -> None:
    for path in drop.rglob("*"):
        if path.is_file():
            put(bucket, **{f"{drop.name}/{path.relative_to(drop).as_posix()}": path.read_bytes()})


def drops(tmp_path: Path):
    return open_inbox(Workspace(tmp_path), ADDRESS).drops()


def test_prefixes_with_a_captions_file_are_drops(bucket, tmp_path):
    put(bucket, **{"b/captions.csv": CSV, "b/images/1.png": b"1", "a/captions.json": b"{}", "copying/1.png": b"1"})
    put(bucket, **{"_building/captions.csv": CSV, ".hidden/captions.csv": CSV, "captions.csv": CSV, "a/images/": b""})
    bucket.put_object(Key="new/pairs-of-others/c/captions.csv", Body=CSV)

    found = drops(tmp_path)

    assert [(one.name, one.files) for one in found] == [
        ("a", ("captions.json",)),
        ("b", ("captions.csv", "images/1.png")),
    ]


def test_a_drop_that_changes_is_another_one(bucket, tmp_path):
    put(bucket, **{"a/captions.csv": CSV})
    before = drops(tmp_path)

    assert drops(tmp_path) == before
    put(bucket, **{"a/captions.csv": CSV[::-1]})
    assert drops(tmp_path) != before


def test_a_drop_is_fetched_and_goes_when_it_is_done_with(bucket, tmp_path):
    put(bucket, **{"a/captions.csv": CSV, "a/images/1.png": b"one"})
    inbox = open_inbox(Workspace(tmp_path), ADDRESS)
    (drop,) = inbox.drops()

    with inbox.opened(drop) as folder:
        assert folder.is_relative_to(tmp_path / ".diptych" / "inbox")
        assert (folder / "captions.csv").read_bytes() == CSV
        assert (folder / "images" / "1.png").read_bytes() == b"one"

    assert not (tmp_path / ".diptych" / "inbox").exists()


@pytest.mark.parametrize(
    "key",
    [
        "../../../evil.txt",
        "images/../../../../evil.txt",
        "images//etc/passwd",
        "/etc/passwd",
        "images\\..\\evil.txt",
        "captions.csv/1.png",
        "i" * 300,
        "1.png?versionId=null",
    ],
)
def test_a_hostile_key_makes_the_drop_a_problem(bucket, tmp_path, key):
    put(bucket, **{"a/captions.csv": CSV, f"a/{key}": b"evil", "b/captions.csv": CSV})

    found = drops(tmp_path)

    assert [(one.name, bool(one.problem)) for one in found] == [("a", True), ("b", False)]


def test_a_drop_named_as_a_version_is_a_problem(bucket, tmp_path):
    put(bucket, **{"a?versionId=1/captions.csv": CSV})

    assert "stands for a version" in drops(tmp_path)[0].problem


def test_a_drop_that_has_no_name_is_a_problem(bucket, tmp_path):
    put(bucket, **{"/captions.csv": CSV})

    assert [bool(one.problem) for one in drops(tmp_path)] == [True]


def test_a_name_that_looks_like_a_pattern_is_a_name(bucket, tmp_path):
    put(bucket, **{"a/captions.csv": CSV, "a/[x]*?.png": b"one", "a/x.png": b"another"})
    inbox = open_inbox(Workspace(tmp_path), ADDRESS)
    (drop,) = inbox.drops()

    with inbox.opened(drop) as folder:
        assert (folder / "[x]*?.png").read_bytes() == b"one"


def test_a_bucket_that_is_not_there_is_named(bucket, tmp_path):
    with pytest.raises(DiptychError, match=r"s3://nowhere/x cannot be read.*AWS_ENDPOINT_URL"):
        open_inbox(Workspace(tmp_path), "s3://nowhere/x").drops()


def test_an_address_without_a_bucket_is_refused(tmp_path):
    with pytest.raises(DiptychError, match="names no bucket"):
        open_inbox(Workspace(tmp_path), "s3:///")


def test_a_server_that_is_not_there_is_said(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DiptychError, match="cannot be read"):
        drops(tmp_path)


@pytest.mark.parametrize("content", [None, CSV[::-1]], ids=["deleted", "replaced"])
@pytest.mark.parametrize("name", ["captions.csv", "1.png"])
@pytest.mark.parametrize("moment", ["before the fetch", "during the fetch"])
def test_a_drop_that_changed_since_it_was_listed_is_not_opened(bucket, tmp_path, monkeypatch, moment, name, content):
    fetch = S3FileSystem._get  # noqa: SLF001

    def change() -> None:
        bucket.Object(f"new/pairs/a/{name}").delete() if content is None else put(bucket, **{f"a/{name}": content})

    async def change_and_fetch(*arguments, **options):
        change()
        return await fetch(*arguments, **options)

    put(bucket, **{"a/captions.csv": CSV, "a/1.png": b"one"})
    if moment == "during the fetch":
        monkeypatch.setattr(S3FileSystem, "_get", change_and_fetch)
    inbox = open_inbox(Workspace(tmp_path), ADDRESS)
    (drop,) = inbox.drops()
    if moment == "before the fetch":
        change()

    with pytest.raises(ChangedError, match="drop a is being changed"), inbox.opened(drop):
        pytest.fail("it was opened")
    assert not (tmp_path / ".diptych" / "inbox").exists()


def test_a_server_that_goes_away_is_no_change_of_the_drop(bucket, tmp_path, monkeypatch):
    async def fail(*arguments, **options):
        raise OSError("the network is down")

    put(bucket, **{"a/captions.csv": CSV})
    monkeypatch.setattr(S3FileSystem, "_get", fail)
    inbox = open_inbox(Workspace(tmp_path), ADDRESS)
    (drop,) = inbox.drops()

    with pytest.raises(DiptychError, match=r"cannot be read: the network is down\. Check"), inbox.opened(drop):
        pytest.fail("it was opened")


def test_a_disk_that_is_full_is_not_put_down_to_the_inbox(bucket, tmp_path, monkeypatch):
    put(bucket, **{"a/captions.csv": CSV})

    async def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")

    monkeypatch.setattr(S3FileSystem, "_get", fail)
    inbox = open_inbox(Workspace(tmp_path), ADDRESS)
    (drop,) = inbox.drops()
    with pytest.raises(OSError, match="No space left"), inbox.opened(drop):
        pass
    assert not (tmp_path / ".diptych" / "inbox").exists()


@pytest.mark.usefixtures("instant")
def test_a_drop_in_s3_becomes_part_of_the_dataset(bucket, stocked, tmp_path):
    upload(bucket, write_drop(tmp_path / "good", photos(10, 11)))
    put(bucket, **{"evil/captions.csv": CSV, "evil/../../../evil.txt": b"evil"})

    taken = ingest_drops(stocked, Params(), ADDRESS, lambda line: None)

    assert [(one.name, one.outcome, one.images) for one in taken] == [("evil", "refused", 0), ("good", "taken", 2)]
    assert ingest_drops(stocked, Params(), ADDRESS, lambda line: None) == []
    assert not list(tmp_path.rglob("evil.txt"))


def test_s3_without_s3fs_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)

    with pytest.raises(DiptychError, match="extra `stack`"):
        open_inbox(Workspace(tmp_path), "s3://bucket/inbox")
