"""The content of image files, as an index keeps it."""

from __future__ import annotations

import hashlib
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from searching import Collection, photo

from diptych.serving.encoding import FileEncoder, content_schema
from diptych.serving.sources import DatasetSource, FilesSource

PATHS = ["cats/a.png", "cats/b.png", "e.png"]


@pytest.fixture
def encoder(collection: Collection) -> FileEncoder:
    """An encoder of the photos, which keeps grid tokens and knows none of them."""
    model = collection.retriever.model
    dim, tokens = collection.retriever.query_bank.image.shape[1], model.image_tower.grid_size
    return FileEncoder(collection.retriever, collection.source, set(), content_schema(dim, (tokens, dim)), threads=1)


def test_contents_are_what_the_model_makes_of_the_files(encoder: FileEncoder, collection: Collection) -> None:
    files = [(collection.photos / path).read_bytes() for path in PATHS]
    encoded = encoder.encode(PATHS)
    # Afterwards, with the same number of threads.
    expected = collection.retriever.encode_images(files, tokens=True)
    contents = encoded.contents.to_pydict()

    assert encoded.hashes == contents["hash"] == [hashlib.sha256(file).hexdigest() for file in files]
    assert encoded.errors == ["", "", ""]
    assert (contents["width"], contents["height"]) == ([40] * 3, [30] * 3)
    assert [Image.open(BytesIO(content)).size for content in contents["thumbnail"]] == [(40, 30)] * 3
    vectors = np.array(contents["embedding"], np.float32)
    assert (vectors == np.concatenate([expected.embedding, -expected.bias[:, None]], axis=1)).all()
    assert expected.tokens is not None
    assert (
        np.array(contents["grid"], np.float16).reshape(expected.tokens.shape) == expected.tokens.half().numpy()
    ).all()


def test_without_a_grid_none_is_kept(encoder: FileEncoder, collection: Collection) -> None:
    schema = content_schema(collection.retriever.query_bank.image.shape[1], None)
    without = FileEncoder(collection.retriever, collection.source, set(), schema, threads=1).encode(PATHS)
    assert without.contents.schema == schema
    assert without.contents.equals(encoder.encode(PATHS).contents.drop_columns("grid"))


def test_each_new_content_is_encoded_once(encoder: FileEncoder, collection: Collection) -> None:
    (collection.photos / "twin.png").write_bytes(photo(0))
    known = {hashlib.sha256(photo(1)).hexdigest()}
    encoded = FileEncoder(encoder.retriever, encoder.source, known, encoder.schema, threads=1).encode(
        ["cats/a.png", "cats/b.png", "twin.png"]
    )
    assert encoded.hashes == [hashlib.sha256(photo(number)).hexdigest() for number in (0, 1, 0)]
    assert encoded.contents["hash"].to_pylist() == encoded.hashes[:1]


def test_files_that_are_no_images_have_a_reason_and_no_content(encoder: FileEncoder, collection: Collection) -> None:
    (collection.photos / "empty.png").touch()
    encoded = encoder.encode(["empty.png", "gone.png"])
    assert encoded.errors == ["empty file", "gone.png cannot be read: No such file or directory."]
    assert encoded.contents.equals(encoder.schema.empty_table())


def test_a_pickled_encoder_gives_the_same_contents(encoder: FileEncoder) -> None:
    there, here = pickle.loads(pickle.dumps(encoder)).encode(PATHS), encoder.encode(PATHS)
    assert there.contents.equals(here.contents)
    assert there[:2] == here[:2]


def test_a_pickled_folder_does_not_hold_the_list_of_its_files(collection: Collection) -> None:
    source = FilesSource(str(collection.photos))
    assert len(source.items()) == 7
    assert "dogs" not in str(pickle.dumps(source))
    assert pickle.loads(pickle.dumps(source)).read("e.png") == source.read("e.png")


def test_a_source_names_files_by_which_a_node_proves_what_it_sees(collection: Collection, tmp_path: Path) -> None:
    assert collection.source.inputs == [collection.photos / "cats/a.png"]
    assert FilesSource("s3://bucket/photos").inputs == []
    assert DatasetSource(tmp_path / "data").inputs == [tmp_path / "data/captions.json"]


def test_what_a_node_could_not_read_is_read_by_this_process(
    encoder: FileEncoder, collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    """The node has other credentials, say; a file that is gone stays unreadable."""
    paths = [*PATHS, "gone.png", "twin.png"]
    (collection.photos / "twin.png").write_bytes((collection.photos / PATHS[0]).read_bytes())
    whole = encoder.encode(paths)
    for path in (PATHS[1], "twin.png"):
        (collection.photos / path).rename(collection.photos / f"{path}.hidden")
    partial = encoder.encode(paths)
    assert [not digest for digest in partial.hashes] == [False, True, False, True, True]
    for path in (PATHS[1], "twin.png"):
        (collection.photos / f"{path}.hidden").rename(collection.photos / path)

    completed = encoder.completed(paths, partial)
    assert (completed.hashes, completed.errors) == (whole.hashes, whole.errors)
    rows = {row["hash"]: row["thumbnail"] for row in completed.contents.to_pylist()}
    assert rows == {row["hash"]: row["thumbnail"] for row in whole.contents.to_pylist()}
    assert len(completed.contents) == len(rows)
    assert f"2 image(s), such as {PATHS[1]}" in caplog.text
    assert encoder.completed(paths[:1], encoder.encode(paths[:1])).hashes == whole.hashes[:1]
