"""Weights become a version once, whole, and loadable by whoever has the packages it lists."""

import base64
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.metadata import Distribution
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from mlflow.pyfunc import scoring_server
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_model import write_tiny_model

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.registry.answer_time import answer_time
from diptych.registry.connection import connect, global_tracking_uri
from diptych.registry.packaging import input_example
from diptych.registry.register import register
from diptych.registry.registered_model import RegisteredModel
from diptych.registry.tracking import TrackedRun

pytestmark = pytest.mark.slow

LOAD = """
import io, os, sys, mlflow, pandas as pd
from PIL import Image
buffer = io.BytesIO()
Image.new("RGB", (50, 40), "red").save(buffer, "JPEG")
picture = buffer.getvalue()
model = mlflow.pyfunc.load_model(sys.argv[1])
text = "a red square"
output = model.predict(pd.DataFrame({"image": [picture, None, picture], "text": [None, text, text]}))
texts = model.predict(pd.DataFrame({"text": [text]}))
images = model.predict(pd.DataFrame({"image": [picture]}))
assert [value is None for value in output["embedding"]] == [False, False, True], output
assert output["score"].isna().tolist() == [True, True, False], output
assert len(texts["embedding"][0]) == len(images["embedding"][0]) == 16
import diptych
print(diptych.__file__)
"""


@pytest.fixture(scope="module")
def registered(_trained: Path, mlflow_store: Path, tmp_path_factory):
    """A project with one version, and that version; tests only look at it."""
    root = tmp_path_factory.mktemp("registered")
    workspace = Workspace(shutil.copytree(_trained, root / "trained"))
    workspace.local.mkdir()
    shutil.copy(mlflow_store, workspace.local / "mlflow.db")
    return workspace, register(workspace, Params())


def versions(workspace: Workspace) -> list[str]:
    client, _ = connect(workspace, Params())
    return sorted(str(version.version) for version in client.search_model_versions("name = 'diptych'"))


def package_of(workspace: Workspace) -> Path:
    (package,) = (workspace.local / "mlartifacts").glob("models/*/artifacts")
    return package


def challenger(workspace: Workspace) -> str:
    client, _ = connect(workspace, Params())
    return str(client.get_model_version_by_alias("diptych", "challenger").version)


def test_a_version_bears_its_origin_and_the_alias(registered):
    workspace, version = registered

    found = connect(workspace, Params())[0].get_model_version("diptych", "1")
    assert (version.created, version.version, challenger(workspace)) == (True, "1", "1")
    assert found.tags == version.tags
    assert set(version.tags) == {
        "git_sha",
        "threads",
        "git_dirty",
        "data_md5",
        "dvc_lock_sha256",
        "params_sha256",
        "weights_sha256",
        "model_sha256",
        "not_reproducible",
    }
    assert version.tags["not_reproducible"].startswith("git has no record of it (not a git repository")


def test_the_versions_page_is_its_model_card(registered):
    workspace, version = registered
    client = connect(workspace, Params())[0]

    card = client.get_model_version("diptych", "1").description or ""
    assert "diptych promote 1" in card
    assert "| re-ranked | 130.0 | 10.0 | 10.0 |" in card
    assert "It is better: **yes**, by +118.0 (+110.0 to +126.0)" in card
    assert version.tags["data_md5"] in card
    run = client.get_run(version.run_id)
    assert run.inputs is not None
    assert run.outputs is not None
    [output], [dataset] = run.outputs.model_outputs, run.inputs.dataset_inputs
    figures = {metric.key: metric.value for metric in client.get_logged_model(output.model_id).metrics or []}
    assert figures["reranked/rsum"] == 130.0
    assert (dataset.dataset.name, dataset.dataset.digest) == ("data", version.tags["data_md5"][:36])


def test_mlflows_server_answers_texts_and_images_in_base64(registered):
    workspace, version = registered
    with global_tracking_uri(f"sqlite:///{workspace.local}/mlflow.db"):
        server = TestClient(scoring_server.init(mlflow.pyfunc.load_model(version.uri)))
    image = base64.b64encode(input_example()["image"][0]).decode()

    def answers(**row: str) -> dict[str, Any]:
        answer = server.post("/invocations", json={"dataframe_records": [row]})
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["predictions"][0])

    assert len(answers(text="a red square")["embedding"]) == len(answers(image=image)["embedding"]) == 16
    pair = answers(image=image, text="a red square")
    assert pair["embedding"] is None
    assert isinstance(pair["score"], float)


def test_its_run_has_parameters_figures_reports_and_tags(registered):
    workspace, version = registered
    client, _ = connect(workspace, Params())

    run = client.get_run(version.run_id)

    assert run.data.params["train.epochs"] == str(Params().train.epochs)
    assert run.data.metrics["reranked/i2t/recall_at_1"] == 10.0
    assert [metric.value for metric in client.get_metric_history(version.run_id, "val_rsum")] == [100.0, 120.0]
    assert {file.path for file in client.list_artifacts(version.run_id, "reports")} >= {"reports/report.html"}
    assert run.data.tags["weights_sha256"] == version.tags["weights_sha256"]
    assert run.info.status == "FINISHED"


