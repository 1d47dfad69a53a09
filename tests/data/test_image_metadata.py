"""Metadata goes, what pixels and orientation depend on stays."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from diptych.data.image_metadata import start_of_scan, without_metadata


def encode(file_format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    Image.new("RGB", (16, 8), "teal").save(file, file_format, exif=exif)
    return file.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


@pytest.mark.parametrize("marker", [0xE2, 0xED, 0xFE], ids=["profile", "Photoshop", "comment"])
def test_a_jpeg_loses_notes_and_keeps_the_orientation(marker: int) -> None:
    content = without_metadata(encode("JPEG"), "JPEG")
    assert b"Exif\0\0" in content
    assert without_metadata(content[:2] + segment(marker, b"a note") + content[2:], "JPEG") == content


@pytest.mark.parametrize("name", [b"tEXt", b"iCCP", b"pHYs"])
def test_a_png_loses_notes_and_keeps_the_orientation(name: bytes) -> None:
    content = without_metadata(encode("PNG"), "PNG")
    assert b"eXIf" in content
    assert without_metadata(content[:33] + chunk(name, b"a note") + content[33:], "PNG") == content


def test_a_chunk_with_the_orientation_and_a_wrong_checksum_goes() -> None:
    content = encode("PNG")
    start = content.index(b"eXIf")
    damaged = content[: start + 4] + b"?" + content[start + 5 :]
    assert b"eXIf" not in without_metadata(damaged, "PNG")


def test_other_formats_stay_as_they_are() -> None:
    assert without_metadata(b"anything", "GIF") == b"anything"


def test_the_scan_begins_behind_a_thumbnail_with_its_own_end() -> None:
    content = encode("JPEG")
    assert content[start_of_scan(content) :].startswith(b"\xff\xda")
    with_thumbnail = content[:2] + segment(0xE2, content) + content[2:]
    assert start_of_scan(with_thumbnail) == start_of_scan(content) + len(content) + 4


def test_a_jpeg_without_a_scan_has_its_scan_at_its_end() -> None:
    content = encode("JPEG")
    head = content[: start_of_scan(content)]
    assert start_of_scan(head) == len(head)
