"""The model that is searched with is a version or a folder, and becomes champion only with its indexes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from searching import Collection, write_photos
from tiny_model import write_tiny_model
from versions import crown, open_registry, register_package

from diptych.config import Params, load_params
from diptych.drift.profile import Profile
from diptych.errors import DiptychError
from diptych.project.provenance import folder_sha256
from diptych.project.workspace import Workspace
from diptych.registry.data_profile import ARTIFACT
from diptych.registry.lifecycle import roll_back_with_indexes
from diptych.registry.promotion import ChampionChange, roll_back
from diptych.registry.registered_model import RegisteredModel
from diptych.registry.serving import FollowedModels, IndexSwitch, is_in_use, located, open_store, version_in_use
from diptych.retriever import Retriever
from diptych.serving.following import ModelKey
from diptych.serving.index import Index
from diptych.serving.queries import read_queries


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models with other weights."""
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_model(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture
def project(mlflow_store: Path, tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project with two versions, of which none is champion."""
    monkeypatch.delenv("DIPTYCH_SEARCH", raising=False)
    workspace = Workspace(tmp_path / "project")
    registry = open_registry(workspace, mlflow_store)
    for number, model in enumerate(models, start=1):
        package = tmp_path / "packages" / str(number)
        shutil.copytree(model, package / "artifacts" / "model")
        register_package(registry, package)
    return workspace


@pytest.fixture
def registry(project: Workspace) -> RegisteredModel:
    return RegisteredModel.of(project, Params(), "diptych")


@pytest.fixture
def params() -> Params:
    return load_params(Path(__file__).parents[2] / "params.yaml").model_copy(update={"device": "cpu"})


@pytest.fixture
def photos(project: Workspace, models: list[Path], tmp_path: Path) -> Collection:
    """A collection that is indexed with the first model."""
    folder = write_photos(tmp_path / "photos", ["a.png", "b.png"])
    collection = Collection(folder, open_store(project), Retriever.load(models[0], "cpu"))
    collection.update(model=folder_sha256(models[0]))
    return collection


def test_the_champion_is_in_use_and_else_the_challenger(registry: RegisteredModel) -> None:
    with pytest.raises(DiptychError, match="diptych has neither a champion nor a challenger yet: `diptych run`"):
        version_in_use(registry)
    registry.set_alias("challenger", "2")
    assert version_in_use(registry).version == "2"
    crown(registry, "1")
    assert version_in_use(registry).version == "1"


def test_a_model_is_a_version_or_a_folder(
    project: Workspace, params: Params, registry: RegisteredModel, models: list[Path]
) -> None:
    params = params.model_copy(update={"register_": params.register_.model_copy(update={"model_name": "diptych"})})
    registry.set_alias("challenger", "2")
    for which, model in ((None, models[1]), ("1", models[0]), (str(models[0]), models[0])):
        with located(project, params, which) as (folder, _):
            assert folder_sha256(folder) == folder_sha256(model)
        followed = FollowedModels(project, params, which)
        key = followed.current()
        assert key.sha256 == folder_sha256(model)
        assert len(followed.load(key).encode_texts(["a red square"])) == 1


def test_queries_are_compared_with_the_captions_of_the_version_and_kept_where_they_may_be(
    project: Workspace, params: Params, registry: RegisteredModel, models: list[Path]
) -> None:
    params = params.model_copy(update={"register_": params.register_.model_copy(update={"model_name": "diptych"})})
    reference = Profile(1, 1, {}, {"dog": 1}, 1, 1.0, np.zeros(1, np.uint32))
    registry.client.log_dict(registry.find("1").run_id, reference.to_json(), ARTIFACT)
    for which, is_known in (("1", True), ("2", False), (str(models[0]), False)):
        for keeps in (False, True):
            followed = FollowedModels(project, params, which, keeps_queries=keeps)
            key = followed.current()
            queries = followed.queries(key)
            assert (queries is not None) is is_known
            if queries is not None:
                queries.add("a cat", np.zeros(4, np.float32))
                queries.save()
                assert read_queries(project.queries, key.sha256).texts == keeps


def test_an_mlflow_that_does_not_answer_leaves_the_drift_of_queries_unknown(
    project: Workspace, params: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert FollowedModels(project, params, None).queries(ModelKey("diptych version 1", "ab" * 32, "1")) is None
    assert "The drift of queries to diptych version 1 cannot be measured: MLflow at" in caplog.text


def test_an_index_is_made_before_and_announced_after(
    project: Workspace, params: Params, registry: RegisteredModel, photos: Collection, models: list[Path]
) -> None:
    crown(registry, "1", "2")
    write_photos(photos.photos, ["c.png"], first=7)
    seen = []

    def move(model: RegisteredModel, to: str, *, why: str) -> ChampionChange:
        old, new = (Index.open(photos.store, "photos", folder_sha256(folder)) for folder in reversed(models))
        seen.append((registry.aliases()["champion"], len(old), len(new)))
        return roll_back(model, to, why=why)

    photos.update(model=folder_sha256(models[1]))
    (photos.photos / "c.png").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diptych.registry.lifecycle.roll_back", move)
        assert roll_back_with_indexes(registry, project, params, why="worse").version.version == "1"
    # Until the alias moves, both can be opened.
    assert seen == [("2", 3, 2)]
    with pytest.raises(DiptychError, match="older than the collection"):
        Index.open(photos.store, "photos", folder_sha256(models[1]))
    assert len(Index.open(photos.store, "photos", folder_sha256(models[0]))) == 2


def test_where_one_collection_cannot_be_indexed_nothing_changes(
    project: Workspace,
    params: Params,
    registry: RegisteredModel,
    photos: Collection,
    models: list[Path],
    tmp_path: Path,
) -> None:
    crown(registry, "1", "2")
    photos.update(model=folder_sha256(models[1]))
    gone = Collection(write_photos(tmp_path / "gone", ["g.png"]), photos.store, photos.retriever, name="zebras")
    gone.update(model=folder_sha256(models[1]))
    shutil.rmtree(gone.photos)
    write_photos(photos.photos, ["c.png"], first=7)

    message = r"zebras cannot be indexed: The folder .* does not exist\. `diptych index --collection zebras --remove`"
    with pytest.raises(DiptychError, match=message):
        roll_back_with_indexes(registry, project, params, why="worse")
    assert registry.aliases()["champion"] == "2"
    for name in ("photos", "zebras"):
        assert len(Index.open(photos.store, name, folder_sha256(models[1])))
    assert roll_back(registry, why="worse").version.version == "1"


def test_without_collections_nothing_is_fetched(
    project: Workspace, params: Params, registry: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(registry, "1", "2")
    monkeypatch.setattr(IndexSwitch, "prepare", None)
    assert roll_back_with_indexes(registry, project, params, why="worse").version.version == "1"


def test_a_version_that_is_only_tried_is_not_in_use(
    project: Workspace, params: Params, registry: RegisteredModel, models: list[Path]
) -> None:
    params = params.model_copy(update={"register_": params.register_.model_copy(update={"model_name": "diptych"})})
    crown(registry, "1")
    uses = {which: is_in_use(project, params, which) for which in (None, "1", "2", "champion", str(models[1]))}
    assert uses == {None: True, "1": True, "2": False, "champion": True, str(models[1]): True}
