"""An index has the images of its collection, whatever happened before."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable, Generator, Iterable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from searching import OTHER, Collection, photo, write_photos

from diptych import Retriever
from diptych.errors import DiptychError
from diptych.serving import indexing
from diptych.serving.indexing import IndexSummary
from diptych.serving.table_source import TableSource


def counts(summary: IndexSummary) -> tuple[int, int, int]:
    return summary.embedded, summary.known, summary.removed


def test_rows_are_what_the_model_makes_of_each_file(indexed: Collection) -> None:
    index = indexed.open()
    records = index.records(np.arange(len(index)))
    files = [(indexed.photos / record.path).read_bytes() for record in records]
    encoded = indexed.retriever.encode_images(files, tokens=True)

    assert [record.hash for record in records] == [hashlib.sha256(file).hexdigest() for file in files]
    assert [(record.width, record.height) for record in records] == [(40, 30)] * 7
    assert index.vectors[:, :-1] == pytest.approx(encoded.embedding, abs=1e-5)
    assert index.vectors[:, -1] == pytest.approx(-encoded.bias, abs=1e-5)
    assert encoded.tokens is not None
    assert index.grids(np.arange(7)) == pytest.approx(encoded.tokens.numpy(), abs=2e-2)
    assert [record.attributes for record in records[3:6]] == [{"folder": "dogs"}, {"folder": "dogs"}, {"folder": "."}]


def test_an_unchanged_collection_needs_no_model(indexed: Collection) -> None:
    before, loaded = indexed.open().state, indexed.loaded
    summary = indexed.update()
    assert (summary.unchanged, *counts(summary)) == (7, 0, 0, 0)
    after = indexed.open().state
    assert after == before.model_copy(update={"scanned": after.scanned})
    assert after.scanned > before.scanned
    assert indexed.loaded == loaded


def test_only_new_content_is_embedded(indexed: Collection) -> None:
    (indexed.photos / "e.png").rename(indexed.photos / "renamed.png")
    (indexed.photos / "f.png").unlink()
    (indexed.photos / "cats/a.png").write_bytes(photo(50))
    write_photos(indexed.photos, ["new.png", "twin.png"], first=60)
    (indexed.photos / "twin.png").write_bytes(photo(60))

    # New are cats/a.png, and new.png with its twin; renamed.png is known; four rows are outdated.
    assert counts(indexed.update()) == (2, 1, 3)
    files = sorted(str(path.relative_to(indexed.photos)) for path in indexed.photos.rglob("*.png"))
    assert sorted(indexed.paths()) == files
    index = indexed.open()
    records = index.records(np.arange(len(index)))
    encoded = indexed.retriever.encode_images([indexed.photos / record.path for record in records])
    assert index.vectors[:, :-1] == pytest.approx(encoded.embedding, abs=1e-5)


def test_captions_and_attributes_change_without_the_model(indexed: Collection) -> None:
    sheet = indexed.photos / "files.csv"
    sheet.write_text("file,caption,year\ncats/a.png,A cat.,2020\ne.png,A field.,2021\n")
    source = TableSource(sheet)
    indexed.update(source)
    sheet.write_text("file,caption,year\ncats/a.png,A tabby cat.,2020\ne.png,A field.,2024\n")

    assert counts(indexed.update(source)) == (0, 2, 2)
    index = indexed.open()
    assert [(record.captions, record.attributes) for record in index.records(np.arange(2))] == [
        (["A tabby cat."], {"year": 2020}),
        (["A field."], {"year": 2024}),
    ]


def test_files_that_are_no_images_are_left_out_and_named(collection: Collection) -> None:
    (collection.photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (collection.photos / "empty.png").touch()
    summary = collection.update()

    assert [path for path, _ in summary.unreadable] == ["broken.jpg", "empty.png"]
    assert summary.state.unreadable == 2
    assert len(collection.open()) == 7


def test_a_row_without_a_file_is_left_out_and_named(indexed: Collection) -> None:
    sheet = indexed.photos / "files.csv"
    sheet.write_text("file,year\ne.png,2020\ngone.png,2021\n")
    summary = indexed.update(TableSource(sheet))
    assert summary.unreadable == [("gone.png", "gone.png cannot be read: No such file or directory.")]
    assert indexed.paths() == ["e.png"]


def test_a_collection_of_broken_images_alone_is_an_error(collection: Collection) -> None:
    shutil.rmtree(collection.photos)
    collection.photos.mkdir()
    (collection.photos / "empty.png").touch()
    with pytest.raises(DiptychError, match=r"No image of the collection photos can be read: empty\.png: empty file"):
        collection.update()
    (collection.photos / "empty.png").unlink()
    with pytest.raises(DiptychError, match="The collection photos has no images"):
        collection.update()


def test_one_image_is_a_collection(collection: Collection) -> None:
    shutil.rmtree(collection.photos)
    write_photos(collection.photos, ["one.png"])
    assert collection.update().state.images == 1
    assert collection.paths() == ["one.png"]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_BATCH", 2)


class KilledError(BaseException):
    """What a kill leaves is what an exception leaves that nothing handles."""


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[..., Any]:
    """Return a function that replaces the encoding and fails at the given call."""
    calls = iter(range(100))
    whole = Retriever.encode_images

    def encode(*arguments: Any, **options: Any) -> Any:
        if next(calls) == step:
            raise KilledError
        return whole(*arguments, **options)

    return encode


@pytest.mark.parametrize(("step", "missing"), [(0, 6), (1, 4), (2, 2)])
def test_after_a_kill_the_version_before_is_read_and_the_rest_is_done(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, small_batches: None, step: int, missing: int
) -> None:
    source = TableSource(write_table(collection, ["cats/a.png"]))
    collection.update(source)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Retriever, "encode_images", killed_at(patch, step))
        collection.update()

    assert collection.paths() == ["cats/a.png"]
    assert collection.update().embedded == missing
    assert len(collection.paths()) == len(set(collection.paths())) == 7


def write_table(collection: Collection, files: list[str]) -> Any:
    path = collection.photos / "files.csv"
    path.write_text("\n".join(["file,folder", *(f"{name},{name.rpartition('/')[0]}" for name in files)]) + "\n")
    return path


def test_content_that_several_nodes_encode_at_once_is_stored_once(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    def at_once(work: Callable[[Any], Any], tasks: Iterable[Any], *_: Any, **__: Any) -> Generator[Any]:
        """Nodes know what the index had when the work began."""
        sent = pickle.dumps(work)
        yield from [pickle.loads(sent)(task) for task in tasks]

    (collection.photos / "z.png").write_bytes((collection.photos / "cats/a.png").read_bytes())
    monkeypatch.setattr(indexing, "map_shards", at_once)
    assert counts(collection.update()) == (7, 1, 0)
    index = collection.open()
    first, last = (collection.paths().index(name) for name in ("cats/a.png", "z.png"))
    assert len(index) == 8
    assert (index.vectors[first] == index.vectors[last]).all()


def test_an_index_that_is_older_than_its_collection_is_not_opened(indexed: Collection) -> None:
    indexed.update(model=OTHER)
    write_photos(indexed.photos, ["new.png"], first=90)
    indexed.update(model=OTHER)

    assert len(indexed.open(OTHER)) == 8
    with pytest.raises(DiptychError, match=r"older than the collection\. Run `diptych index --collection photos`"):
        indexed.open()


def test_an_index_of_another_model_is_none(indexed: Collection) -> None:
    with pytest.raises(DiptychError, match="photos is not indexed with the model cdcdcd"):
        indexed.open(OTHER)


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_damaged_index_is_an_error_and_is_made_anew(indexed: Collection, part: str) -> None:
    [table] = (indexed.photos.parent / "store/photos").glob("*.lance")
    shutil.rmtree(table / part)
    with pytest.raises(DiptychError, match="The index of photos is damaged"):
        indexed.open()
    indexed.update()
    assert len(indexed.open().vectors) == 7


def test_a_collection_that_is_made_again_under_its_name_shows_its_own_images(indexed: Collection) -> None:
    before = indexed.open()
    indexed.store.remove("photos")
    shutil.rmtree(indexed.photos)
    write_photos(indexed.photos, ["x.png", "y.png"], first=40)
    indexed.update()
    index = indexed.open()

    assert index.state.build != before.state.build
    assert indexed.paths() == ["x.png", "y.png"]
    encoded = indexed.retriever.encode_images([photo(40), photo(41)])
    assert index.vectors[:, :-1] == pytest.approx(encoded.embedding, abs=1e-5)


def test_other_columns_need_no_new_embedding(indexed: Collection) -> None:
    files = sorted(str(path.relative_to(indexed.photos)) for path in indexed.photos.rglob("*.png"))
    sheet = indexed.photos / "files.csv"
    sheet.write_text("file,year\n" + "".join(f"{name},{number}\n" for number, name in enumerate(files)))
    vectors = indexed.open().vectors.copy()
    assert counts(indexed.update(TableSource(sheet))) == (0, 7, 0)
    index = indexed.open()
    assert [record.attributes for record in index.records(np.arange(7))] == [{"year": number} for number in range(7)]
    assert (index.vectors == vectors).all()
    assert len(index.grids(np.arange(7))) == 7


def test_a_rebuild_that_was_killed_still_knows_what_was_embedded(
    indexed: Collection, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    files = sorted(str(path.relative_to(indexed.photos)) for path in indexed.photos.rglob("*.png"))
    sheet = indexed.photos / "files.csv"
    sheet.write_text("file,year\n" + "".join(f"{name},{number}\n" for number, name in enumerate(files)))
    whole = TableSource.read

    def read(source: TableSource, path: str) -> bytes:
        if path == files[4]:
            raise KilledError
        return whole(source, path)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(TableSource, "read", read)
        indexed.update(TableSource(sheet))
    assert len(indexed.open()) == 7
    assert counts(indexed.update(TableSource(sheet))) == (0, 3, 0)
    assert sorted(indexed.paths()) == files


def test_files_that_cannot_be_read_make_no_new_version(collection: Collection) -> None:
    (collection.photos / "empty.png").touch()
    collection.update()
    before = collection.open().state
    collection.update()
    assert (collection.open().state.build, collection.open().state.version) == (before.build, before.version)


def test_whether_reranking_is_possible_is_remembered(collection: Collection) -> None:
    collection.update(rerank=False)
    assert counts(collection.update()) == (0, 0, 0)
    assert collection.loaded == 1
    assert collection.open().state.grid is None
    assert counts(collection.update(rerank=True)) == (7, 0, 0)
    assert collection.open().state.grid is not None


def test_a_version_that_a_server_reads_outlives_the_next_ones(
    indexed: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions are removed by the time since which nobody reads them, not by their age."""
    monkeypatch.setattr(indexing, "_KEPT_SECONDS", 0.0)
    for number in range(3):
        index = indexed.open()
        write_photos(indexed.photos, [f"new{number}.png"], first=60 + number)
        indexed.update()
        assert index.thumbnail(0)[:2] == b"\xff\xd8"
        assert len(index.grids(np.array([0, 1]))) == 2
    [table] = (indexed.photos.parent / "store/photos").glob("*.lance")
    assert len(list((table / "_versions").glob("*.manifest"))) < 12


