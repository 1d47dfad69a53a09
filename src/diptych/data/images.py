"""Bytes of an image file to RGB pixels, the same way in validation, preprocessing and the packaged model."""

from __future__ import annotations

import struct
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

# Opened by these alone: the other forty plugins of Pillow are attack surface. (An MPO is a JPEG to its opener.)
_FORMATS = {
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "GIF": GifImagePlugin,
    "WEBP": WebPImagePlugin,
    "BMP": BmpImagePlugin,
    "TIFF": TiffImagePlugin,
}
_EIGHT_BIT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_SIXTEEN_BIT_MODES = {"I;16", "I;16L", "I;16B", "I;16N"}
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's plugins raise on damaged files.
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
    """The bytes are no usable image; the message is the reason, in the words of the quarantine table."""


@dataclass(frozen=True)
class ImageInfo:
    """`width` and `height` in pixels after EXIF orientation; `mode` and `format` as Pillow names those of the file."""

    width: int
    height: int
    mode: str
    format: str


def open_image(content: bytes, max_pixels: int) -> Image.Image:
    """The picture in `content` as an upright RGB image.

    JPEG, PNG, GIF, WebP, BMP and TIFF; of an animation the first frame. Decoded to the last byte, 16-bit values scaled
    to 8, transparency laid on white, EXIF orientation applied.

    Raises:
        ImageError: the bytes are not such an image or are cut off, or width × height exceeds `max_pixels`, which is
            judged by the header, before anything is decoded.
    """
    return inspect_image(content, max_pixels)[1]


def inspect_image(content: bytes, max_pixels: int) -> tuple[ImageInfo, Image.Image]:
    """As `open_image`, together with what the file says of itself."""
    image = _open_header(content)
    mode, file_format = image.mode, image.format or ""
    if image.width * image.height > max_pixels:
        raise ImageError(f"{image.width}×{image.height} pixels, more than {max_pixels}")
    try:
        image.load()
    except _DAMAGE as error:
        raise ImageError(f"truncated or damaged {file_format}: {error}") from None
    if not _is_complete(content, file_format):
        raise ImageError(f"truncated {file_format}: its end marker is missing")
    upright = _turn_upright(image, _to_rgb(image))
    return ImageInfo(upright.width, upright.height, mode, file_format), upright


def to_pixels(image: Image.Image, size: int, resize: Literal["stretch", "crop"]) -> NDArray[np.uint8]:
    """An RGB image as (size, size, 3) uint8, resampled bilinearly with antialiasing.

    `stretch` fits both sides; `crop` fits the shorter side and cuts out the centre, in one step.
    """
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _open_header(content: bytes) -> ImageFile.ImageFile:
    """The image undecoded. `Image.open` is not used: its bomb check has one global limit and hides the size."""
    if not content:
        raise ImageError("empty file")
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(content[:16]) is not True:
            continue
        try:
            return factory(BytesIO(content), "")
        except _DAMAGE as error:
            raise ImageError(f"truncated or damaged {name}: {error}") from None
    raise ImageError("not an image, or not of a known format")


def _is_complete(content: bytes, file_format: str) -> bool:
    """Whether the end marker is there, of the formats of which Pillow shows the picture without its last bytes."""
    if file_format in ("JPEG", "MPO"):
        return content.find(b"\xff\xd9", _start_of_scan(content)) != -1
    if file_format == "PNG":
        return b"IEND\xaeB`\x82" in content
    return True


def _start_of_scan(content: bytes) -> int:
    """Offset of a JPEG's first scan; a thumbnail in the header segments before it has an end marker of its own."""
    at = 2
    while at + 4 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0xFF:
            at += 1
        elif marker == 0xDA:
            return at
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return len(content)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        scaled = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode not in _EIGHT_BIT_MODES:
        raise ImageError(f"mode {image.mode} does not say which value is white")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _turn_upright(source: Image.Image, rgb: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(_ORIENTATION_TAG)
    except _DAMAGE:
        # The pixels are sound; only the note on how the camera was held is not.
        return rgb
    transpose = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return rgb if transpose is None else rgb.transpose(transpose)
