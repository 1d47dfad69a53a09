"""Tables of captions: CSV, with the quoting of CSV, and TSV, which has none. No row is lost in another's cell."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diptych.data.captions import MISSING_WORDS
from diptych.data.text_files import read_text
from diptych.errors import DiptychError, some

log = logging.getLogger(__name__)

_CAPTION = re.compile(r"caption(?:[ _.-]?\d+)?")
"""Columns of captions: pandas calls the second of two equal ones caption.1."""
_DELIMITERS = (",", ";", "\t")
"""Those of a .csv: where a comma is the decimal sign, spreadsheets write semicolons."""
_SEPARATOR_LINE = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)
"""The line that tells Excel the delimiter."""
_USUAL_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}


class TableRow(NamedTuple):
    """A row: the line where it begins, and its cells."""

    line: int
    file: str
    captions: tuple[str, ...]
    split: str | None


class _Line(NamedTuple):
    """Cells, and the line of the file where they begin."""

    number: int
    cells: list[str]


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns."""

    total: int
    file: int
    captions: list[int]
    split: int | None


def read_table(table: Path) -> list[TableRow]:
    """Return the rows of a table with a header: columns `file`, `caption` (one or several) and perhaps `split`.

    Raises:
        DiptychError: the file is no such table, rows are incomplete, or a cell in quotes takes in other rows; the
            message names the lines.
    """
    suffix = table.suffix.lower()
    if suffix not in (".csv", ".tsv"):
        raise DiptychError(f"{table}: a table is a .csv or a .tsv; a spreadsheet program saves one as CSV UTF-8.")
    text = read_text(table)
    if "\0" in text:
        line = _line_breaks(text[: text.index("\0")]) + 1
        raise DiptychError(f"{table}, line {line}: a zero byte, which a text does not have.")
    # Line breaks stay as they are: universal, and none but these.
    lines = list(io.StringIO(text, newline=""))
    if suffix == ".tsv":
        header, rows = _read_tsv(lines)
        columns = _columns(table, header)
        _mention_quotes(table, rows, columns)
    else:
        header, rows, delimiter = _read_csv(table, lines)
        columns = _columns(table, header)
        _refuse_swallowed(table, rows, columns, delimiter)
    _refuse_incomplete(table, rows, columns)
    return _captioned(table, rows, columns)


