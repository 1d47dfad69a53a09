"""A collection of seven photos in two folders."""

from pathlib import Path

import pytest
from searching import Collection, write_photos
from tiny_model import write_tiny_model

from diptych import Retriever
from diptych.serving.store import Store

NAMES = ["cats/a.png", "cats/b.png", "cats/c.png", "dogs/a.png", "dogs/b.png", "e.png", "f.png"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture(scope="session")
def tiny_retriever(tiny_folder: Path) -> Retriever:
    return Retriever.load(tiny_folder, "cpu", batch_size=4)


@pytest.fixture
def collection(tmp_path: Path, tiny_retriever: Retriever) -> Collection:
    """A collection that is not indexed yet."""
    photos = write_photos(tmp_path / "photos", NAMES)
    return Collection(photos, Store(str(tmp_path / "store"), tmp_path / "local", tmp_path / "data"), tiny_retriever)


@pytest.fixture
def indexed(collection: Collection) -> Collection:
    """The same, indexed."""
    collection.update()
    return collection


@pytest.fixture(scope="module")
def module_collection(tmp_path_factory: pytest.TempPathFactory, tiny_retriever: Retriever) -> Collection:
    """An indexed collection that no test changes."""
    folder = tmp_path_factory.mktemp("collection")
    photos = write_photos(folder / "photos", NAMES)
    collection = Collection(photos, Store(str(folder / "store"), folder / "local", folder / "data"), tiny_retriever)
    collection.update()
    return collection
