"""Text and JSON of users: read in any Unicode encoding, and what else a file is, is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.data.text_files import read_json, read_text
from diptych.errors import DiptychError

CONTENT = {"images": [{"file_name": "a.jpg", "caption": "a café 한국"}]}
TEXT = json.dumps(CONTENT, ensure_ascii=False)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "c.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_json_is_read_in_each_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    assert read_json(write(tmp_path, TEXT.encode(encoding))) == CONTENT


def test_the_encoding_of_the_platform_does_not_matter(tmp_path: Path) -> None:
    code = "import sys, pathlib, diptych.data.text_files as t; print(ascii(t.read_json(pathlib.Path(sys.argv[1]))))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(write(tmp_path, TEXT))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == ascii(CONTENT)


def test_text_in_another_encoding_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"not in UTF-8: byte 0xE9 at offset 5, line 2.*iconv -f WINDOWS-1252"):
        read_text(write(tmp_path, b"a\ncaf\xe9\n"))


@pytest.mark.parametrize("end", [-1, -3, -12, -20, -30, -41, 5, 1])
def test_json_that_ends_early_is_to_be_fetched_again(tmp_path: Path, end: int) -> None:
    for rest in (b"", bytes(100)):
        with pytest.raises(DiptychError, match=r"is (not complete JSON|cut off).*etch it again"):
            read_json(write(tmp_path, TEXT[:end].encode() + rest))


@pytest.mark.parametrize("text", ['{"a": nul', '{"a": -', '{"a": "\\u00', '{"a": "\\', '{"a": 1,'])
def test_json_that_ends_within_a_value_is_to_be_fetched_again(tmp_path: Path, text: str) -> None:
    with pytest.raises(DiptychError, match="fetch it again"):
        read_json(write(tmp_path, text))


def test_json_that_ends_within_a_character_is_to_be_fetched_again(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"ends within a character.* Fetch it again"):
        read_json(write(tmp_path, '{"a": "é'.encode()[:-1]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"a": 1}\n{"a": 2}\n', "several JSON values, the second at line 2 .as in JSON Lines"),
        ("<!DOCTYPE html><title>Not found</title>", "a web page"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip: .*gunzip"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("file,caption\n", "is not JSON: it begins with 'file,caption"),
        ("{'images': []}", "is not valid JSON: .* at line 1, column 2, near"),
        ('{"images": [1,], "more": 2}', "is not valid JSON: .* column"),
        ('{"a": "b" "c": "d"}', "is not valid JSON"),
        ('{"images": ["a\nb"]}', "is not valid JSON: Invalid control character"),
        ('{"images": [1], "images": [2]}', "has the key 'images' twice, with different values"),
    ],
)
def test_what_a_file_is_instead_is_told_and_it_is_not_to_be_fetched_again(
    tmp_path: Path, content: str | bytes, words: str
) -> None:
    with pytest.raises(DiptychError, match=words) as raised:
        read_json(write(tmp_path, content))
    assert "etch it again" not in str(raised.value)


def test_a_key_that_is_there_twice_with_one_value_loses_nothing(tmp_path: Path) -> None:
    assert read_json(write(tmp_path, '{"id": 1, "id": 1}')) == {"id": 1}


@pytest.mark.parametrize("rest", [b"", b"\0\0\0\0"])
def test_json_that_ends_early_is_told_so_wherever_it_ends(tmp_path: Path, rest: bytes) -> None:
    content = '{"a": [true, null, NaN, -Infinity, -0.5e-3, {"b": "é한 \\u00e9 \\n"}]}'.encode()
    for length in range(1, len(content)):
        with pytest.raises(DiptychError, match="cut off"):
            read_json(write(tmp_path, content[:length] + rest))


def test_zeros_after_whole_json_are_no_early_end(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="is not valid JSON: Extra data at line 1, column 9"):
        read_json(write(tmp_path, '{"a": 1}\0\0'))


def test_a_text_that_ends_within_its_only_odd_character_may_be_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"ends within a character of UTF-8, at byte 7.*iconv -f WINDOWS-1252"):
        read_text(write(tmp_path, "one caf\u00e9".encode("latin-1")))


def test_json_that_lies_too_deep_to_be_written_again_is_refused(tmp_path: Path) -> None:
    assert read_json(write(tmp_path, "[" * 100 + "]" * 100))
    for depth in (101, 900, 100_000):
        with pytest.raises(DiptychError, match="is JSON that cannot be read"):
            read_json(write(tmp_path, "[" * depth + "]" * depth))