def _read_tsv(lines: list[str]) -> tuple[_Line, list[_Line]]:
    found = (_Line(number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(lines, 1))
    header, *rows = [line for line in found if _is_filled(line)] or [_Line(1, [])]
    return header, rows


def _read_csv(table: Path, lines: list[str]) -> tuple[_Line, list[_Line], str]:
    told = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    skipped = 1 if told else 0
    first = next((line for line in lines[skipped:] if line.strip()), "")
    delimiter = told[1] if told else _delimiter(first)
    with _unlimited_cells(sum(map(len, lines))):
        found = _parse_csv(table, lines[skipped:], delimiter, skipped + 1)
    header, *rows = [line for line in found if _is_filled(line)] or [_Line(1, [])]
    return header, rows, delimiter


def _delimiter(header: str) -> str:
    """Return the delimiter by which the header has the columns that are needed, else a comma."""
    for delimiter in _DELIMITERS:
        names = [cell.strip(' "\r\n').casefold() for cell in header.split(delimiter)]
        if "file" in names and any(map(_CAPTION.fullmatch, names)):
            return delimiter
    return _DELIMITERS[0]


def _parse_csv(table: Path, lines: list[str], delimiter: str, first: int) -> list[_Line]:
    """Return all rows; the first of `lines` is the file's line number `first`."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    found = []
    while True:
        start = reader.line_num
        try:
            found.append(_Line(first + start, next(reader)))
        except StopIteration:
            return found
        except csv.Error as error:
            row = "".join(lines[start : reader.line_num])
            opening = first + start + _line_breaks(row[: _open_quote(row, delimiter)])
            last = first + reader.line_num - 1
            raise DiptychError(f"{table}, line {opening}: {_quote_fault(str(error), last)}") from None


def _quote_fault(message: str, last: int) -> str:
    if "end of data" in message:
        return (
            "the quote that opens a cell here is never closed. Close it; or, if it belongs to the text, double it and "
            "put the whole cell in quotes."
        )
    return (
        f"the cell that a quote opens here goes on after its closing quote, at line {last}. Within a cell in quotes, "
        "each quote of the text is doubled."
    )


def _open_quote(row: str, delimiter: str) -> int:
    """Return where the cell opens that keeps `row` from being split into cells."""
    mark = re.escape(delimiter)
    cell = re.compile(rf'(?:"(?:[^"]|"")*+"|[^"{mark}\r\n][^{mark}\r\n]*+|)(?:{mark}|\r\n|\r|\n)')
    at = 0
    while match := cell.match(row, at):
        at = match.end()
    return at


@contextmanager
def _unlimited_cells(limit: int) -> Iterator[None]:
    """Let a cell be as long as the file: a limit would speak of the limit, not of the quote that was left open."""
    before = csv.field_size_limit(max(limit, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_filled(line: _Line) -> bool:
    """Whether it is neither an empty line nor an empty row of a spreadsheet."""
    return any(cell.strip() for cell in line.cells)


def _columns(table: Path, header: _Line) -> _Columns:
    names = [name.strip().casefold() for name in header.cells]
    captions = [place for place, name in enumerate(names) if _CAPTION.fullmatch(name)]
    absent = [name for name, there in (("caption", captions), ("file", "file" in names)) if not there]
    if absent:
        found = ", ".join(name.strip() for name in header.cells) or "nothing"
        raise DiptychError(
            f"{table}, line {header.number}: no column {' and '.join(absent)}; the header has {found}."
            f"{_other_kind(table, header) or ' Give the columns these names.'}"
        )
    for name in ("file", "split"):
        if names.count(name) > 1:
            raise DiptychError(f"{table}, line {header.number}: {names.count(name)} columns are called {name}.")
    unread = [name for name in names if name and name not in ("file", "split") and not _CAPTION.fullmatch(name)]
    if unread:
        log.info("%s: columns that are not read: %s", table, ", ".join(unread))
    return _Columns(len(names), names.index("file"), captions, names.index("split") if "split" in names else None)


def _other_kind(table: Path, header: _Line) -> str:
    """Return what to do with a .tsv that is written as a CSV is."""
    if table.suffix.lower() == ".tsv" and re.search('[",;]', "".join(header.cells)):
        return " A .tsv has tabs and no quoting: call the file .csv if it has commas, semicolons or cells in quotes."
    return ""


def _refuse_incomplete(table: Path, rows: list[_Line], columns: _Columns) -> None:
    bad = [row for row in rows if len(row.cells) != columns.total or not row.cells[columns.file].strip()]
    if not bad:
        return
    hint = ""
    if any(len(row.cells) > columns.total for row in bad):
        hint = " Put cells that hold a delimiter in quotes."
    if table.suffix.lower() == ".tsv":
        hint = " A .tsv has no quoting: its cells hold neither tabs nor line breaks. Call it .csv if it has quoting."
    lines = some([str(row.number) for row in bad])
    raise DiptychError(
        f"{table}: rows with too few or too many columns (the header has {columns.total}), or without a file: "
        f"line {lines}.{hint}"
    )


def _refuse_swallowed(table: Path, rows: list[_Line], columns: _Columns, delimiter: str) -> None:
    """Raise if a cell in quotes holds what looks like rows: a quote was opened and not closed."""
    is_name = _name_like(rows, columns)
    for row in rows:
        for place, cell in enumerate(row.cells):
            swallowed = _row_within(cell, place, columns.file, delimiter, is_name)
            if swallowed:
                line = row.number + sum(map(_line_breaks, row.cells[:place]))
                raise DiptychError(
                    f"{table}, line {line}: the cell that a quote opens here holds line breaks and what looks like a "
                    f"row, {swallowed[:60]!r}. Close the quote where the cell ends; or, if it belongs to the text, "
                    "double it and put the whole cell in quotes. A caption that has such a line must be on one line."
                )


def _row_within(cell: str, place: int, file: int, delimiter: str, is_name: Callable[[str], bool]) -> str:
    """Return the first line of a cell of column `place` that looks like a row; empty if none does."""
    first, *others = re.split(r"\r\n|\r|\n", cell)
    if not others:
        return ""
    starts = [(first, file - place), *((line, file) for line in others)]
    for line, position in starts:
        cells = line.split(delimiter)
        if len(cells) > 1 and 0 <= position < len(cells) and is_name(cells[position]):
            return line
    return ""


def _name_like(rows: list[_Line], columns: _Columns) -> Callable[[str], bool]:
    """Return whether a cell looks like the table's file names do."""
    names = {row.cells[columns.file].strip() for row in rows if len(row.cells) > columns.file}
    shapes = set(map(_shape, names))

    def is_name(cell: str) -> bool:
        name = cell.strip(' "')
        suffix, _ = shape = _shape(name)
        return name in names or suffix in _USUAL_SUFFIXES or (bool(name) and shape in shapes)

    return is_name


def _shape(name: str) -> tuple[str, bool]:
    """Return the ending of a name, its digits as zeros; and, as sentences have blanks, whether one without has any."""
    suffix = re.sub(r"\d+", "0", PurePosixPath(name).suffix.lower())
    return suffix, not suffix and bool(re.search(r"\s", name))


def _mention_quotes(table: Path, rows: list[_Line], columns: _Columns) -> None:
    """Warn of captions that are wholly in quotes: perhaps a program wrote them as in a CSV."""
    quoted = [
        str(row.number)
        for row in rows
        for cell in (row.cells[place] for place in columns.captions if place < len(row.cells))
        if len(cell) > 1 and cell[0] == cell[-1] == '"'
    ]
    if quoted:
        log.warning(
            "%s: captions that begin and end with a quote: line %s. A .tsv has no quoting, so the quotes are kept; "
            "call the file .csv if it was written with quoting.",
            table,
            some(quoted),
        )


def _captioned(table: Path, rows: list[_Line], columns: _Columns) -> list[TableRow]:
    found = [_captioned_row(row, columns) for row in rows]
    empty = sum(len(columns.captions) - len(row.captions) for row in found)
    if empty:
        log.info("%s: %d empty cells in the %d caption columns are left out", table, empty, len(columns.captions))
    missing = [str(row.line) for row in found for text in row.captions if text.strip() in MISSING_WORDS]
    if missing:
        log.warning(
            "%s: captions that stand for a missing value, such as nan or None: line %s. The validation sets them "
            "aside; leave out such rows when the table is written.",
            table,
            some(missing),
        )
    return found


def _captioned_row(row: _Line, columns: _Columns) -> TableRow:
    """Return the row; of several captions the empty ones are left out, but one stays."""
    texts = [row.cells[place] for place in columns.captions]
    captions = tuple(text for text in texts if text.strip()) or (texts[0],)
    split = row.cells[columns.split].strip() if columns.split is not None else ""
    return TableRow(row.number, row.cells[columns.file], captions, split or None)


def _line_breaks(text: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", text))
