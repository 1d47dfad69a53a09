"""Source of a collection that a CSV or Parquet table lists, with captions and attributes."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from diptych.errors import DiptychError, printable, some
from diptych.serving.sources import FilesSource, Item, Source, Value, make_item

if TYPE_CHECKING:
    import pyarrow as pa

ATTRIBUTE = re.compile(r"[^\W\d]\w{0,63}")
"""Names that an attribute may have."""
_CAPTION = re.compile(r"caption(?:[ _.-]?\d+)?")


class TableSource(Source):
    """The image files that a CSV or Parquet table lists, with captions and attributes.

    The column `file` has their paths within the folder or S3 prefix `files`. Columns such as `caption` and `caption 2`
    have captions, and all others are attributes.
    """

    def __init__(self, table: Path, files: str | None = None) -> None:
        self._table = table.absolute()
        self._files = FilesSource(files or str(self._table.parent))
        self.description = {"kind": "table", "table": str(self._table), "files": self._files.address}

    def items(self) -> list[Item]:
        """Return the images, as `Source`."""
        table = _read_table(self._table)
        if table.column_names.count("file") != 1:
            raise DiptychError(f"{self._table} needs one column `file`: it has {some(table.column_names)}.")
        is_caption = {name: bool(_CAPTION.fullmatch(name.lower())) for name in table.column_names if name != "file"}
        attributes = [name for name, caption in is_caption.items() if not caption]
        _check_attributes(self._table, table, attributes)
        found: dict[str, Item] = {}
        for row, values in enumerate(_rows(self._table, table), start=1):
            path = self._checked_path(values["file"], row)
            if path in found:
                raise DiptychError(f"{self._table}: row {row} names {path} a second time; keep one row for a file.")
            texts = tuple(str(values[name]) for name, caption in is_caption.items() if caption and values[name])
            stamp = self._files.stamp(path)
            found[path] = make_item(path, stamp, texts, {name: _plain(values[name]) for name in attributes})
        return sorted(found.values(), key=lambda item: item.path)

    @property
    def inputs(self) -> list[Path]:
        """The first image in the folder of the files, as `FilesSource` has it."""
        return self._files.inputs

    def read(self, path: str) -> bytes:
        """Return the bytes of the image, as `Source`; a row whose file is gone is an error of its own."""
        return self._files.read(path)

    def _checked_path(self, value: Any, row: int) -> str:
        path = PurePosixPath(str(value or ""))
        if not value or path.is_absolute() or ".." in path.parts:
            raise DiptychError(
                f"{self._table}: row {row} has the file {printable(str(value))!r}, which is no path within "
                f"{self._files.address}."
            )
        return str(path)


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        # A name such as 007.jpg stays a text, whatever the others look like.
        texts = csv.ConvertOptions(column_types={"file": pa.string()})
        return parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path, convert_options=texts)
    except (OSError, pa.ArrowException) as error:
        raise DiptychError(f"{path} is not a CSV or Parquet table: {error}") from None


def _rows(path: Path, table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except Exception as error:  # dates out of range and unknown time zones have errors of their own
        raise DiptychError(f"{path} has a value that cannot be read: {error}.") from None
    return rows


def _check_attributes(path: Path, table: pa.Table, names: list[str]) -> None:
    from pyarrow import types

    if repeated := sorted({name for name in names if table.column_names.count(name) > 1}):
        raise DiptychError(f"{path} has more than one column {some(repeated)}.")
    for name in names:
        if not ATTRIBUTE.fullmatch(name):
            raise DiptychError(f"{path}: the column {name!r} cannot be an attribute: use letters, digits and _.")
        kind = table.schema.field(name).type
        if types.is_uint64(kind):
            raise DiptychError(f"{path}: the column {name} has the type uint64; int64 is needed.")
        is_plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
        if not any(test(kind) for test in (*is_plain, types.is_date, types.is_timestamp, types.is_null)):
            raise DiptychError(
                f"{path}: the column {name} has the type {kind}; attributes are texts, numbers or dates."
            )


def _plain(value: Any) -> Value | None:
    """Return a value as JSON has it; dates as text, whose order is theirs."""
    return value.isoformat() if isinstance(value, date) else value
