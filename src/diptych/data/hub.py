"""Source of an import that the library `datasets` reads: a dataset of the Hugging Face hub, or a folder in its forms.

Such a folder has images with metadata.jsonl or metadata.csv, Parquet or Arrow files with the bytes of images, or a
webdataset.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.captions import encodable
from diptych.data.sources import Source, SourceCaption, SourceImage, checked_split
from diptych.errors import DiptychError, first_line, printable

_log = logging.getLogger(__name__)

_CAPTIONS = ("caption", "captions", "text", "sentences", "txt")
"""Names that a column of captions usually has, in order of preference."""
_SPLITS = {"validation": "val"}
"""Names of splits that are others here."""


@dataclass(frozen=True)
class Columns:
    """Names of columns; None: the usual ones."""

    image: str | None = None
    caption: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class HubImage:
    """Image file in a row of a table of `datasets`.

    Attributes:
        images: the column, a sequence of {"bytes", "path"}.
        row: the number of the row.
        name: name of the file, empty where it has none.
        where: the row, for messages.
        roots: folders that a file may lie in which is not in the table itself.
    """

    images: Any
    row: int
    name: str
    where: str
    roots: tuple[Path, ...]

    @property
    def suffix(self) -> str:
        """Suffix of the file's name."""
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: the file cannot be read, or lies elsewhere than the dataset.
        """
        image = self.images[self.row]
        if image["bytes"] is not None:
            content: bytes = image["bytes"]
            return content
        path = Path(image["path"]).resolve()
        if not any(path.is_relative_to(root) for root in self.roots):
            raise OSError(0, "the table has a path that leads out of the dataset")
        return path.read_bytes()

    def __str__(self) -> str:
        return printable(f"{self.name or 'the image'} ({self.where})")


def hub_source(name: str, columns: Columns, split: str | None, cache: Path) -> Source:
    """Read the images and captions of a dataset.

    Args:
        name: id of a dataset of the hub, or path of a folder.
        columns: names of its columns.
        split: the split of all images; None: those of the dataset, or, where it has one alone, they are dealt.
        cache: folder in which `datasets` keeps what a folder has, as long as the images are read.

    Raises:
        DiptychError: `datasets` is not installed or cannot read it, or it lacks a column.
    """
    checked_split(split, "--split")
    tables, roots = _loaded(name, cache)
    images: list[SourceImage] = []
    for part, table in tables.items():
        of_part = split or (_renamed(part) if len(tables) > 1 else None)
        images += _images(f"{name}, split {part}", table, columns, of_part, roots)
    if not images:
        raise DiptychError(f"{name} has no images with captions.")
    return Source(images)


def _loaded(name: str, cache: Path) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Return the table of each split, and the folders that its files lie in."""
    try:
        import datasets
    except ImportError:
        raise DiptychError("--hf needs the library datasets: pip install 'diptych[hf]'.") from None
    is_folder = os.path.isdir(name)  # noqa: PTH112 - Path.is_dir fails on names that are too long
    if not is_folder and (os.path.exists(name) or name.startswith((".", "/")) or name.count("/") > 1):  # noqa: PTH110
        raise DiptychError(f"{printable(name[:200])} is no folder: --hf takes a folder, or the id of a dataset.")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        if is_folder:
            folder = Path(name).resolve()
            return dict(datasets.load_dataset(str(folder), cache_dir=str(cache))), (folder, cache.resolve())
        return dict(datasets.load_dataset(name)), (Path(datasets.config.HF_CACHE_HOME).resolve(),)
    except Exception as error:  # its errors have no common class
        hint = ""
        if not is_folder and os.environ.get("HF_HUB_OFFLINE") == "1":
            hint = " Nothing is fetched unless HF_HUB_OFFLINE=0 is set."
        reason = first_line(_innermost(error))
        raise DiptychError(f"{printable(name[:200])} cannot be read by datasets: {reason}.{hint}") from None


def _innermost(error: BaseException) -> BaseException:
    """Return the error that led to this one; those of `datasets` often say only that something failed."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return _innermost(cause) if cause is not None and str(cause) else error


def _images(
    where: str, table: Any, columns: Columns, split: str | None, roots: tuple[Path, ...]
) -> Iterator[SourceImage]:
    """Yield the images of a table that have captions."""
    import datasets

    texts = [column for column in _CAPTIONS if column in table.features]
    pictures = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    picture = _column(table, where, "image", columns.image, pictures)
    caption = _column(table, where, "caption", columns.caption, texts)
    if not _holds_images(table.features[picture]):
        raise DiptychError(f"{where}: column {picture} has no images. Choose by --image-column.")
    table = table.cast_column(picture, datasets.Image(decode=False))
    files = table.select_columns([picture])[picture]
    rows = zip(table[caption], _splits(table, where, columns.split, split), _names(table, picture), strict=True)
    left_out = 0
    for row, (captions, own_split, name) in enumerate(rows):
        place = f"{where}, row {row}"
        captions_of_row = _texts(captions, f"{place}, {caption}")
        if name is None or not captions_of_row:
            left_out += 1
            continue
        source = encodable(name or f"{where.rpartition(' ')[2]}/{row}")
        listed = tuple(map(SourceCaption, captions_of_row))
        yield SourceImage(HubImage(files, row, name, place, roots), source, checked_split(own_split, place), listed)
    if left_out:
        _log.warning("%s: %d rows without an image or a caption are left out.", where, left_out)


def _holds_images(kind: Any) -> bool:
    """Return whether a column of this kind can hold images: as such, as bytes, or as bytes and path."""
    import datasets

    is_binary = isinstance(kind, datasets.Value) and "binary" in kind.dtype
    return isinstance(kind, datasets.Image) or is_binary or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})


def _texts(captions: Any, where: str) -> list[str]:
    """Return the captions of a row, without those that are missing."""
    texts = captions if isinstance(captions, list) else [captions]
    texts = [text for text in texts if text is not None and text != ""]
    if not all(isinstance(text, str) for text in texts):
        raise DiptychError(f"{where} is neither a text nor a list of texts. Choose the column by --caption-column.")
    return texts


def _splits(table: Any, where: str, column: str | None, split: str | None) -> Iterable[Any]:
    """Return the split of each row: that of its column, or else the given one."""
    if column is None:
        return repeat(split, len(table))
    return map(_renamed, table[_column(table, where, "split", column, [])])


def _renamed(split: Any) -> Any:
    return _SPLITS.get(split, split) or None if isinstance(split, str) else split


def _names(table: Any, picture: str) -> Iterator[str | None]:
    """Yield the name of each image's file, without reading its bytes: empty where it has none, None for no image."""
    for batch in table.select_columns([picture]).with_format("arrow").iter(batch_size=1000):
        images = batch[picture].combine_chunks()
        parts = (images.is_valid(), images.field("bytes").is_valid(), images.field("path"))
        for is_image, has_bytes, path in zip(*(part.to_pylist() for part in parts), strict=True):
            yield PurePosixPath(path or "").name if is_image and (has_bytes or path) else None


def _column(table: Any, where: str, what: str, asked: str | None, usual: list[str]) -> str:
    """Return the name of the column that was asked for, or else of the first usual one."""
    if asked is not None and asked not in table.features:
        raise DiptychError(f"{where} has no column {asked}; it has {', '.join(table.features)}.")
    if asked is None and not usual:
        raise DiptychError(
            f"{where} has no column of {what}s that is known as one; it has {', '.join(table.features)}. Choose by "
            f"--{what}-column."
        )
    return asked or usual[0]
