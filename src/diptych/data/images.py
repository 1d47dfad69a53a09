"""Decoder from the bytes of an image file to RGB pixels, shared by validation, preprocessing and the packaged model."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from diptych.data.image_metadata import start_of_scan, without_metadata

# Only these plugins open files: the other forty of Pillow are attack surface. (The JPEG plugin opens an MPO, too.)
_PLUGINS = {
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "GIF": GifImagePlugin,
    "WEBP": WebPImagePlugin,
    "BMP": BmpImagePlugin,
    "TIFF": TiffImagePlugin,
}
FORMATS = [name.replace("WEBP", "WebP") for name in _PLUGINS]
"""Names of the readable formats, as listed in docs/data.md."""
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
}
"""Formats of ISO media files by their major brand."""
_OTHER_FORMATS = {
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "a Photoshop file",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "XML, such as SVG",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"version https://git-lfs": "a Git LFS pointer in place of the file (`git lfs pull` fetches it)",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
}
"""First bytes, in any letter case, of other files that are often saved under the name of an image."""
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION_TAG = 0x0112
# ImageOps.exif_transpose is not used: it writes the EXIF data anew, and fails where other tags in it are invalid.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Errors that the plugins of Pillow raise for damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


class ImageError(ValueError):
    """Error for bytes that are not a usable image; the message is the reason that the quarantine table shows."""


@dataclass(frozen=True)
class ImageInfo:
    """Facts about an image: size in pixels after EXIF orientation; Pillow's names of the file's mode and format."""

    width: int
    height: int
    mode: str
    format: str


def open_image(content: bytes, max_pixels: int) -> Image.Image:
    """Return the image in `content` as an upright RGB image.

    The formats are JPEG, PNG, GIF, WebP, BMP and TIFF. An animation gives its first frame. The file is decoded
    completely; 16-bit values are scaled to 8 bits, transparency is laid on white, and EXIF orientation is applied.

    Raises:
        ImageError: the bytes are not such an image or are cut off, or width × height exceeds `max_pixels`. The header
            is checked for that before anything is decoded.
    """
    return inspect_image(content, max_pixels)[1]


def inspect_image(content: bytes, max_pixels: int) -> tuple[ImageInfo, Image.Image]:
    """Return facts about the file, and the image as `open_image` does.

    Raises:
        ImageError: as for `open_image`.
    """
    image = _decode(content, max_pixels)
    mode, file_format = image.mode, image.format or ""
    if not _is_complete(content, file_format):
        raise ImageError(f"truncated {file_format}: its end marker is missing")
    upright = to_upright_rgb(image, max_pixels)
    return ImageInfo(upright.width, upright.height, mode, file_format), upright


def to_upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """Return an image that Pillow has opened as an upright RGB image, as `open_image` does for the bytes of its file.

    Raises:
        ImageError: the image cannot be decoded or is too large, or its mode does not say which value is white.
    """
    _refuse_size(image, max_pixels)
    try:
        image.load()
        rgb = _to_rgb(image)
    except ImageError:
        raise
    except (*_DAMAGE, AssertionError) as error:  # Pillow asserts that its file is open
        raise ImageError(f"truncated, damaged or closed {image.format or 'image'}: {error}") from None
    return _turn_upright(image, rgb)


def to_pixels(image: Image.Image, size: int, resize: Literal["stretch", "crop"]) -> NDArray[np.uint8]:
    """Return an RGB image as (size, size, 3) uint8, resampled bilinearly with antialiasing.

    `stretch` scales both sides to `size`. `crop` scales the shorter side to `size` and keeps the centre, in one step.
    """
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _decode(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Return the decoded image. If Pillow fails, decode it without its metadata, since the pixels may be intact."""
    name = _format_of(content)
    try:
        return _load(content, name, max_pixels)
    except ImageError:
        raise
    except _DAMAGE as error:
        with suppress(*_DAMAGE):
            return _load(without_metadata(content, name), name, max_pixels)
        raise ImageError(f"truncated or damaged {name}: {error}") from None


def _load(content: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """Return the decoded image.

    `Image.open` is not used: its check for decompression bombs has one global limit, and its messages hide the size
    and the cause of damage.
    """
    image: ImageFile.ImageFile = Image.OPEN[name][0](BytesIO(content), "")
    _refuse_size(image, max_pixels)
    image.load()
    return image


def _refuse_size(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if not 0 < pixels <= max_pixels:
        reason = f"more than {max_pixels}" if pixels else "none at all"
        raise ImageError(f"{image.width}×{image.height} pixels, {reason}")


def _format_of(content: bytes) -> str:
    """Return the key in `_PLUGINS` of the format that the first bytes indicate.

    Raises:
        ImageError: they indicate none of these formats.
    """
    if not content:
        raise ImageError("empty file")
    for name in _PLUGINS:
        accept = Image.OPEN[name][1]
        if accept is None or accept(content[:16]) is True:
            return name
    if other := _other_format(content):
        raise ImageError(f"{other}, and not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, whatever its name says")
    raise ImageError("not an image, or not of a known format")


def _other_format(content: bytes) -> str:
    """Return the name of another format that the first bytes indicate; empty if none is known."""
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if content[4:8] == b"ftyp":
        return _BRANDS.get(content[8:12], "a video or another ISO media file")
    return next((name for prefix, name in _OTHER_FORMATS.items() if start.startswith(prefix.lower())), "")


def _is_complete(content: bytes, file_format: str) -> bool:
    """Return whether the end marker is present, for the formats that Pillow decodes even without their last bytes."""
    if file_format in ("JPEG", "MPO"):
        return content.find(b"\xff\xd9", start_of_scan(content)) != -1
    if file_format == "PNG":
        return b"IEND\xaeB`\x82" in content
    return True


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES:
        scaled = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode not in EIGHT_BIT_MODES:
        raise ImageError(f"mode {image.mode} does not say which value is white")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _turn_upright(source: Image.Image, rgb: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(_ORIENTATION_TAG)
    except _DAMAGE:
        # Only the EXIF data is damaged; the pixels are intact.
        return rgb
    transpose = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return rgb if transpose is None else rgb.transpose(transpose)
