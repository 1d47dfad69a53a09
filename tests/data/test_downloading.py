"""Downloads from a server on loopback that is interrupted, changes its file, or knows no ranges."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_files import Server, serving

from diptych.data import downloading
from diptych.data.downloading import bytes_at, download, part_of
from diptych.errors import DiptychError

MIB = 1 << 20
CONTENT = os.urandom(3 * MIB)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "RETRIES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(CONTENT) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "archive.zip"


def fetch(server: Server, target: Path) -> None:
    download(server.url, target, len(CONTENT), SHA256)


def interrupt(server: Server, target: Path, *after: int) -> None:
    """Interrupt a download after so many bytes."""
    server.cut_after = [*after, 0]
    with pytest.raises(DiptychError, match="it continues where this one ended"):
        fetch(server, target)
    assert not target.exists()
    server.cut_after, server.asked = [], []


def test_a_file_is_downloaded_as_it_is_and_nothing_else_stays(server: Server, target: Path) -> None:
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert (server.ranges, server.asked[0]["Accept-Encoding"]) == ([None], "identity")


def test_an_interrupted_transfer_continues_by_itself(server: Server, target: Path) -> None:
    server.cut_after = [MIB, MIB // 2]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={MIB}-", f"bytes={MIB + MIB // 2}-"]


def test_the_next_call_continues_where_one_ended(server: Server, target: Path) -> None:
    interrupt(server, target, MIB)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert (server.ranges, server.asked[0]["If-Range"]) == ([f"bytes={MIB}-"], '"one"')


def test_a_call_that_ended_before_the_check_asks_for_nothing(server: Server, target: Path) -> None:
    part_of(target).write_bytes(CONTENT)
    fetch(server, target)
    assert (target.read_bytes(), server.asked) == (CONTENT, [])


@pytest.mark.parametrize("headers", [{}, {"Last-Modified": "Sun, 29 Nov 2026 10:00:00 GMT", "ETag": 'W/"weak"'}])
def test_it_continues_by_the_date_too_and_without_any_sign_of_change(
    server: Server, target: Path, headers: dict[str, str]
) -> None:
    server.headers = headers
    interrupt(server, target, MIB)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[0].get("If-Range") == headers.get("Last-Modified")


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_has_changed_is_downloaded_from_its_start(
    server: Server, target: Path, knows_if_range: bool
) -> None:
    server.content, server.knows_if_range = bytes(len(CONTENT)), knows_if_range
    interrupt(server, target, MIB)
    server.content, server.headers = CONTENT, {"ETag": '"two"'}
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={MIB}-", None][: 1 if knows_if_range else 2]


def test_a_server_without_ranges_sends_the_file_from_its_start(server: Server, target: Path) -> None:
    server.knows_range = False
    interrupt(server, target, 2 * MIB)
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_that_is_always_interrupted_is_given_up(server: Server, target: Path) -> None:
    server.knows_range = False
    interrupt(server, target, 2 * MIB, MIB)


def test_a_server_with_a_new_tag_each_time_that_is_always_interrupted_is_given_up(server: Server, target: Path) -> None:
    server.renames, server.knows_if_range = True, False
    interrupt(server, target, MIB, MIB, MIB)


def test_what_is_longer_than_the_file_is_replaced(server: Server, target: Path) -> None:
    part_of(target).write_bytes(bytes(len(CONTENT) + 1))
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_length_that_is_not_announced_is_counted(server: Server, target: Path) -> None:
    server.announces = False
    server.cut_after = [MIB]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_something_of_unknown_length_does_not_replace_what_was_received(server: Server, target: Path) -> None:
    """A page of a proxy to log in, say."""
    interrupt(server, target, MIB)
    server.content, server.announces, server.knows_range = b"Log in, please.", False, False
    with pytest.raises(DiptychError, match="unknown length"):
        fetch(server, target)
    assert bytes_at(part_of(target)) == MIB


def test_a_server_that_stays_busy_is_an_error_that_says_so(server: Server, target: Path) -> None:
    server.status = 503
    with pytest.raises(DiptychError, match=r"503 Service Unavailable\. Try again later"):
        fetch(server, target)


def test_a_file_of_another_size_is_refused_before_any_of_it_is_received(server: Server, target: Path) -> None:
    server.content = CONTENT + b"more"
    with pytest.raises(DiptychError, match=r"archive.zip has 3,145,732 bytes, not 3,145,728\. .* moved or changed"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_a_transfer_that_does_not_end_is_stopped(server: Server, target: Path) -> None:
    server.content, server.announces = CONTENT + b"more", False
    with pytest.raises(DiptychError, match=r"archive.zip has more than 3,145,728 bytes"):
        fetch(server, target)
    assert not target.exists()


@pytest.mark.parametrize("status", [404, 403, 416])
def test_a_file_that_is_not_there_is_an_error_with_its_address(server: Server, target: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DiptychError, match=f"{re.escape(server.url)}: the server answers {status}"):
        fetch(server, target)


def test_a_server_that_is_busy_is_asked_again(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "RETRIES", 1)
    server.status = 503
    with pytest.raises(DiptychError, match="the server answers 503"):
        fetch(server, target)
    assert len(server.asked) == 2


def test_a_server_that_is_not_there_is_an_error_with_its_address(target: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/archive.zip"
        with pytest.raises(DiptychError, match=rf"{url} cannot be downloaded: .*refused.*Check the network"):
            download(url, target, 1, SHA256)


def test_a_file_with_another_checksum_is_removed(server: Server, target: Path) -> None:
    server.content = bytes(len(CONTENT))
    with pytest.raises(DiptychError, match=rf"archive.zip from .* not {SHA256}, and was removed. Run .* again"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_bytes_are_counted_in_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"four")
    (tmp_path / "file").write_bytes(b"two")
    assert (bytes_at(tmp_path), bytes_at(tmp_path / "file"), bytes_at(tmp_path / "none")) == (7, 3, 0)
