"""Files that only DVC's remote has, in a folder and in S3: the same bytes as from the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import yaml
from moto.server import ThreadedMotoServer
from tiny import open_prepared, write_prepared

from diptych.data import stored
from diptych.data.cache_folder import cache_folder
from diptych.data.shards import Member, ShardWriter, list_members, read_member, read_members
from diptych.data.stored import Range, Sent, find_stored, local_path, read_ranges, stored_files
from diptych.data.workers import in_processes
from diptych.errors import DiptychError
from diptych.project import dvc_remote

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="module")
def variables(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Credentials; the address of the server is in DVC's settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        yield


@pytest.fixture(scope="module")
def unpushed(variables: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a dataset and prepared data that DVC's cache has, without a remote."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("unpushed") / "project"
    root.mkdir()
    with ShardWriter(root / "data") as shards:
        for index in range(3):
            shards.add(f"{index}.png", bytes([index]) * (1000 + index))
    write_prepared(root / "artifacts" / "prepared", train=20)
    with Repo.init(str(root), no_scm=True) as repo:
        repo.add([str(root / "data"), str(root / "artifacts" / "prepared")])
    return root


@pytest.fixture(scope="module")
def in_folder(unpushed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _push(unpushed, tmp_path_factory.mktemp("folder"), url="../../remote")


@pytest.fixture(scope="module")
def in_s3(unpushed: Path, endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    boto3.resource("s3", endpoint_url=endpoint).Bucket("bucket").create()
    return _push(unpushed, tmp_path_factory.mktemp("s3"), url="s3://bucket/dvc", endpointurl=endpoint)


def _push(unpushed: Path, folder: Path, **remote: str) -> Path:
    """Leaves in `folder` what is left by `dvc add data`, `dvc repro` and `dvc push`."""
    from dvc.repo import Repo

    root = folder / "project"
    shutil.copytree(unpushed, root)
    options = "".join(f"    {name} = {value}\n" for name, value in remote.items())
    (root / ".dvc" / "config").write_text(f"[core]\n    no_scm = True\n    remote = far\n['remote \"far\"']\n{options}")
    with Repo(str(root)) as repo:
        repo.push()
    record = root / "artifacts" / "prepared.dvc"
    [out] = yaml.safe_load(record.read_text())["outs"]
    stage = {"cmd": "diptych stage preprocess", "outs": [out | {"path": "artifacts/prepared"}]}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"preprocess": stage}}))
    record.unlink()
    return folder


@pytest.fixture
def only_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_openers", lambda: [dvc_remote.open_remote])
    cache_folder.cache_clear()


@pytest.fixture
def alone(only_dvc: None, unpushed: Path, tmp_path: Path) -> Path:
    """A project without a remote."""
    return shutil.copytree(unpushed, tmp_path / "alone" / "project")


@pytest.fixture
def root(only_dvc: None, in_folder: Path, tmp_path: Path) -> Path:
    """A project whose files are in a folder too, its remote."""
    return shutil.copytree(in_folder, tmp_path / "copy") / "project"


@pytest.fixture(params=["folder", "s3"])
def pushed(request: pytest.FixtureRequest, only_dvc: None, tmp_path: Path) -> Path:
    """A project whose files the remote has too, in a folder or in S3."""
    return shutil.copytree(request.getfixturevalue(f"in_{request.param}"), tmp_path / "copy") / "project"


def empty_disk(root: Path) -> None:
    """Leaves the tables alone, neither pixels nor DVC's cache."""
    for path in (*root.glob("data/*.tar"), *root.glob("artifacts/prepared/images/*.npy")):
        path.unlink()
    shutil.rmtree(root / ".dvc" / "cache")


def test_images_and_pixels_are_the_same_bytes(pushed: Path) -> None:
    data, members = pushed / "data", list_members(pushed / "data")
    raw = [read_member(data, member) for member in members]
    split = open_prepared(pushed / "artifacts" / "prepared").split("train")
    pixels = split.pixels(np.array([3, 0, 19, 3]))
    empty_disk(pushed)

    assert list(read_members(data, members)) == raw
    assert [read_member(data, member) for member in members] == raw
    split = open_prepared(pushed / "artifacts" / "prepared").split("train")
    assert split.is_stored_elsewhere
    assert np.array_equal(split.pixels(np.array([3, 0, 19, 3])), pixels)
    assert list((pushed / ".diptych" / "cache" / "remote").iterdir())


def test_a_dataset_that_is_not_on_the_disk_is_listed_and_read(pushed: Path) -> None:
    data = pushed / "data"
    members, files = list_members(data), {path.name: path.read_bytes() for path in data.iterdir()}
    shutil.rmtree(data)
    shutil.rmtree(pushed / ".dvc" / "cache")

    assert list_members(data) == members
    assert {file.path.name for file in stored_files(data)} == set(files)
    assert local_path(data / "images-00000.tar").read_bytes() == files["images-00000.tar"]
    assert stored_files(pushed / "artifacts") == stored_files(pushed / "data" / "sub") == []


