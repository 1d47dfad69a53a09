"""Reasons to train, or why there is none."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from versions import crown, make_version, open_registry, package_of

from diptych.config import Params
from diptych.drift.distance import Distance, Drift
from diptych.drift.profile import Profile
from diptych.inbox import need
from diptych.inbox.ledger import DropResult
from diptych.inbox.need import NewImages, changed_beyond_data, explain_no_training, need_to_train, reasons_to_train
from diptych.project.workspace import Workspace
from diptych.registry.registered_model import RegisteredModel
from diptych.serving.queries import ServedQueries, queries_path

DRIFTED = Drift(10, 20, (Distance("brightness", 0.5, 0.1, 0.2, 100.0, 30.0),))
CALM = Drift(10, 20, (Distance("brightness", 0.1, 0.05, 0.2, 100.0, 101.0),))
PARAMS = Params.model_validate({"retrain": {"new_share": 0.1}})
NOTHING_NEW = NewImages(0, 100)


def reasons(taken=(), drift=None, changed=(), growth=NOTHING_NEW, params=PARAMS):
    return reasons_to_train(taken, drift, changed, growth, params)


def test_enough_new_images_are_a_reason():
    (reason,) = reasons([DropResult("a", "taken", images=12)], CALM, growth=NewImages(12, 100))

    assert "12 train images are new, 12.0% of the champion's 100" in reason
    assert "The drops of this run brought 12 images" in reason


def test_too_few_new_images_without_drift_are_none():
    assert reasons(drift=CALM, growth=NewImages(5, 100)) == []
    assert "5 train images are new, 5.0% of the champion's 100" in explain_no_training([], NewImages(5, 100), PARAMS)
    assert "10.0% of retrain.new_share" in explain_no_training([], NewImages(5, 100), PARAMS)


def test_too_few_new_images_that_drift_are_a_reason():
    (reason,) = reasons(drift=DRIFTED, growth=NewImages(5, 100))

    assert "brightness drifted by 0.50, from 100 to 30" in reason


@pytest.mark.parametrize(("new", "trains"), [(0, False), (1, True)])
def test_where_the_share_is_0_any_new_image_is_a_reason(new, trains):
    assert bool(reasons(growth=NewImages(new, 10_000), params=Params())) is trains


def test_an_unknown_champion_is_a_reason():
    assert "champion" in reasons(growth=None)[0]


def test_changed_code_or_parameters_are_a_reason():
    assert "train, evaluate" in reasons(changed=["train", "evaluate"])[0]


def test_nothing_new_is_none_and_says_what_was_refused():
    assert reasons([DropResult("a", "refused", "bad")]) == []
    assert "1 of 2 drops were refused" in explain_no_training(
        [DropResult("a", "refused"), DropResult("b", "known")], NewImages(0, 100), PARAMS
    )
    assert (
        explain_no_training([], NewImages(0, 100), PARAMS)
        == "Nothing is new since the champion, and nothing has changed."
    )


def test_of_changed_stages_those_count_that_changed_by_themselves():
    status = {
        "data.dvc": [{"changed outs": {"data": "modified"}}],
        "validate": [{"changed deps": {"data": "modified"}}, {"changed outs": {"reports/validation.json": "deleted"}}],
        "preprocess": [{"changed deps": {"artifacts/manifest.parquet": "modified"}}],
        "train": [{"changed deps": {"artifacts/prepared": "modified", "params.yaml": {"seed": "modified"}}}],
        "controls": ["changed command"],
        "evaluate": [{"changed deps": {"src/diptych/config.py": "modified"}}],
    }

    assert changed_beyond_data(status) == ["train", "controls", "evaluate"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "project")


@pytest.fixture
def model(workspace: Workspace, mlflow_store: Path, tmp_path: Path, monkeypatch) -> RegisteredModel:
    """With a champion, since which there are new images."""
    model = open_registry(workspace, mlflow_store)
    make_version(model, tmp_path)
    crown(model, "1")
    monkeypatch.setattr(need, "load_profile", lambda client, run_id: SimpleNamespace(images=10, embedded=None))
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


CAPTIONS = Profile(100, 100, {}, {"a": 100, "dog": 100}, 200, 0.01, np.zeros(0, np.uint32))
"""Profile of the champion's data."""
LITTLE_NEW = Params.model_validate({"retrain": {"new_share": 0.5}})


@pytest.fixture
def known(model, monkeypatch):
    """The champion's data is known, and little has come since."""
    monkeypatch.setattr(need, "load_profile", lambda client, run_id: CAPTIONS)
    monkeypatch.setattr(need, "make_profile", lambda *arguments: CAPTIONS)
    return model


def ask_for_need(workspace, monkeypatch, new=0, captions=0):
    monkeypatch.setattr(need, "new_images", lambda accepted, params, reference: [1] * new)
    monkeypatch.setattr(need, "added_captions", lambda accepted, params, reference: captions)
    return need_to_train(workspace, LITTLE_NEW, [], {})


def keep_queries(workspace, model, word):
    """What a server keeps of queries with this word; return the file."""
    sha256 = model.find("1").tags["model_sha256"]
    queries = ServedQueries(sha256, CAPTIONS, 0.2, workspace.queries)
    for number in range(100):
        queries.add(f"{word} " * (number + 1), np.zeros(4, np.float32))
    queries.save()
    return queries_path(workspace.queries, sha256)


@pytest.mark.parametrize("new", [{"new": 1}, {"captions": 1}])
def test_queries_that_drift_are_a_reason_where_something_is_new(workspace, known, monkeypatch, new):
    keep_queries(workspace, known, "scan")

    (reason,) = ask_for_need(workspace, monkeypatch, **new).reasons

    assert reason.startswith("The queries' unknown words drifted by 0.99, from 0.01 to 1: more than the 0.2")


def test_queries_that_drift_are_none_where_nothing_is_new_and_it_is_said_what_to_do(workspace, known, monkeypatch):
    keep_queries(workspace, known, "scan")

    found = ask_for_need(workspace, monkeypatch)

    assert found.reasons == []
    assert found.explanation.startswith("Nothing is new since the champion, and nothing has changed. The queries'")
    assert found.explanation.endswith(
        "There is nothing new to learn from, though: add pairs like them by `diptych feedback export --drop`."
    )


def test_queries_like_the_captions_are_none(workspace, known, monkeypatch):
    keep_queries(workspace, known, "dog")

    assert ask_for_need(workspace, monkeypatch, new=1).reasons == []


def test_queries_that_cannot_be_read_are_none_and_are_named(workspace, known, monkeypatch, caplog):
    path = keep_queries(workspace, known, "scan")
    path.write_text(path.read_text()[:200])

    assert ask_for_need(workspace, monkeypatch, new=1).reasons == []
    assert str(path) in caplog.text
