"""A run is killed between two of its steps; the next one leaves everything as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import shell
from dropping import photos, write_drop
from fake_project import PARAMS, commit, run
from forked import Forks
from kill_points import killed_at
from prefect_server import prefect_address
from tiny_model import write_reports, write_tiny_model

from diptych.config import Params
from diptych.data.captions import read_dataset
from diptych.inbox.idle import find_idle_summary
from diptych.project import dvc
from diptych.project.git import git
from diptych.project.params import read_params
from diptych.project.provenance import model_digests
from diptych.project.workspace import Workspace
from diptych.registry.claim import PREFIX as CLAIMS
from diptych.registry.history import history
from diptych.registry.registered_model import RegisteredModel

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """A project whose next model is trained and not registered yet, and what runs in it need."""

    workspace: Workspace
    forks: Forks
    prefect: str

    @property
    def model(self) -> RegisteredModel:
        return RegisteredModel.of(self.workspace, Params())

    def is_idle(self) -> bool:
        """Whether the next run has nothing to do."""
        return find_idle_summary(self.workspace, read_params(self.workspace), "auto", None) is not None

    def run(self, moment: str = "", inbox: Path | None = None) -> dict[str, object]:
        """`diptych run --promotion auto`, killed at `moment`: {"signal": number}; else what it returned."""
        command = self.forks.command("diptych", "run", "--json", "--promotion", "auto")
        if inbox:
            command += ["--inbox", str(inbox)]
        settings = {"PREFECT_API_URL": self.prefect, **self.forks.everywhere(), **killed_at(moment)}
        done = subprocess.run(
            command, cwd=self.workspace.root, env=shell.environment(**settings), capture_output=True, text=True
        )
        if done.returncode < 0:
            return {"signal": -done.returncode}
        assert done.returncode == 0, done.stderr
        returned: dict[str, object] = json.loads(done.stdout)
        return returned


@pytest.fixture(scope="module")
def _second(
    heavy: None, _project: Path, mlflow_store: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with such a project, whose first model is champion, and its remotes."""
    folder = tmp_path_factory.mktemp("second")
    root = folder / "project"
    shutil.copytree(_project, root)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    write_tiny_model(root / "trained")
    write_reports(root / "trained-reports")
    run("dvc", "remote", "add", "--default", "store", "../dvc-remote", cwd=root)
    run("git", "init", "--quiet", "--bare", "../runs.git", cwd=root)
    (root / "params.yaml").write_text(PARAMS.replace("git_remote: null", "git_remote: ../runs.git"))
    commit(root)
    (root / ".diptych").mkdir()
    shutil.copy(mlflow_store, root / ".diptych" / "mlflow.db")
    run("dvc", "repro", "--quiet", cwd=root)
    first = Place(Workspace(root), forks, prefect_address(tmp_path_factory)).run()
    assert first["decision"] == {
        "outcome": "promoted",
        "why": "RSUM 130.0, and there is no champion to compare with",
        "champion": "1",
    }
    shutil.rmtree(root / "trained")
    write_tiny_model(root / "trained", seed=1)
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("seed: 0", "seed: 1"))
    run("dvc", "repro", "--quiet", cwd=root)
    return folder


@pytest.fixture
def place(_second: Path, forks: Forks, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    shutil.copytree(_second, tmp_path / "second")
    return Place(Workspace(tmp_path / "second" / "project"), forks, prefect_address(tmp_path_factory))


def is_whole(place: Place, tmp_path: Path) -> None:
    """The second model is registered once, and champion; the first is what was before it; nothing else is left."""
    root, model = place.workspace.root, place.model
    assert model.numbers() == ["1", "2"]
    assert model.aliases() == {"challenger": "2", "champion": "2", "previous-champion": "1"}
    for number in model.numbers():
        (folder := tmp_path / f"version-{number}").mkdir()
        model.download(model.find(number), folder)
    tags = model.find("2").tags
    assert model_digests(place.workspace.model).items() <= tags.items()
    assert "not_reproducible" not in tags
    moves = [(event.origin, event.target) for event in history(model) if event.moves]
    assert moves[0] == (None, "1")
    assert [origin for origin, _ in moves[1:]] == [target for _, target in moves[:-1]]
    assert moves[-1][1] == "2"
    assert not [key for key in model.client.get_registered_model(model.name).tags if key.startswith(CLAIMS)]
    assert dvc.status(place.workspace) == {}
    changed = {line[3:] for line in git(root, "status", "--porcelain", "--untracked-files=all").splitlines()}
    assert changed <= {"data.dvc", "dvc.lock", "params.yaml"}
    assert not [path for path in root.rglob("*") if path.name.startswith(".") and path.suffix in (".tmp", ".old")]
    assert not (root / ".diptych" / "taking.json").exists()
    assert not (root / ".diptych" / "holder.json").exists()


@pytest.mark.parametrize("moment", ["the version", "the alias challenger", "the promotion", "the alias champion"])
def test_a_run_that_was_killed_before_it_set_something_is_made_whole_by_the_next(place, tmp_path, moment):
    assert place.run(moment) == {"signal": signal.SIGKILL}
    assert not place.is_idle()

    place.run()

    assert place.is_idle()
    is_whole(place, tmp_path)


def test_what_a_run_was_killed_while_sending_is_sent_by_the_next(place, tmp_path):
    root = place.workspace.root
    assert place.run("sending to the DVC remote") == {"signal": signal.SIGKILL}
    assert not place.is_idle()

    place.run()

    assert dvc.status(place.workspace, "--cloud") == {}
    assert git(root, "rev-parse", "diptych/runs") == git(root / "../runs.git", "rev-parse", "diptych/runs")
    is_whole(place, tmp_path)


def test_a_drop_whose_taking_was_killed_is_taken_by_the_next_run(place, tmp_path):
    write_drop(tmp_path / "inbox" / "monday", photos(1, 2, 3))
    assert place.run("the judgement of a drop", tmp_path / "inbox") == {"signal": signal.SIGKILL}

    told = place.run("", tmp_path / "inbox")

    assert told["inbox"] == ["drop monday brings 3 images and 6 captions"]
    assert len(read_dataset(place.workspace.data).images) == 3
    is_whole(place, tmp_path)
