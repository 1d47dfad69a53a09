"""A champion that cannot be looked at keeps no run from training."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from versions import crown, make_version, open_registry, package_of

from diptych.config import Params
from diptych.inbox import need
from diptych.inbox.need import need_to_train
from diptych.project.workspace import Workspace
from diptych.registry.registered_model import RegisteredModel


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "project")


@pytest.fixture
def model(workspace: Workspace, mlflow_store: Path, tmp_path: Path, monkeypatch) -> RegisteredModel:
    """With a champion, since which there are new images."""
    model = open_registry(workspace, mlflow_store)
    make_version(model, tmp_path)
    crown(model, "1")
    monkeypatch.setattr(need, "load_profile", lambda client, run_id: SimpleNamespace(images=10))
    monkeypatch.setattr(need, "read_accepted", lambda *paths: None)
    monkeypatch.setattr(need, "new_images", lambda accepted, params, reference: [1])
    monkeypatch.setattr(need, "gone_images", lambda accepted, params, reference: 0)
    return model


def test_an_mlflow_that_does_not_answer_is_a_reason(workspace, model, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    found = need_to_train(workspace, Params(), [], {})

    assert found.reasons[0].startswith("It is not known what is new since the champion: MLflow at http://127.0.0.1:9")


def test_a_champion_whose_package_is_gone_is_a_reason(workspace, model):
    shutil.rmtree(package_of(model, model.find("1")))

    found = need_to_train(workspace, Params(), [], {})

    assert "since the champion: diptych version 1: its package is gone or damaged" in found.reasons[0]


def test_images_that_were_taken_out_are_a_reason_however_few(workspace, model, monkeypatch):
    params = Params.model_validate({"retrain": {"new_share": 0.5}})
    monkeypatch.setattr(need, "new_images", lambda accepted, params, reference: [])
    assert need_to_train(workspace, params, [], {}).reasons == []

    monkeypatch.setattr(need, "gone_images", lambda accepted, params, reference: 3)

    assert need_to_train(workspace, params, [], {}).reasons == [
        "3 images that the champion learned from are in train no more."
    ]


def test_a_champion_whose_profile_is_of_no_images_is_a_reason(workspace, model, monkeypatch):
    monkeypatch.setattr(need, "load_profile", lambda client, run_id: SimpleNamespace(images=0))

    assert "none that tells what it learned from" in need_to_train(workspace, Params(), [], {}).reasons[0]
