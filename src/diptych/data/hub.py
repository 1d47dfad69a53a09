"""Source of an import that the library `datasets` reads: a dataset of the Hugging Face hub, or a folder in its forms.

Such a folder has images with metadata.jsonl or metadata.csv, Parquet or Arrow files with the bytes of images, or a
webdataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.sources import Source, SourceCaption, SourceImage, checked_split
from diptych.errors import DiptychError, first_line

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
    """Image file in a row of a table of `datasets`."""

    images: Any
    """The column, a sequence of {"bytes", "path"}."""
    row: int
    name: str

    @property
    def suffix(self) -> str:
        """Suffix of the file's name, empty where the dataset has none."""
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: the file cannot be read.
        """
        image = self.images[self.row]
        content: bytes = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return content

    def __str__(self) -> str:
        return self.name


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
    tables = _loaded(name, cache)
    images = [
        image
        for part, table in tables.items()
        for image in _images(name, part, table, columns, split or (_renamed(part) if len(tables) > 1 else None))
    ]
    if not images:
        raise DiptychError(f"{name} has no images with captions.")
    return Source(images)


def _loaded(name: str, cache: Path) -> dict[str, Any]:
    """Return the table of each split."""
    try:
        import datasets
    except ImportError:
        raise DiptychError("--hf needs the library datasets: pip install 'diptych[hf]'.") from None
    datasets.disable_progress_bars()
    is_folder = Path(name).is_dir()
    try:
        if is_folder:
            return dict(datasets.load_dataset(str(Path(name).absolute()), cache_dir=str(cache)))
        return dict(datasets.load_dataset(name))
    except Exception as error:  # its errors have no common class
        hint = ""
        if not is_folder and os.environ.get("HF_HUB_OFFLINE") == "1":
            hint = " Nothing is fetched unless HF_HUB_OFFLINE=0 is set."
        raise DiptychError(f"{name} cannot be read by datasets: {first_line(error)}.{hint}") from None


def _images(name: str, part: str, table: Any, columns: Columns, split: str | None) -> Iterator[SourceImage]:
    import datasets

    where = f"{name}, split {part}"
    texts = [column for column in _CAPTIONS if column in table.features]
    pictures = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    picture = _column(table, where, "image", columns.image, pictures)
    caption = _column(table, where, "caption", columns.caption, texts)
    files = table.select_columns([picture]).cast_column(picture, datasets.Image(decode=False))[picture]
    rows = zip(table[caption], _splits(table, where, columns.split, split), _paths(table, picture), strict=True)
    for row, (captions, own_split, path) in enumerate(rows):
        file, place = path or f"{part}/{row}", f"{where}, row {row}"
        listed = tuple(map(SourceCaption, _texts(captions, f"{place}, {caption}")))
        yield SourceImage(HubImage(files, row, file), file, checked_split(own_split, place), listed)


def _texts(captions: Any, where: str) -> list[str]:
    texts = [captions] if isinstance(captions, str) else captions
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DiptychError(f"{where} is neither a text nor a list of texts. Choose the column by --caption-column.")
    return texts


def _splits(table: Any, where: str, column: str | None, split: str | None) -> Iterable[Any]:
    """Return the split of each row: that of its column, or else the given one."""
    if column is None:
        return repeat(split, len(table))
    return map(_renamed, table[_column(table, where, "split", column, [])])


def _renamed(split: Any) -> Any:
    return _SPLITS.get(split, split) if isinstance(split, str) else split


def _paths(table: Any, picture: str) -> Iterator[str | None]:
    """Yield the name of each image's file, without reading its bytes."""
    for chunk in table.data.column(picture).chunks:
        for path in chunk.field("path").to_pylist():
            yield path and PurePosixPath(path).name


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
