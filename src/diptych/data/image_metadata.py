"""Removal of metadata, such as colour profiles and notes, from the bytes of a JPEG or PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_START_OF_SCAN = 0xDA
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METADATA_CHUNKS = set(
    b"acTL bKGD caBX cHRM cICP cLLI eXIf fcTL fdAT gAMA hIST iCCP iTXt mDCV pHYs sBIT sPLT sRGB tEXt tIME zTXt".split()
)
"""Chunks that are irrelevant to the pixels and to the first frame. Any other name may be the damaged name of a chunk
that matters.
"""
_XMP = b"XML:com.adobe.xmp\0\0"
"""First bytes of an uncompressed iTXt chunk with XMP, which, like Exif, may hold the orientation."""


def without_metadata(content: bytes, file_format: str) -> bytes:
    """Return a JPEG or PNG with only the parts that pixels and orientation depend on; other formats unchanged."""
    if file_format in ("JPEG", "MPO"):
        return _jpeg_without_metadata(content)
    if file_format == "PNG":
        return _png_without_metadata(content)
    return content


def start_of_scan(content: bytes) -> int:
    """Return the offset of the first scan of a JPEG.

    An end marker before it may belong to a thumbnail in the metadata. Without a scan the offset is the file's length.
    """
    start = len(content)
    for marker, start, _ in _jpeg_segments(content):
        if marker == _START_OF_SCAN:
            return start
    return len(content)


def _jpeg_without_metadata(content: bytes) -> bytes:
    parts = [content[:2]]
    for marker, start, end in _jpeg_segments(content):
        if marker == _START_OF_SCAN:
            return b"".join([*parts, content[start:]])
        if _is_kept(marker, content[start + 4 : end]):
            parts.append(content[start:end])
    return content


def _is_kept(marker: int, payload: bytes) -> bool:
    """Return whether a JPEG segment affects the decoding of the pixels or holds the orientation."""
    if marker == 0xE0:
        return payload.startswith(b"JFIF\0") and len(payload) >= 14
    if marker == 0xE1:
        return payload.startswith(b"Exif\0\0")
    if marker == 0xEE:
        return payload.startswith(b"Adobe") and len(payload) >= 12
    return marker != 0xFE and not 0xE0 <= marker <= 0xEF


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the first scan, which is included."""
    offset = 2
    while offset + 4 <= len(content):
        marker = content[offset + 1]
        if content[offset] != 0xFF or marker == 0xFF:
            offset += 1
            continue
        standalone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        end = offset + 2 if standalone else offset + 2 + int.from_bytes(content[offset + 2 : offset + 4])
        yield marker, offset, end
        if marker == _START_OF_SCAN:
            return
        offset = end


def _png_without_metadata(content: bytes) -> bytes:
    parts = [_PNG_SIGNATURE]
    offset = len(_PNG_SIGNATURE)
    while offset + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, offset)
        end = offset + 12 + length
        chunk = content[offset:end]
        if name not in _METADATA_CHUNKS or (_may_hold_orientation(name, chunk[8:]) and _is_intact(chunk)):
            parts.append(chunk)
        offset = end
    return b"".join(parts)


def _may_hold_orientation(name: bytes, payload: bytes) -> bool:
    return name == b"eXIf" or (name == b"iTXt" and payload.startswith(_XMP))


def _is_intact(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