def test_what_is_sent_is_as_dvc_push_would_leave_it(pushed: Path, tmp_path: Path) -> None:
    from dvc.repo import Repo

    remote = dvc_remote.open_remote(pushed / "data")
    assert remote is not None
    folder = pushed / "artifacts" / "more"
    folder.mkdir()
    for name in ("a.npy", "b.npy"):
        (folder / name).write_text(name)
    keys = {path.name: Sent(remote.send(path), path.stat().st_size) for path in sorted(folder.iterdir(), reverse=True)}
    assert remote.send(folder / "a.npy") == keys["a.npy"].key
    assert remote.lacking([file.key for file in keys.values()]) == set()
    assert remote.lacking([keys["a.npy"].key, "0" * 32]) == {"0" * 32}

    remote.send_folder(folder, keys)

    noted = json.loads((pushed / dvc_remote.SENT).read_text())
    with Repo(str(pushed)) as repo:
        [stage] = repo.add([str(folder)])
        assert noted == {"artifacts/more": {**stage.outs[0].hash_info.to_dict(), "size": 10, "nfiles": 2}}
        assert stage.outs[0].meta.size == 10
        assert repo.status(cloud=True, targets=[str(folder)]) == {}


def test_a_remote_that_cannot_be_written_is_said(root: Path) -> None:
    remote = dvc_remote.open_remote(root / "data")
    assert remote is not None
    shutil.rmtree(root.parent / "remote")
    (root.parent / "remote").write_text("a file")
    with pytest.raises(DiptychError, match=r"the DVC remote far \(.*remote\) cannot be written: .*run again"):
        remote.send(root / "data" / "images-00000.tar")


def _read(data: Path, member: Member) -> bytes:
    return read_member(data, member)


def test_worker_processes_read_from_the_remote_that_their_parent_has_opened(pushed: Path) -> None:
    data, members = pushed / "data", list_members(pushed / "data")
    empty_disk(pushed)
    here = list(read_members(data, members))
    assert list(in_processes(partial(_read, data), members, 2)) == here


def test_a_range_beyond_the_end_is_a_file_that_is_cut_off(pushed: Path) -> None:
    file = find_stored(pushed / "data" / "images-00000.tar")
    assert file is not None
    size = file.path.stat().st_size
    for start in (size - 1, size, size + 1000):
        with pytest.raises(DiptychError, match=r"images-00000\.tar is damaged or cut off in the DVC remote far \("):
            read_ranges([Range(file, start, start + 100)])


def test_a_file_that_the_remote_lacks_is_named_with_its_hash(pushed: Path) -> None:
    [member, *_] = list_members(pushed / "data")
    file = find_stored(pushed / "data" / member.shard)
    assert file is not None
    lost = file._replace(key="0" * 32)
    with pytest.raises(
        DiptychError,
        match=r"data/images-00000\.tar is neither on this disk nor in the DVC remote far \(.*\) \(as 0{32}\)\. "
        "Run `dvc push` on a machine that has it",
    ):
        read_ranges([Range(lost, member.offset, member.offset + member.size)])


@pytest.mark.parametrize(
    "place", ["data/other.tar", "data/sub/images-00000.tar", "artifacts/model", "dvc.yaml", "data"]
)
def test_what_dvc_does_not_know_is_nowhere(root: Path, place: str) -> None:
    assert find_stored(root / place) is None


def test_without_a_remote_or_a_project_nothing_is_found(alone: Path, tmp_path: Path) -> None:
    root = alone
    assert find_stored(root / "data" / "images-00000.tar") is None
    assert find_stored(tmp_path / "data" / "images-00000.tar") is None
    members = list_members(root / "data")
    (root / "data" / "images-00000.tar").unlink()
    with pytest.raises(DiptychError, match="is missing; `dvc checkout` restores it"):
        list(read_members(root / "data", members))


def test_credentials_that_run_out_are_said_with_the_remote(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_prepared(root / "artifacts" / "prepared").split("train")
    empty_disk(root)
    split.pixels(np.array([0, 1]))
    remote = find_stored(root / "artifacts" / "prepared" / "images" / "images-00000.npy").store  # type: ignore[union-attr]
    assert isinstance(remote, dvc_remote.DvcRemote)

    def expired(paths: list[str], *_: Any, **__: Any) -> list[Exception]:
        return [PermissionError("The provided token has expired.") for _ in paths]

    monkeypatch.setattr(remote._files, "cat_ranges", expired)  # noqa: SLF001
    assert split.pixels(np.array([1, 0])).shape[0] == 2  # what is here needs no credentials
    with pytest.raises(
        DiptychError,
        match=r"images-00000\.npy is not on this disk, and the DVC remote far \(.*remote\) cannot be read: "
        r"The provided token has expired\. Check the network and the credentials, then run again",
    ):
        split.pixels(np.array([1, 2]))


def test_settings_that_dvc_refuses_are_said(root: Path) -> None:
    (root / ".dvc" / "config").write_text("[core]\nremote = gone\n")
    with pytest.raises(DiptychError, match=r"The DVC remote of .*project cannot be used: .*gone"):
        find_stored(root / "data" / "images-00000.tar")


def test_the_cache_lies_where_the_variable_says(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dvc_remote.CACHE, str(tmp_path / "fast"))
    empty_disk(root)
    open_prepared(root / "artifacts" / "prepared").split("train").pixels(np.array([0]))
    assert list((tmp_path / "fast").iterdir())


def test_hashes_of_older_versions_of_dvc_are_left_alone(root: Path) -> None:
    record = root / "data.dvc"
    record.write_text(record.read_text().replace("  hash: md5\n", ""))
    assert find_stored(root / "data" / "images-00000.tar") is None