def test_its_package_holds_no_pickle_and_a_signature_with_an_example(registered):
    package = package_of(registered[0])

    files = {path.name for path in package.rglob("*") if path.is_file()}
    assert {"MLmodel", "model.safetensors", "input_example.json", "requirements.txt"} <= files
    assert not {name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))}
    assert "signature:" in (package / "MLmodel").read_text()


def test_it_answers_the_gate_in_a_process_of_its_own(registered, forks, monkeypatch):
    monkeypatch.setattr(sys, "executable", forks.package_python)

    found = answer_time(package_of(registered[0]))

    assert found["pair_ms"] > 0


@pytest.fixture(scope="module")
def loaded(registered, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    """A process that has only the packages that the package lists, and a project's library that cannot be imported."""
    package = package_of(registered[0])
    root = tmp_path_factory.mktemp("loaded")
    link_distributions(closure((package / "requirements.txt").read_text().split()), root / "site")
    assert not (root / "site" / "diptych").exists()
    (root / "project" / "diptych").mkdir(parents=True)
    (root / "project" / "diptych" / "__init__.py").write_text("raise ImportError('this is the project')")
    code = f"import sys; sys.path += [{str(root / 'project')!r}, {str(root / 'site')!r}]\n{LOAD}"
    # -S: without the site-packages of the environment that the tests run in.
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, package],
        env={"PATH": "/usr/bin:/bin", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=root,
        capture_output=True,
        text=True,
    )


def test_it_loads_without_the_project_and_without_pickle(registered, loaded):
    assert loaded.returncode == 0, loaded.stderr
    assert Path(loaded.stdout.strip()).is_relative_to(package_of(registered[0]))


def test_it_loads_with_nothing_but_the_packages_that_it_lists(loaded):
    assert loaded.returncode == 0, loaded.stderr


FOR_GPU = re.findall(r"^FOR_GPU := (.*)$", (Path(__file__).parents[2] / "Makefile").read_text(), re.M)[0].split()
"""Packages that `make setup` leaves out where no GPU is."""


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """What pip would install for `requirements`, taken from the packages that are installed here."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(text), "") for text in requirements]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in FOR_GPU and not list(Distribution.discover(name=name)):
            continue
        found[name] = distribution = metadata.distribution(name)
        assert requirement.specifier.contains(distribution.version, prereleases=True), requirement
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in distribution.requires or []]
    return found


def link_distributions(distributions: dict[str, Distribution], site: Path) -> None:
    """Makes `site` a site-packages folder with these alone. A folder in which no other has a part is linked whole."""
    site.mkdir()
    others = (one for one in metadata.distributions() if canonicalize_name(one.name) not in distributions)
    shared = {name for one in others for name in top_level(one)}
    for distribution in distributions.values():
        for name in top_level(distribution) - shared:
            if not (site / name).is_symlink():
                (site / name).symlink_to(Path(str(distribution.locate_file(name))))
        for file in (distribution.files or []) if top_level(distribution) & shared else []:
            # mlflow brings the files of mlflow-skinny once more.
            if file.parts[0] in shared and not (site / file).is_symlink():
                link(site / file, Path(str(distribution.locate_file(file))))


def top_level(distribution: Distribution) -> set[str]:
    """The names in site-packages that files of a distribution lie under, but for the programs that lie elsewhere."""
    lines = (distribution.read_text("RECORD") or "").splitlines()
    return {line.lstrip('"').partition(",")[0].partition("/")[0] for line in lines} - {"..", ""}


def link(target: Path, source: Path) -> None:
    """A module with its bytecode: to compile them all takes longer than the test."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)
    if source.suffix == ".py" and (compiled := Path(cache_from_source(str(source)))).is_file():
        bytecode = Path(cache_from_source(str(target)))
        bytecode.parent.mkdir(exist_ok=True)
        bytecode.unlink(missing_ok=True)
        bytecode.symlink_to(compiled)


def test_a_version_goes_with_a_project_that_is_moved(trained, tmp_path):
    register(trained, Params())
    moved = Workspace(trained.root.rename(tmp_path / "moved"))

    model = RegisteredModel.of(moved, Params())
    assert model.missing_folder("1") is None
    assert model.download(model.find("1"), tmp_path / "package").is_dir()
    write_tiny_model(moved.model, seed=1)
    assert register(moved, Params()).version == "2"
    assert not trained.root.exists()


def test_the_same_weights_make_no_second_version(registered):
    workspace, first = registered
    client, _ = connect(workspace, Params())
    client.delete_registered_model_alias("diptych", "challenger")

    again = register(workspace, Params())

    assert (again.created, again.version, again.run_id) == (False, first.version, first.run_id)
    assert versions(workspace) == ["1"]
    assert challenger(workspace) == "1"


def test_other_weights_make_the_next_version_and_take_the_alias(trained):
    register(trained, Params())
    write_tiny_model(trained.model, seed=1)

    second = register(trained, Params())

    assert (second.created, second.version, challenger(trained)) == (True, "2", "2")


