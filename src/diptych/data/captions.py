"""COCO captions files: the reader of any such file, and the reader and writer of the dataset's."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diptych.data.stored import local_path
from diptych.data.text_files import parse_json, read_json
from diptych.errors import DiptychError
from diptych.files import atomic_path

if TYPE_CHECKING:
    from pycocotools.coco import COCO

CAPTIONS_FILE = "captions.json"

MISSING_WORDS = ("nan", "NaN", "NAN", "null", "NULL", "None", "NA", "N/A", "n/a", "<NA>", "#N/A")
"""Words that programs write for a missing value. A caption that consists of such a word only is no caption."""

Record = dict[str, Any]

_FIELDS: dict[str, dict[str, Any]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "caption": (str, type(None))},
}
"""Fields that each record of a table has, and their types."""


@dataclass(frozen=True)
class Dataset:
    """Content of a COCO captions file; image records have `id`, `file_name` and more, annotations have `caption`."""

    info: Record = field(default_factory=dict)
    licenses: list[Any] = field(default_factory=list)
    images: list[Record] = field(default_factory=list)
    annotations: list[Record] = field(default_factory=list)


def read_dataset(folder: Path) -> Dataset:
    """Return the content of the captions file of the dataset in `folder`, or that a store has in its place.

    Raises:
        DiptychError: there is no dataset, or `read_coco` fails.
    """
    path = local_path(folder / CAPTIONS_FILE)
    if not path.is_file():
        raise DiptychError(
            f"{path} is missing: there is no dataset. Draw one with `diptych data scenes`, import your images "
            "with `diptych data import`, or restore what data.dvc records with `dvc pull data.dvc`."
        )
    return read_coco(path)


def iterate_records(folder: Path, table: Literal["images", "annotations"]) -> Iterator[Record]:
    """Yield the records of a table of the dataset in `folder`, in their order.

    They are not in memory together, as `write_dataset` writes a record a line. A file of another form is read whole.

    Raises:
        DiptychError: as `read_dataset`.
    """
    path = local_path(folder / CAPTIONS_FILE)
    count = 0
    for line in _record_lines(path, table) if _is_as_written(path) else ():
        try:
            record = parse_json(line.decode("utf-8"))
        except (ValueError, RecursionError):
            break
        _check_record(path, table, count, record)
        yield record
        count += 1
    else:
        if count:
            return
    # There is nothing, or a line that is no record: reading the whole file names the fault.
    yield from getattr(read_dataset(folder), table)[count:]


def check_ids(folder: Path, record: Record) -> Record:
    """Return a record of the dataset in `folder`, unless one of its ids takes more than 64 bits."""
    for key in ("id", "image_id"):
        value = record.get(key, 0)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise DiptychError(
                f"{folder / CAPTIONS_FILE}: {key} {value} does not fit into 64 bits. Change the ids in its source."
            )
    return record


def read_coco(path: Path) -> Dataset:
    """Return the content of a COCO captions file. Captions may be null, and ids need not be unique.

    Raises:
        DiptychError: the file is missing, not JSON (cut off, say) or not COCO captions; the message names the record.
    """
    content = read_json(path)
    _check_captions(path, content)
    return Dataset(
        info=content.get("info") or {},
        licenses=content.get("licenses") or [],
        images=content["images"],
        annotations=content["annotations"],
    )


def read_instances(path: Path) -> dict[int, list[str]]:
    """Return the objects of each image in a COCO instances file: by image id, the sorted names of their categories.

    A category is repeated for each of its objects. Crowds are left out.

    Raises:
        DiptychError: the file is missing, not JSON (cut off, say) or not COCO instances; the message names the record.
    """
    content = read_json(path)
    _check_lists(path, "instances", content, ("images", "annotations", "categories"))
    names: dict[int, str] = {}
    for index, category in enumerate(content["categories"]):
        if not isinstance(category, dict) or not isinstance(category.get("id"), int) or category["id"] in names:
            raise _refusal(path, "instances", f"categories[{index}] has no unique id")
        name = category.get("name")
        if not isinstance(name, str) or not name.strip() or encodable(name) != name:
            raise _refusal(path, "instances", f"categories[{index}] has the invalid name {name!r}")
        names[category["id"]] = name
    try:
        objects: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    except (KeyError, TypeError):
        raise _refusal(path, "instances", "an image has no id") from None
    for index, annotation in enumerate(content["annotations"]):
        try:
            if int(annotation.get("iscrowd", 0)) == 0:
                objects[annotation["image_id"]].append(names[annotation["category_id"]])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            reason = f"annotations[{index}] names an image or category that is not listed"
            raise _refusal(path, "instances", reason) from None
    return {image: sorted(names) for image, names in objects.items()}


def indexed(dataset: Dataset) -> COCO:
    """Return pycocotools' index of a captions file: annotations by image in `imgToAnns`, records by id."""
    # An idle run reads captions and needs no index.
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {"images": dataset.images, "annotations": dataset.annotations}
    # createIndex prints its progress.
    with redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def encodable(text: str) -> str:
    """Return `text` with a question mark for each half of a surrogate pair, which JSON can hold but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Write the captions file of the dataset in `folder` atomically: one record a line, always the same bytes."""
    with (
        atomic_path(folder / CAPTIONS_FILE) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.write(f'{{"info": {_line(dataset.info)},\n"licenses": {_line(dataset.licenses)},\n"images": [\n')
        file.write(",\n".join(map(_line, dataset.images)))
        file.write('\n],\n"annotations": [\n')
        file.write(",\n".join(map(_line, dataset.annotations)))
        file.write("\n]}\n")


def _is_as_written(path: Path) -> bool:
    """Return whether the file has the lines that `write_dataset` writes; what is within a record is not looked at."""
    try:
        with path.open("rb") as file:
            return _has_frame(file)
    except OSError:
        return False


def _has_frame(lines: Iterator[bytes]) -> bool:
    if not (next(lines, b"").startswith(b'{"info": {') and next(lines, b"").startswith(b'"licenses": [')):
        return False
    for table, end in zip(_FIELDS, (b"],\n", b"]}\n"), strict=True):
        if next(lines, b"") != _heading(table):
            return False
        # All records have a comma behind them but the last one, and the table ends behind that.
        line = b"},\n"
        while line.endswith(b"},\n"):
            line = next(lines, b"")
            if not line.startswith(b"{"):
                return False
        if not line.endswith(b"}\n") or next(lines, b"") != end:
            return False
    return not next(lines, b"")


def _record_lines(path: Path, table: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        heading = _heading(table)
        for line in file:
            if line == heading:
                break
        for line in file:
            if line.startswith(b"]"):
                return
            yield line.rstrip(b",\n")


def _heading(table: str) -> bytes:
    return f'"{table}": [\n'.encode()


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _check_captions(path: Path, content: Any) -> None:
    _check_lists(path, "captions", content, ("images", "annotations"))
    for key, kind in (("info", dict), ("licenses", list)):
        if content.get(key) is not None and not isinstance(content[key], kind):
            raise _refusal(path, "captions", f'"{key}" is not a {kind.__name__}')
    for table in _FIELDS:
        for index, record in enumerate(content[table]):
            _check_record(path, table, index, record)


def _check_lists(path: Path, kind: str, content: Any, tables: Iterable[str]) -> None:
    for table in tables:
        if not isinstance(content, dict) or not isinstance(content.get(table), list):
            raise _refusal(path, kind, f'it has no list "{table}"')


def _check_record(path: Path, table: str, index: int, record: Any) -> None:
    if not isinstance(record, dict):
        raise _refusal(path, "captions", f"{table}[{index}] is not an object")
    for name, kind in _FIELDS[table].items():
        if name not in record:
            raise _refusal(path, "captions", f'{table}[{index}] (id {record.get("id")}) has no "{name}"')
        if not isinstance(record[name], kind) or isinstance(record[name], bool):
            reason = f"{table}[{index}] (id {record.get('id')}): {name} is {record[name]!r}"
            raise _refusal(path, "captions", reason)


def _refusal(path: Path, kind: str, reason: str) -> DiptychError:
    return DiptychError(f"{path} is not a COCO {kind} file: {reason}.")
