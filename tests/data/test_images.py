"""What counts as an image, and what its pixels are."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diptych.data.images import FORMATS, ImageError, inspect_image, open_image, to_pixels

MAX_PIXELS = 100_000_000


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """80 × 60, smooth enough that JPEG keeps it nearly as it is."""
    rows, columns = np.indices((60, 80))
    return Image.fromarray(np.stack([rows * 4, columns * 3, rows + columns], axis=2).astype(np.uint8))


def chunk(name: bytes, payload: bytes, crc: int | None = None) -> bytes:
    """A PNG chunk, by default with the right checksum."""
    checksum = zlib.crc32(name + payload) if crc is None else crc
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", checksum)


def segment(marker: int, payload: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_header(width: int, height: int) -> bytes:
    """A PNG of the given size with next to no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100))]
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_the_usual_formats_open_as_rgb(photo: Image.Image, file_format: str) -> None:
    info, image = inspect_image(encode(photo, file_format), MAX_PIXELS)

    assert (info.width, info.height, info.format) == (80, 60, file_format)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - np.asarray(photo)).mean() < 12


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("missing", [1, 2, 3, 10, 50, 100])
def test_a_file_without_its_end_is_truncated(photo: Image.Image, file_format: str, missing: int) -> None:
    with pytest.raises(ImageError, match="truncated"):
        open_image(encode(photo, file_format)[:-missing], MAX_PIXELS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_is_followed_to_its_end_marker(photo: Image.Image, options: dict[str, Any]) -> None:
    content = encode(photo, "JPEG", **options)

    open_image(content + b"trailing notes of a camera", MAX_PIXELS)
    with pytest.raises(ImageError, match="truncated"):
        open_image(content[:-2] + b"\x00\x00", MAX_PIXELS)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_photo(photo: Image.Image) -> None:
    thumbnail = encode(photo.resize((16, 12)), "JPEG")
    content = encode(photo, "JPEG", exif=b"Exif\x00\x00" + thumbnail)
    assert thumbnail in content

    open_image(content, MAX_PIXELS)
    with pytest.raises(ImageError, match="truncated"):
        open_image(content[:-2], MAX_PIXELS)


def test_fill_bytes_between_jpeg_segments_are_allowed(photo: Image.Image) -> None:
    content = encode(photo, "JPEG")
    open_image(content[:2] + b"\xff\xff" + content[2:], MAX_PIXELS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"This is a text that somebody named photo.jpg\n", "not an image"),
        (b"\xff\xd8\xff", "truncated or damaged JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        open_image(content, MAX_PIXELS)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(ImageError, match="40000×40000 pixels, more than 100000000"):
        open_image(png_header(40_000, 40_000), MAX_PIXELS)


def test_an_image_of_exactly_max_pixels_is_opened(photo: Image.Image) -> None:
    content = encode(photo, "PNG")
    assert open_image(content, 4800).size == (80, 60)
    with pytest.raises(ImageError, match="more than 4799"):
        open_image(content, 4799)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 256, 257, 32768, 65535]], dtype=np.uint16)

    info, image = inspect_image(encode(Image.fromarray(values), "PNG"), MAX_PIXELS)

    assert info.mode == "I;16"
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_greyscale_becomes_three_equal_channels(photo: Image.Image) -> None:
    info, image = inspect_image(encode(photo.convert("L"), "PNG"), MAX_PIXELS)

    assert info.mode == "L"
    assert np.array_equal(np.asarray(image), np.repeat(np.asarray(photo.convert("L"))[:, :, None], 3, axis=2))


