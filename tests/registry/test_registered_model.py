"""The registered model: names and numbers are checked before MLflow sees them, and packages are what was registered."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from versions import make_version, package_of

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.registry.registered_model import CHALLENGER, CHAMPION, PREVIOUS, RegisteredModel, model_folder

HOSTILE = ["../x", "1; rm -rf", "models:/x", "x" * 1000, "１", "", " 1", "1\n", "-1", "0", "1.0", "a'b", "é"]


@pytest.fixture
def no_mlflow(monkeypatch):
    """Any question to MLflow fails the test."""

    def fail(*arguments, **options):
        raise AssertionError("MLflow was asked")

    for name in ("get_registered_model", "search_model_versions", "get_model_version", "search_registered_models"):
        monkeypatch.setattr(MlflowClient, name, fail)


@pytest.mark.parametrize("which", HOSTILE)
def test_what_is_neither_a_number_nor_an_alias_is_refused_before_mlflow_is_asked(model, no_mlflow, which):
    with pytest.raises(DiptychError, match="is neither a version's number nor an alias"):
        model.find(which)


@pytest.mark.parametrize("name", ["../x", "1; rm -rf", "models:/x", "x" * 201, "１", " x", "x\n", ".x", "a'b", "a/b"])
def test_what_is_no_name_is_refused_before_mlflow_is_asked(model, no_mlflow, tmp_path, name):
    with pytest.raises(DiptychError, match="cannot name a registered model"):
        RegisteredModel.of(Workspace(tmp_path / "project"), Params(), name)


def test_a_version_is_found_by_its_number_and_by_its_alias(model, tmp_path):
    first = make_version(model, tmp_path, alias=CHAMPION)
    second = make_version(model, tmp_path, alias=CHALLENGER)

    assert [model.find(which).version for which in ("1", "2", "champion", "challenger")] == ["1", "2", "1", "2"]
    assert (first.aliases, second.aliases, first.title) == (["champion"], ["challenger"], "diptych version 1")


def test_a_version_as_plain_values_has_its_name_number_aliases_tags_and_figures(model, tmp_path):
    version = make_version(model, tmp_path, alias=CHAMPION)

    assert version.to_json() == {
        "name": "diptych",
        "version": "1",
        "aliases": ["champion"],
        "tags": version.tags,
        "metrics": {"reranked/rsum": 130.0},
    }
    assert set(version.tags) == {"weights_sha256", "model_sha256"}


@pytest.mark.parametrize("which", ["7", "9999999999", "latest", "production"])
def test_a_version_that_is_not_there_is_an_error_that_says_which_there_are(model, tmp_path, which):
    make_version(model, tmp_path, alias=CHAMPION)

    with pytest.raises(DiptychError, match=rf"has no '{which}'\. Versions: 1; aliases: champion \(1\)"):
        model.find(which)


def test_in_an_empty_registry_nothing_is_found(model):
    assert (model.champion(), model.numbers(), model.aliases()) == (None, [], {})
    with pytest.raises(DiptychError, match=r"has no 'challenger'\. Versions: none; aliases: none"):
        model.find("challenger")


@pytest.mark.parametrize(("which", "advice"), [(CHAMPION, "makes a version"), (PREVIOUS, "promote` another version")])
def test_an_alias_that_comes_by_promotion_says_so(model, which, advice):
    with pytest.raises(DiptychError, match=advice):
        model.find(which)


@pytest.mark.parametrize("which", ["1", "champion"])
def test_a_registered_model_that_is_not_there_is_an_error_that_says_what_to_do(model, which):
    other = RegisteredModel(model.client, "other", model.uri)

    assert not other.exists()
    with pytest.raises(DiptychError, match=r"No model is registered as 'other'.*`diptych run` registers a first"):
        other.find(which)


def test_versions_come_in_the_order_of_their_numbers(model, tmp_path):
    for _ in range(11):
        make_version(model, tmp_path)
    model.client.delete_model_version(model.name, "4")

    assert model.numbers() == ["1", "2", "3", "5", "6", "7", "8", "9", "10", "11"]


def test_a_version_whose_run_is_gone_is_found_without_figures(model, tmp_path, monkeypatch):
    make_version(model, tmp_path)

    def gone(client, run_id):
        raise MlflowException("Run not found", error_code=RESOURCE_DOES_NOT_EXIST)

    monkeypatch.setattr(MlflowClient, "get_run", gone)
    assert model.find("1").metrics == {}


def test_a_version_registered_without_a_run_is_found_without_figures(model):
    model.client.create_model_version(model.name, "/nowhere")

    assert model.find("1").metrics == {}


def test_tags_are_added_to_those_that_there_are(model, tmp_path):
    version = make_version(model, tmp_path)

    model.tag(version, {"gate": "accepted"})

    assert model.find("1").tags == {**version.tags, "gate": "accepted"}


def test_a_package_comes_whole(model, tmp_path):
    version = make_version(model, tmp_path, b"weights")
    (tmp_path / "here").mkdir()

    package = model.download(version, tmp_path / "here")

    assert package.is_relative_to(tmp_path / "here")
    assert (model_folder(package) / "model.safetensors").read_bytes() == b"weights"


def test_a_package_with_other_weights_is_refused(model, tmp_path):
    version = make_version(model, tmp_path)
    (model_folder(package_of(model, version)) / "model.safetensors").write_bytes(b"other")

    with pytest.raises(DiptychError, match=r"version 1: its package is not what was registered: weights_sha256 is"):
        model.download(version, tmp_path)


def test_a_package_with_another_configuration_is_refused(model, tmp_path):
    version = make_version(model, tmp_path)
    (model_folder(package_of(model, version)) / "config.json").write_text("{}")

    with pytest.raises(DiptychError, match="its package is not what was registered: model_sha256 is"):
        model.download(version, tmp_path)


def test_a_package_without_the_tags_of_its_weights_is_refused(model, tmp_path):
    version = make_version(model, tmp_path)
    model.client.delete_model_version_tag(model.name, "1", "weights_sha256")

    with pytest.raises(DiptychError, match="the version's tag says nothing"):
        model.download(model.find(version.version), tmp_path)


def test_a_package_without_weights_is_damaged(model, tmp_path):
    version = make_version(model, tmp_path)
    (model_folder(package_of(model, version)) / "model.safetensors").unlink()
    (model_folder(package_of(model, version)) / "config.json").write_text("{}")

    with pytest.raises(DiptychError, match="its package is gone or damaged: it holds no weights"):
        model.download(version, tmp_path)


def test_a_package_that_was_deleted_is_gone(model, tmp_path):
    version = make_version(model, tmp_path)
    shutil.rmtree(package_of(model, version))

    with pytest.raises(DiptychError, match="diptych version 1: its package is gone"):
        model.download(version, tmp_path)


def failing_downloads(monkeypatch, error: Exception) -> None:
    def fail(self, remote_file_path, local_path):
        raise error

    monkeypatch.setattr(LocalArtifactRepository, "_download_file", fail)


def test_a_package_that_cannot_be_fetched_is_an_error_with_the_reason(model, tmp_path, monkeypatch):
    version = make_version(model, tmp_path)
    failing_downloads(monkeypatch, OSError("the network is down"))

    with pytest.raises(DiptychError, match=r"version 1: its package cannot be fetched \(the network is down\)"):
        model.download(version, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_nothing_of_the_package(model, tmp_path, monkeypatch, number):
    version = make_version(model, tmp_path)
    failing_downloads(monkeypatch, OSError(number, os.strerror(number)))

    with pytest.raises(MlflowException, match=os.strerror(number)):
        model.download(version, tmp_path)


@pytest.fixture
def production(model) -> RegisteredModel:
    """Another registered model in the same MLflow, without versions."""
    return RegisteredModel(model.client, "production", model.uri)


def test_a_copy_in_another_registered_model_knows_where_it_came_from(model, production, tmp_path):
    version = make_version(model, tmp_path, b"weights")

    copied = production.copy_of(version)

    assert copied == production.find("1")
    assert copied.tags == {**version.tags, "copied_from": "diptych/1"}
    assert (copied.run_id, copied.metrics) == (version.run_id, version.metrics)
    with production.fetched(copied) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert not folder.exists()


def test_a_version_is_copied_once(model, production, tmp_path):
    first, second = make_version(model, tmp_path), make_version(model, tmp_path)

    copies = [production.copy_of(version).version for version in (first, second, first, second)]

    assert copies == ["1", "2", "1", "2"]
    assert production.numbers() == ["1", "2"]


def test_a_version_is_not_copied_into_its_own_model(model, tmp_path):
    version = make_version(model, tmp_path)

    assert RegisteredModel(model.client, model.name, model.uri).copy_of(version) == version
    assert model.numbers() == ["1"]


def test_a_copy_that_was_killed_is_made_whole_by_the_next(model, production, tmp_path, monkeypatch):
    version = make_version(model, tmp_path)

    def kill(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_model_version_tag", kill)
        with pytest.raises(KeyboardInterrupt):
            production.copy_of(version)

    copied = production.copy_of(version)

    assert production.numbers() == ["1"]
    assert copied.tags["copied_from"] == "diptych/1"


def test_a_copy_outlives_the_version_that_it_came_from(model, production, tmp_path):
    version = make_version(model, tmp_path)
    copied = production.copy_of(version)
    model.client.delete_model_version(model.name, version.version)

    assert production.download(copied, tmp_path).exists()


def test_a_deleted_copy_is_made_again(model, production, tmp_path):
    version = make_version(model, tmp_path)
    production.copy_of(version)
    model.client.delete_model_version("production", "1")

    assert production.copy_of(version).version == "2"


def test_an_mlflow_that_does_not_answer_is_told_quickly(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started = time.monotonic()

    with pytest.raises(DiptychError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer") as raised:
        RegisteredModel.of(Workspace(tmp_path), Params())

    assert "secret" not in str(raised.value)
    assert time.monotonic() - started < 20


def test_the_name_of_params_yaml_is_the_default_one(model, tmp_path):
    workspace = Workspace(tmp_path / "project")
    params = Params.model_validate({"register": {"model_name": "cats"}})

    assert RegisteredModel.of(workspace, params).name == "cats"
    assert RegisteredModel.of(workspace, params, "dogs").name == "dogs"
    assert Path(RegisteredModel.of(workspace, params).uri.removeprefix("sqlite:///")).is_file()
