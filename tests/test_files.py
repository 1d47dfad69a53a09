"""Files are written as a whole or not at all, and checked later."""

import json
import subprocess

import pytest

from diptych.files import DIGEST_BYTES, atomic_path, digested, is_whole, remove, sums_hold, write_json, write_sums


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"

    with atomic_path(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()

    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_the_old_content(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()

    with atomic_path(path) as temporary:
        (temporary / "below").mkdir(parents=True)
        (temporary / "below" / "new").touch()

    assert [child.name for child in path.rglob("*")] == ["below", "new"]
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    path = tmp_path / "folder"
    leftover = tmp_path / ".folder.tmp"
    leftover.mkdir()
    (leftover / "half").touch()

    with atomic_path(path) as temporary:
        temporary.mkdir()

    assert list(path.iterdir()) == []


def test_json_keeps_letters_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"caption": "größer 🦊"})

    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "größer 🦊" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"caption": "größer 🦊"}


def test_json_refuses_what_other_readers_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"rsum": float("nan")})

    assert list(tmp_path.iterdir()) == []


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)

    remove(tmp_path / "link")
    remove(tmp_path / "nothing")

    assert list(tmp_path.iterdir()) == [target]


def test_a_digested_file_is_whole_until_a_byte_changes(tmp_path):
    with digested(tmp_path / "file") as file:
        file.write(b"one")
        file.write(b"two")
    content = (tmp_path / "file").read_bytes()
    assert content[:-DIGEST_BYTES] == b"onetwo"
    assert is_whole(memoryview(content))
    for changed in (content[:-1], content[1:], b"O" + content[1:], content[:-DIGEST_BYTES], b""):
        assert not is_whole(memoryview(changed))


def test_a_link_to_a_folder_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "nowhere"):
        (tmp_path / "link").symlink_to(tmp_path / target)
        with atomic_path(tmp_path / "link") as temporary:
            temporary.mkdir()
        assert (tmp_path / "link").is_dir()
        assert not (tmp_path / "link").is_symlink()
        (tmp_path / "link").rmdir()
    assert (tmp_path / "elsewhere").is_dir()


def test_sums_hold_until_a_file_is_changed_removed_or_added(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    assert not sums_hold(tmp_path)
    write_sums(tmp_path)
    assert sums_hold(tmp_path)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("c")
    assert not sums_hold(tmp_path)
    write_sums(tmp_path)
    (tmp_path / "b").unlink()
    assert not sums_hold(tmp_path)
    write_sums(tmp_path)
    (tmp_path / "c").touch()
    assert not sums_hold(tmp_path)
