"""Judged queries are opened as they were pinned, or refused, and searched with any version without announcing it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from searching import Collection, photo, write_photos
from tiny_model import write_tiny_model
from versions import crown, open_registry, register_package

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.dataset import folder_md5
from diptych.project.provenance import folder_sha256
from diptych.project.workspace import Workspace
from diptych.registry.judged_queries import check_judged_queries, judged_ranks, open_judged_queries
from diptych.registry.registered_model import RegisteredModel, Version
from diptych.registry.serving import open_store
from diptych.retriever import Retriever
from diptych.serving.index import Index
from diptych.serving.searcher import Searcher

KEY = r"^params\.yaml: gate\.judged_queries: "
PHOTOS = 24
HASHES = [hashlib.sha256(photo(seed)).hexdigest() for seed in range(PHOTOS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models with other weights."""
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_model(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DIPTYCH_SEARCH", raising=False)
    workspace = Workspace(tmp_path / "project")
    workspace.local.mkdir(parents=True)
    return workspace


@pytest.fixture
def photos(workspace: Workspace, models: list[Path], tmp_path: Path) -> Collection:
    """A collection that is indexed with the first model."""
    folder = write_photos(tmp_path / "photos", [f"{number:02}.png" for number in range(PHOTOS)])
    collection = Collection(folder, open_store(workspace), Retriever.load(models[0], "cpu"))
    collection.update(model=folder_sha256(models[0]))
    return collection


@pytest.fixture
def champion(workspace: Workspace, models: list[Path], mlflow_store: Path, tmp_path: Path) -> Version:
    """The first model."""
    registry = open_registry(workspace, mlflow_store)
    package = tmp_path / "package"
    shutil.copytree(models[0], package / "artifacts" / "model")
    register_package(registry, package)
    crown(registry, "1")
    version = RegisteredModel.of(workspace, Params(), "diptych").champion()
    assert version is not None
    return version


def pinned(workspace: Workspace, judged: dict[str, str], **changes: str) -> Params:
    """Settings with a right image for each query, as they are now in guards/judged."""
    folder = workspace.root / "guards" / "judged"
    folder.mkdir(parents=True)
    qrels = [f"q{number} 0 {digest} 1\n" for number, digest in enumerate(judged.values())]
    (folder / "qrels.txt").write_text("".join(qrels))
    (folder / "queries.tsv").write_text("".join(f"q{number}\t{text}\n" for number, text in enumerate(judged)))
    settings = {"path": "guards/judged", "md5": folder_md5(folder), "collection": "photos", **changes}
    return Params.model_validate({"threads": 1, "device": "cpu", "gate": {"judged_queries": settings}})


def test_where_there_are_none_nothing_is_read(tmp_path: Path, champion: Version) -> None:
    assert open_judged_queries(Workspace(tmp_path), Params(), champion) == []


def test_both_versions_are_ranked_on_the_collection_as_it_is_now(
    workspace: Workspace,
    photos: Collection,
    models: list[Path],
    champion: Version,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("diptych.registry.judged_queries.FEWEST", 4)
    # What the champion finds first is right, but for one image that the collection never had.
    searcher = Searcher(photos.retriever, photos.open(folder_sha256(models[0])))
    texts = ["a red star", "two blue circles", "a dog", "green"]
    rows = [searcher.search(searcher.retriever.encode_texts([text], tokens=True), k=1).rows for text in texts]
    first = [searcher.index.records(row)[0].hash for row in rows]
    judged = {**dict(zip(texts, first, strict=True)), "a cat": "0" * 64}
    params = pinned(workspace, judged)
    write_photos(photos.photos, ["new.png"], first=PHOTOS)
    announced = photos.store.collection("photos")

    queries = open_judged_queries(workspace, params, champion)
    settings = params.gate.judged_queries
    assert settings is not None
    before, after = (judged_ranks(queries, settings, model, workspace, params) for model in models)

    assert np.isnan([before[-1], after[-1]]).all()
    # The new photo may come before.
    assert before[:-1].max() <= 2
    indexes = [Index.open(photos.store, "photos", folder_sha256(model)) for model in models]
    assert [len(index) for index in indexes] == [PHOTOS + 1] * 2
    other = Searcher(Retriever.load(models[1], "cpu"), indexes[1])
    found = [other.search(other.retriever.encode_texts([text], tokens=True), k=PHOTOS + 1).rows for text in texts]
    places = [list(rows).index(indexes[1].row_of(digest)) + 1 for rows, digest in zip(found, first, strict=True)]
    assert after[:-1].tolist() == places
    assert photos.store.collection("photos") == announced


def test_without_a_champion_the_collection_need_not_be_there(workspace: Workspace) -> None:
    params = pinned(workspace, {"a dog": HASHES[0]}, collection="nowhere")

    assert [query.text for query in open_judged_queries(workspace, params, None)] == ["a dog"]


def test_judgements_that_are_missing_are_refused(workspace: Workspace, champion: Version) -> None:
    params = pinned(workspace, {"a dog": HASHES[0]})
    shutil.rmtree(workspace.root / "guards")

    with pytest.raises(
        DiptychError, match=KEY + r"the folder .*/judged is missing\. `dvc checkout guards/judged\.dvc`"
    ):
        open_judged_queries(workspace, params, champion)


def test_judgements_that_are_not_those_they_were_are_refused(workspace: Workspace, champion: Version) -> None:
    params = pinned(workspace, {"a dog": HASHES[0]})
    (workspace.root / "guards" / "judged" / "queries.tsv").write_text("q0\ta cat\n")

    with pytest.raises(DiptychError, match=KEY + r".*is not the pinned set: its hash is .*write its hash to md5"):
        open_judged_queries(workspace, params, champion)


def test_judgements_that_were_damaged_when_they_were_pinned_are_refused(
    workspace: Workspace, champion: Version
) -> None:
    params = pinned(workspace, {"a dog": "two words"})

    with pytest.raises(DiptychError, match=KEY + r".*qrels\.txt: line 1 is no judgement"):
        open_judged_queries(workspace, params, champion)


def test_a_collection_that_the_champion_has_no_index_of_is_refused(workspace: Workspace, champion: Version) -> None:
    params = pinned(workspace, {"a dog": HASHES[0]}, collection="nowhere")

    message = r"The collection nowhere is not indexed .*Run `diptych index --collection nowhere`"
    with pytest.raises(DiptychError, match=KEY + message):
        open_judged_queries(workspace, params, champion)


def test_before_a_training_the_collection_is_checked_for_the_champion_that_there_is(
    workspace: Workspace, champion: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = pinned(workspace, {"a dog": HASHES[0]}, collection="nowhere")

    with pytest.raises(DiptychError, match=KEY + "The collection nowhere is not indexed"):
        check_judged_queries(workspace, params)
    check_judged_queries(workspace, Params())
    # A training needs no MLflow, but the judgements.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    check_judged_queries(workspace, params)
    shutil.rmtree(workspace.root / "guards")
    with pytest.raises(DiptychError, match=KEY + "the folder .* is missing"):
        check_judged_queries(workspace, params)


def test_before_a_first_training_there_is_no_champion(workspace: Workspace, mlflow_store: Path) -> None:
    shutil.copy(mlflow_store, workspace.local / "mlflow.db")

    check_judged_queries(workspace, pinned(workspace, {"a dog": HASHES[0]}, collection="nowhere"))


@pytest.mark.parametrize("judged", [{}, {"a cat": "0" * 64}], ids=["empty", "images of another collection"])
def test_judgements_without_a_right_image_in_the_collection_are_refused(
    workspace: Workspace, photos: Collection, champion: Version, judged: dict[str, str]
) -> None:
    with pytest.raises(DiptychError, match=KEY + "No query has a right image that is in the collection photos"):
        open_judged_queries(workspace, pinned(workspace, judged), champion)


def test_judgements_of_too_few_queries_are_refused_and_those_of_twenty_are_not(
    workspace: Workspace, photos: Collection, champion: Version
) -> None:
    # The image of a cat is of another collection.
    judged = {f"a dog {number}": HASHES[number] for number in range(19)}
    params = pinned(workspace, {**judged, "a cat": "0" * 64})

    message = KEY + "19 queries have a right image that is in the collection photos; at least 20 are needed"
    with pytest.raises(DiptychError, match=message):
        open_judged_queries(workspace, params, champion)
    with pytest.raises(DiptychError, match=message):
        check_judged_queries(workspace, params)
    shutil.rmtree(workspace.root / "guards")
    assert len(open_judged_queries(workspace, pinned(workspace, {**judged, "a cat": HASHES[19]}), champion)) == 20


def test_a_collection_whose_images_are_gone_is_named(
    workspace: Workspace, photos: Collection, models: list[Path]
) -> None:
    params = pinned(workspace, {"a dog": HASHES[0]})
    settings = params.gate.judged_queries
    assert settings is not None
    queries = open_judged_queries(workspace, params, None)
    shutil.rmtree(photos.photos)

    with pytest.raises(DiptychError, match=r"^The collection photos cannot be indexed: The folder"):
        judged_ranks(queries, settings, models[1], workspace, params)
