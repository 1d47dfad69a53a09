"""What a JPEG or PNG holds beside its pixels, such as colour profiles and notes, and the same file without it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_START_OF_SCAN = 0xDA
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METADATA_CHUNKS = set(
    b"acTL bKGD caBX cHRM cICP cLLI eXIf fcTL fdAT gAMA hIST iCCP iTXt mDCV pHYs sBIT sPLT sRGB tEXt tIME zTXt".split()
)
"""Chunks that neither pixels nor a first frame depend on. Another name may be a damaged one of a chunk that counts."""
_XMP = b"XML:com.adobe.xmp\0\0"
"""How an uncompressed iTXt chunk with XMP begins. Like Exif it may hold the orientation."""


def without_metadata(content: bytes, file_format: str) -> bytes:
    """Return the file without what pixels and orientation do not depend on; other formats than JPEG and PNG as is."""
    if file_format in ("JPEG", "MPO"):
        return _jpeg_without_metadata(content)
    if file_format == "PNG":
        return _png_without_metadata(content)
    return content


def start_of_scan(content: bytes) -> int:
    """Return the offset of a JPEG's first scan; a thumbnail in the segments before it has an end marker of its own."""
    start = len(content)
    for marker, start, _ in _jpeg_segments(content):
        if marker == _START_OF_SCAN:
            return start
    return len(content)


def _jpeg_without_metadata(content: bytes) -> bytes:
    kept = [content[:2]]
    for marker, start, end in _jpeg_segments(content):
        if marker == _START_OF_SCAN:
            return b"".join([*kept, content[start:]])
        if _is_kept(marker, content[start + 4 : end]):
            kept.append(content[start:end])
    return content


def _is_kept(marker: int, payload: bytes) -> bool:
    """Whether a JPEG segment says how to decode the pixels, or how the camera was held."""
    if marker == 0xE0:
        return payload.startswith(b"JFIF\0") and len(payload) >= 14
    if marker == 0xE1:
        return payload.startswith(b"Exif\0\0")
    if marker == 0xEE:
        return payload.startswith(b"Adobe") and len(payload) >= 12
    return marker != 0xFE and not 0xE0 <= marker <= 0xEF


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment before the scan, and the start of the scan."""
    at = 2
    while at + 4 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0xFF:
            at += 1
            continue
        standalone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        end = at + 2 if standalone else at + 2 + int.from_bytes(content[at + 2 : at + 4])
        yield marker, at, end
        if marker == _START_OF_SCAN:
            return
        at = end


def _png_without_metadata(content: bytes) -> bytes:
    kept = [_PNG_SIGNATURE]
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        chunk = content[at:end]
        if name not in _METADATA_CHUNKS or (_may_hold_orientation(name, chunk[8:]) and _is_intact(chunk)):
            kept.append(chunk)
        at = end
    return b"".join(kept)


def _may_hold_orientation(name: bytes, payload: bytes) -> bool:
    return name == b"eXIf" or (name == b"iTXt" and payload.startswith(_XMP))


def _is_intact(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
