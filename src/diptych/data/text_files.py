"""Readers of users' text and JSON files.

A file in an unknown encoding, or of another kind, is refused by a message that says what it is.
"""

from __future__ import annotations

import codecs
import json
import re
import shlex
from pathlib import Path
from typing import Any

from diptych.errors import DiptychError

_OTHER_FILES = {
    b"\x1f\x8b": "compressed with gzip: unpack it with `gunzip`",
    b"BZh": "compressed with bzip2: unpack it with `bunzip2`",
    b"\xfd7zXZ\0": "compressed with xz: unpack it with `unxz`",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with `unzstd`",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it with `unzip`, or save the sheet as a .csv in UTF-8",
    b"<!doctype html": "a web page, not the file that it leads to: download that file",
    b"<html": "a web page, not the file that it leads to: download that file",
    b"version https://git-lfs": "a Git LFS pointer in place of the file: fetch it with `git lfs pull`",
}
"""First bytes, in any letter case, of files that are saved under the name of a text file by mistake."""
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_DEEPEST = 100
"""Maximum depth of nested lists and objects; no format of captions has more than a few levels."""
_NUMBER_BEGUN = re.compile(r"\.|\.?\d*[eE][+-]?")
"""Pattern of the rest that the parser leaves of a number that was cut off."""
_BLANKS = "\0 \t\r\n"
"""Bytes that are ignored at the end of a file that was cut off: an interrupted download may leave zeros."""


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, without its byte order mark.

    Raises:
        DiptychError: the file cannot be read, is in another encoding, or is not a text file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DiptychError(f"{path} cannot be read: {error.strerror}.") from None
    start = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefix, kind in _OTHER_FILES.items():
        if start.startswith(prefix.lower()):
            raise DiptychError(f"{path} is {kind}.")
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DiptychError(f"{path} {_undecodable(path, content, encoding, error)}") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, in any of the encodings of `read_text`.

    Raises:
        DiptychError: `read_text` fails; the file is not JSON (the message says what it is); its values are nested too
            deep; or an object has a key twice.
    """
    text = read_text(path)
    if not text.strip(_BLANKS):
        raise DiptychError(f"{path} is empty.")
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise DiptychError(f"{path} {_no_json(text, error)}") from None
    except (ValueError, RecursionError) as error:
        raise DiptychError(f"{path} is JSON that cannot be read: {error}.") from None


def parse_json(text: str) -> Any:
    """Return the content of JSON.

    Raises:
        ValueError: it is not JSON, its values are nested too deep, or an object has a key twice.
        RecursionError: its values are nested much too deep.
    """
    content = _DECODER.decode(text)
    _refuse_deep(content)
    return content


def _refuse_deep(content: Any) -> None:
    """Raise if values are nested too deep: later stages must be able to write and read them again."""
    level: list[Any] = [[content]]
    for _ in range(_DEEPEST + 1):
        children = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in children for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise ValueError(f"its values are nested more than {_DEEPEST} levels deep")


def _undecodable(path: Path, content: bytes, encoding: str, error: UnicodeDecodeError) -> str:
    if _ends_within_character(content, encoding, error):
        if _has_characters(content[: error.start], encoding):
            return f"is cut off: it ends within a character, at byte {error.start:,}. Fetch it again."
        return (
            f"ends within a character of UTF-8, at byte {error.start:,}. Fetch it again if it was cut off."
            f"{_conversion(path)}"
        )
    line = content.count(b"\n", 0, error.start) + 1
    name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
    fault = f"is not in {name}: byte 0x{content[error.start]:02X} at offset {error.start:,}, line {line:,}."
    if name != "UTF-8" or error.start == 0 or b"\0" in content[:4096]:
        return f"{fault} It does not look like a text file."
    return fault + _conversion(path)


def _ends_within_character(content: bytes, encoding: str, error: UnicodeDecodeError) -> bool:
    """Return whether the bytes after the error begin a character, and only zeros follow it."""
    if not encoding.startswith("utf-8"):
        return error.end >= len(content) and error.reason == "truncated data"
    begun = content[error.start :].rstrip(b"\0")
    try:
        begun.decode()
    except UnicodeDecodeError as rest:
        return rest.start == 0 and rest.reason == "unexpected end of data"
    return False


def _has_characters(content: bytes, encoding: str) -> bool:
    """Return whether `content` confirms the encoding: it has bytes that mean something else in other encodings."""
    return not encoding.startswith("utf-8") or not content.removeprefix(codecs.BOM_UTF8).isascii()


def _conversion(path: Path) -> str:
    return (
        " If it is in Latin-1 or Windows-1252, convert it: "
        f"`iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(f'utf8-{path.name}')}`."
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object; refuse a key with two values, of which the second would silently replace the first."""
    content = dict(pairs)
    if len(content) != len(pairs):
        for key, value in pairs:
            if content[key] != value:
                raise ValueError(f"an object has the key {key!r} twice, with different values")
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""It is made once, since each line of a large dataset is decoded on its own."""


def _no_json(text: str, error: json.JSONDecodeError) -> str:
    position = f"{error.msg} at line {error.lineno}, column {error.colno}"
    if _ends_early(text, error):
        return f"is not complete JSON: {position}. It was probably cut off while it was copied; fetch it again."
    if error.msg == "Extra data" and text[error.pos :].lstrip()[:1] in ("{", "["):
        return (
            f"holds several JSON values, the second at line {error.lineno} (as in JSON Lines). One object with "
            "lists of records is needed; or write a table, a .csv or .tsv, with a caption a row."
        )
    if error.pos == 0 or not text[: error.pos].strip():
        return f"is not JSON: it begins with {text.lstrip()[:20]!r}."
    context = text[max(error.pos - 20, 0) : error.pos + 20]
    return f"is not valid JSON: {position}, near {context!r}. Correct it there, or export the file again."


def _ends_early(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether the error is that the text ends too early."""
    rest = text[error.pos :].strip(_BLANKS)
    if error.msg == "Extra data":
        # The value is complete; zeros or something other than JSON follow it.
        return False
    if error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\") and len(rest) < 6:
        return True
    if text[error.pos - 1 : error.pos].isdigit() and _NUMBER_BEGUN.fullmatch(rest):
        return True
    return not rest or (len(rest) < 9 and any(word.startswith(rest) for word in _LITERALS))