def test_cmyk_becomes_rgb() -> None:
    info, image = inspect_image(encode(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"), MAX_PIXELS)

    red, green, blue = np.asarray(image)[20, 20]
    assert info.mode == "CMYK"
    assert red > 200
    assert max(green, blue) < 60


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))

    assert np.asarray(open_image(encode(image, "PNG"), MAX_PIXELS)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_a_transparent_palette_colour_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putpixel((1, 0), 1)

    info, opened = inspect_image(encode(image, "PNG", transparency=0), MAX_PIXELS)

    assert info.mode == "P"
    assert np.asarray(opened).tolist() == [[[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(file_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]

    image = open_image(encode(frames[0], file_format, save_all=True, append_images=frames[1:]), MAX_PIXELS)

    red, green, blue = np.asarray(image)[16, 16].tolist()
    assert red > 240
    assert max(green, blue) < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(np.arange(40 * 24 * 3, dtype=np.uint32).reshape(24, 40, 3).astype(np.uint8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright

    info, image = inspect_image(encode(stored, "PNG", exif=turned(orientation)), MAX_PIXELS)

    assert (info.width, info.height) == (40, 24)
    assert np.array_equal(np.asarray(image), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_the_pixels(photo: Image.Image) -> None:
    content = encode(photo, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert open_image(content, MAX_PIXELS).size == (80, 60)


def test_orientation_is_applied_beside_exif_tags_that_cannot_be_written_again(photo: Image.Image) -> None:
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
    content = encode(photo, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\2\0" + tags + bytes(4))
    assert open_image(content, MAX_PIXELS).size == (60, 80)


NOTES = b"a note\0\0" + zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"iCCP", NOTES),
        chunk(b"zTXt", NOTES),
        chunk(b"iTXt", b"a note\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"tEXt", b"a note\0" + bytes(65 << 20)),
        chunk(b"iCCP", b""),
        chunk(b"pHYs", b"\1"),
        chunk(b"acTL", b""),
        chunk(b"gAMA", b"\0\0\xb1\x8f", crc=1),
    ],
    ids=["profile", "compressed text", "international text", "text", "no profile", "density", "animation", "checksum"],
)
@pytest.mark.parametrize("at", [33, -12])
def test_a_png_with_odd_metadata_has_its_pixels(photo: Image.Image, metadata: bytes, at: int) -> None:
    content = encode(photo, "PNG")
    opened = open_image(content[:at] + metadata + content[at:], MAX_PIXELS)
    assert np.array_equal(np.asarray(opened), np.asarray(photo))


@pytest.mark.parametrize(
    "metadata",
    [segment(0xE2, b"ICC_PROFILE\0"), segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe\0")],
    ids=["profile", "JFIF", "Adobe"],
)
def test_a_jpeg_with_odd_metadata_has_its_pixels(photo: Image.Image, metadata: bytes) -> None:
    content = encode(photo, "JPEG")
    opened = open_image(content[:20] + metadata + content[20:], MAX_PIXELS)
    assert np.array_equal(np.asarray(opened), np.asarray(open_image(content, MAX_PIXELS)))


def test_orientation_is_applied_beside_odd_metadata(photo: Image.Image) -> None:
    large = {"icc_profile": bytes(3 << 20)}
    assert open_image(encode(photo, "PNG", exif=turned(6), **large), MAX_PIXELS).size == (60, 80)
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert open_image(encode(photo, "PNG", pnginfo=xmp, **large), MAX_PIXELS).size == (60, 80)
    jpeg = encode(photo, "JPEG", exif=turned(6))
    assert open_image(jpeg[:20] + segment(0xE2, b"ICC_PROFILE\0") + jpeg[20:], MAX_PIXELS).size == (60, 80)


def test_a_palette_under_a_damaged_name_is_damage(photo: Image.Image) -> None:
    content = encode(photo.convert("P"), "PNG")
    assert content.count(b"PLTE") == 1
    with pytest.raises(ImageError, match="damaged PNG"):
        open_image(content.replace(b"PLTE", b"pLTE"), MAX_PIXELS)


def test_damaged_pixels_beside_odd_metadata_are_damage(photo: Image.Image) -> None:
    content = encode(photo, "PNG", icc_profile=bytes(3 << 20))
    with pytest.raises(ImageError, match="truncated or damaged PNG"):
        open_image(content[:-100], MAX_PIXELS)
    with pytest.raises(ImageError, match=r"^80×60 pixels, more than 10"):
        open_image(encode(photo, "PNG"), 10)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\n<!DOCTYPE HTML><title>404</title>", "an HTML page"),
        (b"<svg xmlns=''>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_another_kind_of_file_under_an_images_name_is_named(content: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=f"{name}.*, and not JPEG, PNG, GIF, WebP, BMP or TIFF"):
        open_image(content, MAX_PIXELS)


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(ImageError, match="mode F does not say which value is white"):
        open_image(encode(Image.new("F", (4, 4)), "TIFF"), MAX_PIXELS)


def test_stretch_fits_both_sides(photo: Image.Image) -> None:
    pixels = to_pixels(photo, 20, "stretch")

    assert pixels.shape == (20, 20, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(photo.resize((20, 20), Image.Resampling.BILINEAR)))


def test_crop_is_the_shorter_side_resized_and_the_centre_cut_out(photo: Image.Image) -> None:
    whole = photo.resize((40, 30), Image.Resampling.BILINEAR)

    assert np.array_equal(to_pixels(photo, 30, "crop"), np.asarray(whole.crop((5, 0, 35, 30))))


def test_crop_of_an_upright_image_cuts_above_and_below(photo: Image.Image) -> None:
    upright = photo.transpose(Image.Transpose.TRANSPOSE)

    assert np.array_equal(to_pixels(upright, 30, "crop"), to_pixels(photo, 30, "crop").transpose(1, 0, 2))


def test_the_documentation_lists_the_formats_that_are_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read" in " ".join(text.split())