def test_the_same_weights_that_rerank_otherwise_make_the_next_version(trained):
    register(trained, Params())
    description = json.loads((trained.model / "config.json").read_text())
    description["reranking"]["weight"] = 4.0
    (trained.model / "config.json").write_text(json.dumps(description))

    second = register(trained, Params())

    assert (second.created, second.version, challenger(trained)) == (True, "2", "2")


def test_the_run_of_the_training_is_the_run_of_the_version(trained):
    from diptych.model.package import weights_sha256

    with TrackedRun(trained, Params()) as run:
        run.log_metrics({"loss": 3.0}, 1)
        run.finish({"weights_sha256": weights_sha256(trained.model)})

    version = register(trained, Params())

    client, experiment = connect(trained, Params())
    (found,) = client.search_runs([experiment])
    assert found.info.run_id == version.run_id
    assert found.data.metrics["loss"] == 3.0
    assert found.data.tags["dvc_lock_sha256"] == version.tags["dvc_lock_sha256"]


@pytest.mark.parametrize("moment", ["create_registered_model", "create_model_version", "set_registered_model_alias"])
def test_a_registration_that_was_killed_is_made_whole_by_the_next(trained, monkeypatch, moment):
    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, moment, kill)
        with pytest.raises(KeyboardInterrupt):
            register(trained, Params())

    version = register(trained, Params())

    assert versions(trained) == ["1"]
    assert (version.version, challenger(trained)) == ("1", "1")


@pytest.mark.parametrize("what", ["reports", "package"])
def test_a_disk_that_is_full_leaves_no_version_and_the_next_registration_is_whole(trained, tmp_path, monkeypatch, what):
    store = LocalArtifactRepository.log_artifacts

    def fail_halfway(self, local_dir, artifact_path=None):
        if (Path(local_dir) / "MLmodel").exists() == (what == "package"):
            target = Path(self.artifact_dir) / (artifact_path or "")
            target.mkdir(parents=True, exist_ok=True)
            (target / "half").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), local_dir)
        store(self, local_dir, artifact_path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr(LocalArtifactRepository, "log_artifacts", fail_halfway)
        register(trained, Params())
    assert versions(trained) == []

    register(trained, Params())

    assert (versions(trained), challenger(trained)) == (["1"], "1")
    model = RegisteredModel.of(trained, Params())
    assert model.download(model.find("1"), tmp_path).is_dir()


@pytest.mark.parametrize("before", [None, "http://mine"])
def test_where_mlflow_is_stays_as_it_was(trained, monkeypatch, before):
    params = Params.model_validate({"register": {"tracking_uri": f"sqlite:///{trained.local}/mlflow.db"}})
    if before is not None:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", before)

    register(trained, params)

    assert (os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_REGISTRY_URI")) == (None, before)


def test_without_a_model_there_is_nothing_to_register(trained):
    shutil.rmtree(trained.model)

    with pytest.raises(DiptychError, match="holds no trained model yet: run `diptych run`"):
        register(trained, Params())


@pytest.mark.parametrize("content", [None, "{"])
@pytest.mark.parametrize("name", ["metrics", "baselines"])
def test_without_metrics_there_is_nothing_to_judge_the_model_by(trained, content, name):
    metrics = trained.reports / f"{name}.json"
    metrics.unlink() if content is None else metrics.write_text(content)

    with pytest.raises(DiptychError, match=rf"{name}\.json is missing or damaged: run `dvc repro evaluate`"):
        register(trained, Params())


def test_without_the_history_of_the_training_the_run_has_the_metrics_alone(trained):
    (trained.reports / "training.csv").unlink()
    (trained.root / "dvc.lock").unlink()

    version = register(trained, Params())

    client, _ = connect(trained, Params())
    assert "loss" not in client.get_run(version.run_id).data.metrics
    assert version.metrics["towers/rsum"] == 120.0
    assert version.metrics["baselines/prior/rsum"] == 12.0


def test_a_store_that_refuses_is_an_error_for_the_user(trained, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(DiptychError, match="MLflow"):
        register(trained, Params())


def test_a_damaged_store_is_an_error_that_names_it(trained):
    (trained.local / "mlflow.db").write_bytes(b"no database" * 1000)

    with pytest.raises(DiptychError, match=r"mlflow\.db is damaged \(file is not a database\)"):
        register(trained, Params())


def test_a_version_is_told_in_a_line_and_as_json(registered):
    version = registered[1]

    assert version.describe() == "diptych version 1 (challenger): registered"
    assert json.loads(json.dumps(version.to_json()))["uri"] == "models:/diptych/1"


def test_a_path_may_hold_what_stands_for_something_in_an_address(trained, tmp_path):
    named = Workspace(trained.root.rename(tmp_path / "50% %41 a#b ü me@home"))
    register(named, Params())

    model = RegisteredModel.of(named, Params())
    (tmp_path / "package").mkdir()
    model.download(model.find("1"), tmp_path / "package")
    assert sorted(path.name for path in tmp_path.iterdir()) == [named.root.name, "package"]
