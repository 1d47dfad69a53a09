"""Reader of caption tables: CSV with its quoting, and TSV without quoting. No row is lost in a cell of another row."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from diptych.data.captions import MISSING_WORDS
from diptych.data.text_files import read_text
from diptych.errors import DiptychError, some

log = logging.getLogger(__name__)

_CAPTION = re.compile(r"caption(?:[ _.-]?\d+)?")
"""Names of caption columns; pandas writes the second of two equal names as caption.1."""
_DELIMITERS = (",", ";", "\t")
"""Delimiters of a .csv; spreadsheet programs write semicolons where the comma is the decimal sign."""
_SEPARATOR_LINE = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)
"""First line that gives Excel the delimiter."""
USUAL_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
"""Suffixes of the names of image files, in lower case."""


class TableRow(NamedTuple):
    """Row of a caption table; `line` is the number of its first line."""

    line: int
    file: str
    captions: tuple[str, ...]
    split: str | None


class _Line(NamedTuple):
    """Cells of a row, and the number of the line at which it begins."""

    number: int
    cells: list[str]


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns."""

    total: int
    file: int
    captions: list[int]
    split: int | None


def read_caption_table(table: Path) -> list[TableRow]:
    """Return the rows of a table whose header has `file`, `caption` (one or several columns) and optionally `split`.

    Raises:
        DiptychError: the file is not such a table, rows are incomplete, or a quoted cell contains other rows; the
            message names the lines.
    """
    suffix = table.suffix.lower()
    if suffix not in (".csv", ".tsv"):
        raise DiptychError(f"{table}: a table is a .csv or a .tsv; a spreadsheet program saves one as CSV UTF-8.")
    text = read_text(table)
    if "\0" in text:
        line = _line_breaks(text[: text.index("\0")]) + 1
        raise DiptychError(
            f"{table}, line {line}: a zero byte, which no text file has. Remove it or export the table again."
        )
    # newline="" splits at \r\n, \r and \n only, and keeps the line breaks.
    lines = list(io.StringIO(text, newline=""))
    if suffix == ".tsv":
        header, *rows = _parse(table, lines, "\t", quoting=csv.QUOTE_NONE)
        columns = _columns(table, header)
        _warn_of_quotes(table, rows, columns)
    else:
        delimiter, skipped = _delimiter(lines)
        header, *rows = _parse(table, lines, delimiter, skipped)
        columns = _columns(table, header)
        _refuse_contained_rows(table, rows, columns, delimiter)
    _refuse_incomplete(table, rows, columns)
    return _captioned(table, rows, columns)


def _delimiter(lines: list[str]) -> tuple[str, int]:
    """Return the delimiter of a CSV, and the number of lines before its header.

    The delimiter is that of a line `sep=`, else the one that splits the header into the required columns, else a comma.
    """
    if lines and (separator := _SEPARATOR_LINE.fullmatch(lines[0])):
        return separator[1], 1
    header = next((line for line in lines if line.strip()), "")
    for delimiter in _DELIMITERS:
        names = [cell.strip(' "\r\n').casefold() for cell in header.split(delimiter)]
        if "file" in names and any(map(_CAPTION.fullmatch, names)):
            return delimiter, 0
    return _DELIMITERS[0], 0


