"""The profile of a model's data is kept with the model's run."""

import shutil

import numpy as np
import pytest
from mlflow import MlflowClient

from diptych.drift.profile import Profile
from diptych.registry.data_profile import ARTIFACT, load_profile


@pytest.fixture
def client(mlflow_store, tmp_path):
    """Of a store of its own."""
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def version(client, tmp_path):
    """A version whose run has no artifacts yet."""
    experiment = client.create_experiment("x", artifact_location=(tmp_path / "artifacts-of-runs").as_uri())
    client.create_registered_model("m")
    return client.create_model_version("m", "nowhere", client.create_run(experiment).info.run_id)


def test_the_profile_of_a_version_is_found_by_its_run(client, version):
    profile = Profile(1, 1, {}, {"dog": 1}, 1, 1.0, np.array([7], np.uint32))
    client.log_dict(version.run_id, profile.to_json(), ARTIFACT)

    found = load_profile(client, version.run_id)

    assert found is not None
    assert found.to_json() == profile.to_json()


def test_a_version_without_a_profile_has_none(client, version):
    assert load_profile(client, version.run_id) is None


@pytest.mark.parametrize("content", ["", "{", '{"format": 9}', "[]"])
def test_a_profile_that_cannot_be_read_is_none(client, version, content, caplog):
    client.log_text(version.run_id, content, ARTIFACT)

    assert load_profile(client, version.run_id) is None
    assert "cannot be read" in caplog.text