def test_a_folder_that_cannot_be_read_is_an_error(indexed: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DiptychError, match=r"photos cannot be read: Permission denied"):
        indexed.update()


def test_two_indexings_at_once_are_refused(indexed: Collection) -> None:
    with indexed.store.held("photos"), pytest.raises(DiptychError, match="is being indexed by another process"):
        indexed.update()


def test_an_open_index_stays_as_it_is_while_a_newer_one_is_made(indexed: Collection) -> None:
    old = indexed.open()
    row = old.row_of(hashlib.sha256((indexed.photos / "f.png").read_bytes()).hexdigest())
    assert row is not None
    (indexed.photos / "f.png").unlink()
    indexed.update()
    indexed.open()

    assert old.records(np.array([row]))[0].path == "f.png"
    assert old.thumbnail(row)[:2] == b"\xff\xd8"
    assert len(old.vectors) == 7
    assert len(indexed.open()) == 6


def test_large_images_become_small_thumbnails(collection: Collection) -> None:
    (collection.photos / "large.png").write_bytes(photo(3, (900, 600)))
    collection.update()
    index = collection.open()
    row = [record.path for record in index.records(np.arange(len(index)))].index("large.png")
    assert Image.open(BytesIO(index.thumbnail(row))).size == (256, 171)
    assert index.records(np.array([row]))[0].width == 900