def _parse(
    table: Path, lines: list[str], delimiter: str, skipped: int = 0, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> list[_Line]:
    """Return the rows with text after the `skipped` lines, the header first; an empty header if there are none."""
    rows: list[_Line] = []
    with _unlimited_cells(sum(map(len, lines))):
        reader = csv.reader(lines[skipped:], delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            start = skipped + reader.line_num
            try:
                cells = next(reader)
            except StopIteration:
                return rows or [_Line(1, [])]
            except csv.Error as error:
                last = skipped + reader.line_num
                row = "".join(lines[start:last])
                opening = start + 1 + _line_breaks(row[: _open_quote(row, delimiter)])
                raise DiptychError(f"{table}, line {opening}: {_quote_problem(str(error), last)}") from None
            # Spreadsheet programs write empty lines and empty rows.
            if any(cell.strip() for cell in cells):
                rows.append(_Line(start + 1, cells))


def _quote_problem(message: str, last: int) -> str:
    if "end of data" in message:
        return (
            "the quote that opens a cell here is never closed. Close it; or, if it belongs to the text, double it and "
            "quote the whole cell."
        )
    return (
        f"the cell that a quote opens here continues after its closing quote, at line {last}. Within a quoted cell, "
        "double each quote of the text."
    )


def _open_quote(row: str, delimiter: str) -> int:
    """Return the index at which the first malformed cell of `row` begins."""
    mark = re.escape(delimiter)
    cell = re.compile(rf'(?:"(?:[^"]|"")*+"|[^"{mark}\r\n][^{mark}\r\n]*+|)(?:{mark}|\r\n|\r|\n)')
    index = 0
    while match := cell.match(row, index):
        index = match.end()
    return index


@contextmanager
def _unlimited_cells(limit: int) -> Iterator[None]:
    """Allow cells as long as the file: otherwise an open quote is reported as an exceeded limit."""
    before = csv.field_size_limit(max(limit, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _columns(table: Path, header: _Line) -> _Columns:
    names = [name.strip().casefold() for name in header.cells]
    captions = [column for column, name in enumerate(names) if _CAPTION.fullmatch(name)]
    missing = [name for name, is_there in (("caption", captions), ("file", "file" in names)) if not is_there]
    if missing:
        present = ", ".join(name.strip() for name in header.cells) or "nothing"
        raise DiptychError(
            f"{table}, line {header.number}: no column {' and '.join(missing)}; the header has {present}."
            f"{_hint_at_csv(table, header) or ' Rename the columns.'}"
        )
    for name in ("file", "split"):
        if names.count(name) > 1:
            raise DiptychError(
                f"{table}, line {header.number}: {names.count(name)} columns are called {name}. Keep one."
            )
    ignored = [name for name in names if name and name not in ("file", "split") and not _CAPTION.fullmatch(name)]
    if ignored:
        log.info("%s: columns that are not read: %s", table, ", ".join(ignored))
    return _Columns(len(names), names.index("file"), captions, names.index("split") if "split" in names else None)


def _hint_at_csv(table: Path, header: _Line) -> str:
    """Return advice for a .tsv whose header is written as in a CSV."""
    if table.suffix.lower() == ".tsv" and re.search('[",;]', "".join(header.cells)):
        return " A .tsv has tabs and no quoting: call the file .csv if it has commas, semicolons or quoted cells."
    return ""


def _refuse_incomplete(table: Path, rows: list[_Line], columns: _Columns) -> None:
    incomplete = [row for row in rows if len(row.cells) != columns.total or not row.cells[columns.file].strip()]
    if not incomplete:
        return
    hint = ""
    if any(len(row.cells) > columns.total for row in incomplete):
        hint = " Quote the cells that contain a delimiter."
    if table.suffix.lower() == ".tsv":
        hint = " A .tsv has no quoting: its cells contain neither tabs nor line breaks. Call it .csv if it has quoting."
    lines = some([str(row.number) for row in incomplete])
    raise DiptychError(
        f"{table}: rows with too few or too many columns (the header has {columns.total}), or without a file: "
        f"line {lines}.{hint}"
    )


def _refuse_contained_rows(table: Path, rows: list[_Line], columns: _Columns, delimiter: str) -> None:
    """Raise if a quoted cell contains lines that look like rows, since then its quote was not closed."""
    is_name = _name_like(rows, columns)
    for row in rows:
        for column, cell in enumerate(row.cells):
            contained = _contained_row(cell, column, columns.file, delimiter, is_name)
            if contained:
                line = row.number + sum(map(_line_breaks, row.cells[:column]))
                raise DiptychError(
                    f"{table}, line {line}: the cell that a quote opens here contains a line that looks like a row, "
                    f"{contained[:60]!r}. Close the quote where the cell ends; or, if it belongs to the text, double "
                    "it and quote the whole cell. If the line is part of a caption, write the caption on one line."
                )


def _contained_row(cell: str, column: int, file: int, delimiter: str, is_name: Callable[[str], bool]) -> str:
    """Return the first line of a cell of column number `column` that looks like a row; empty if none does."""
    first, *others = re.split(r"\r\n|\r|\n", cell)
    if not others:
        return ""
    starts = [(first, file - column), *((line, file) for line in others)]
    for line, position in starts:
        cells = line.split(delimiter)
        if len(cells) > 1 and 0 <= position < len(cells) and is_name(cells[position]):
            return line
    return ""


def _name_like(rows: list[_Line], columns: _Columns) -> Callable[[str], bool]:
    """Return a test whether a cell looks like the file names of the table."""
    names = {row.cells[columns.file].strip() for row in rows if len(row.cells) > columns.file}
    shapes = set(map(_shape, names))

    def is_name(cell: str) -> bool:
        name = cell.strip(' "')
        suffix, _ = shape = _shape(name)
        return name in names or suffix in USUAL_SUFFIXES or (bool(name) and shape in shapes)

    return is_name


def _shape(name: str) -> tuple[str, bool]:
    """Return the suffix of a name with zeros for its digits, and whether a name without a suffix has blanks.

    Blanks distinguish sentences from names.
    """
    suffix = re.sub(r"\d+", "0", PurePosixPath(name).suffix.lower())
    return suffix, not suffix and bool(re.search(r"\s", name))


def _warn_of_quotes(table: Path, rows: list[_Line], columns: _Columns) -> None:
    """Warn of captions that begin and end with a quote: perhaps a program wrote the file with CSV quoting."""
    quoted = [
        str(row.number)
        for row in rows
        for cell in (row.cells[column] for column in columns.captions if column < len(row.cells))
        if len(cell) > 1 and cell[0] == cell[-1] == '"'
    ]
    if quoted:
        log.warning(
            "%s: captions that begin and end with a quote: line %s. A .tsv has no quoting, so the quotes stay in the "
            "text; call the file .csv if it was written with quoting.",
            table,
            some(quoted),
        )


def _captioned(table: Path, rows: list[_Line], columns: _Columns) -> list[TableRow]:
    captioned = [_captioned_row(row, columns) for row in rows]
    empty = sum(len(columns.captions) - len(row.captions) for row in captioned)
    if empty:
        log.info("%s: %d empty cells in the %d caption columns are left out", table, empty, len(columns.captions))
    missing = [str(row.line) for row in captioned for text in row.captions if text.strip() in MISSING_WORDS]
    if missing:
        log.warning(
            "%s: captions that stand for a missing value, such as nan or None: line %s. The validation puts "
            "them in quarantine; leave such rows out of the table.",
            table,
            some(missing),
        )
    return captioned


def _captioned_row(row: _Line, columns: _Columns) -> TableRow:
    """Return the row without its empty captions; if all are empty, one stays."""
    texts = [row.cells[column] for column in columns.captions]
    captions = tuple(text for text in texts if text.strip()) or (texts[0],)
    split = row.cells[columns.split].strip() if columns.split is not None else ""
    return TableRow(row.number, row.cells[columns.file], captions, split or None)


def _line_breaks(text: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", text))
