"""Tables: each row is read, or the line is named where one would be lost."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from diptych.data.tables import TableRow, read_caption_table
from diptych.errors import DiptychError


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(folder: Path, content: str | bytes, name: str = "t.csv") -> list[tuple[int, str, tuple[str, ...]]]:
    return [(row.line, row.file, row.captions) for row in read_caption_table(table(folder, content, name))]


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    text = 'file\tcaption\na.jpg\t"Stop" says a sign\nb.jpg\t"open\nc.jpg\tends so"\n'
    assert rows(tmp_path, text, "t.tsv") == [
        (2, "a.jpg", ('"Stop" says a sign',)),
        (3, "b.jpg", ('"open',)),
        (4, "c.jpg", ('ends so"',)),
    ]


def test_cells_of_a_tsv_that_look_quoted_are_kept_and_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = rows(tmp_path, 'file\tcaption\na.jpg\tone\nb.jpg\t"a ""big"" dog"\n', "t.tsv")
    assert found[1] == (3, "b.jpg", ('"a ""big"" dog"',))
    assert "begin and end with a quote: line 3. A .tsv has no quoting" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"file"\t"caption"\n"a.jpg"\t"one"\n', "line 1: no column caption and file.*call the file .csv"),
        ("file,caption\na.jpg,one\n", "line 1: no column caption and file.*call the file .csv"),
        ('file\tcaption\na.jpg\t"two\nlines"\n', "line 3. A .tsv has no quoting"),
    ],
)
def test_a_tsv_with_what_belongs_to_a_csv_is_told_so(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        read_caption_table(table(tmp_path, text, "t.tsv"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('file,caption\na.jpg,"open\nb.jpg,two\nc.jpg,he said "\n', 2),
        ('file,caption\na.jpg,one\nb.jpg,"open\nc.jpg,he said "\nd.jpg,four\n', 3),
        ('caption,file\n"open,a.jpg\nhe said",b.jpg\n', 2),
        ('caption,file,note\none,a.jpg,"x\ny"\n"open,b.jpg,n\nhe said",c.jpg,n\n', 4),
        ('file,caption,note\na.jpg,"two\nlines","open\nb.jpg,he said "\n', 3),
        ('file;caption\n"a";"open\nb;he said "\n', 2),
        ('file,caption\r\na.jpg,"open\r\nb.jpg,he said "\r\n', 2),
        ('file,caption\nmy a.jfif,"open\nmy b.jfif,he said "\n', 2),
        ('file,caption\nphoto 1,"open\nphoto 2,he said "\n', 2),
        ('file,caption\nimage.0001,"open\nimage.0002,he said "\n', 2),
    ],
)
def test_a_cell_that_takes_in_rows_is_refused_with_the_line_where_it_opens(
    tmp_path: Path, text: str, line: int
) -> None:
    with pytest.raises(DiptychError, match=f"t.csv, line {line}: the cell that a quote opens here contains a line"):
        read_caption_table(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('file,caption\na.jpg,one\nb.jpg,"open\nc.jpg,three\n', 3),
        ('file,caption,note\na.jpg,"two\nlines","open\nb.jpg,two,\n', 3),
        ('sep=;\nfile;caption\na.jpg;"open\nb.jpg;two\n', 3),
        ('file,caption\na.jpg,"open\n' + "b.jpg,two\n" * 20_000, 2),
    ],
    ids=["simple", "after lines in quotes", "after Excel's line", "long"],
)
def test_a_quote_that_is_never_closed_is_named_by_the_line_where_it_opens(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(DiptychError, match=f"line {line}: the quote that opens a cell here is never closed"):
        read_caption_table(table(tmp_path, text))


def test_text_after_a_closing_quote_is_named_by_the_line_of_the_opening_one(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"line 2: the cell that a quote opens here continues .* at line 3"):
        read_caption_table(table(tmp_path, 'file,caption\na.jpg,"open\nb.jpg,"two" x\n'))


def test_a_caption_of_several_lines_is_read_and_rows_are_numbered_by_where_they_begin(tmp_path: Path) -> None:
    text = 'file,caption\na.jpg,"A dog, brown.\nA cat, black."\nb.jpg,"say ""hello"""\n'
    assert rows(tmp_path, text) == [
        (2, "a.jpg", ("A dog, brown.\nA cat, black.",)),
        (4, "b.jpg", ('say "hello"',)),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "file;caption\na.jpg;one, two\n",
        "sep=;\r\nfile;caption\r\na.jpg;one, two\r\n",
        "\ufefffile\tcaption\na.jpg\tone, two\n",
        'file,caption\ra.jpg,"one, two"\r',
        'file,caption\na.jpg,"one, two"\n'.encode("utf-16"),
        'file,caption\na.jpg,"one, two"\n'.encode("utf-16-le"),
        'file,caption,\na.jpg,"one, two",\n,,\n\n',
    ],
    ids=["semicolons", "Excel's line", "tabs and mark", "returns", "UTF-16", "without mark", "empty columns and rows"],
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, content: str | bytes) -> None:
    assert [found[1:] for found in rows(tmp_path, content)] == [("a.jpg", ("one, two",))]


def test_a_cell_may_be_longer_than_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    assert len(rows(tmp_path, f"file,caption\na.jpg,{'x' * 200_000}\n")[0][2][0]) == 200_000


@pytest.mark.parametrize(
    "header", ["caption,caption", "caption_0,caption_1", " Caption 1 , CAPTION 2", "caption,caption.1"]
)
def test_several_columns_of_captions_are_all_captions(
    tmp_path: Path, header: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text = f"File,{header},url\na.jpg,one,two,u\nb.jpg,,three,u\nc.jpg,,,u\n"
    assert [found[2] for found in rows(tmp_path, text)] == [("one", "two"), ("three",), ("",)]
    assert "2 empty cells in the 2 caption columns are left out" in caplog.text
    assert "columns that are not read: url" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,File,caption\na.jpg,b.jpg,x\n", "line 1: 2 columns are called file"),
        ("file,caption,split,split\na.jpg,x,val,val\n", "line 1: 2 columns are called split"),
        ("file,caption\na.jpg,one, two\n", r"\(the header has 2\).*line 2. Quote the cells that contain a delimiter"),
        ("file,caption\na.jpg,one\0\n", "line 2: a zero byte"),
        ("PK\3\4", "is a zip archive or a spreadsheet"),
    ],
)
def test_what_would_lose_something_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        read_caption_table(table(tmp_path, text))


def test_captions_that_stand_for_a_missing_value_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_caption_table(
        table(tmp_path, "file,caption,split\na.jpg,nan,\nb.jpg,None of them,val\nc.jpg, NaN , val \n")
    )
    assert found[1] == TableRow(3, "b.jpg", ("None of them",), "val")
    assert [row.split for row in found] == [None, "val", "val"]
    assert "stand for a missing value, such as nan or None: line 2, 4." in caplog.text


def test_a_zero_byte_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"t\.csv, line 3: a zero byte"):
        read_caption_table(table(tmp_path, "file,caption\na.jpg,one\u2028two\n\0b.jpg,three\n"))
