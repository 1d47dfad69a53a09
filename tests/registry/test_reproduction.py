"""A version is made again from its tags alone, or it is said why not."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import fake_project
import pytest
from fake_project import commit, keep_environment, run
from tiny_model import write_reports, write_tiny_model
from versions import without_package_checks

from diptych.config import Params
from diptych.data.cores import worker_count
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.workspace import Workspace
from diptych.registry.connection import connect
from diptych.registry.register import register
from diptych.registry.reproduction import Reproduction, reproduce

pytestmark = pytest.mark.slow

STAGE = fake_project.STAGE.replace('"trained"', 'os.environ.get("TRAINED", "trained")') + (
    '\nwith open("paths.txt", "a") as log: log.write(os.environ.get("PYTHONPATH", "") + "\\n")\n'
    '\nwith open("cores.txt", "a") as log: log.write(str(len(os.sched_getaffinity(0))) + "\\n")\n'
)
LOCK = "click==0.1\n"


@pytest.fixture(scope="module")
def _registered(_project: Path, mlflow_store: Path, tmp_path_factory) -> Path:
    """The project whose stages take no time, with what they hand out in git, and one version of its model."""
    root = Path(shutil.copytree(_project, tmp_path_factory.mktemp("registered") / "project"))
    write_tiny_model(root / "trained")
    write_reports(root / "trained-reports")
    (root / "stage.py").write_text(STAGE)
    (root / "requirements.lock").write_text(LOCK)
    (root / ".gitignore").write_text(fake_project.IGNORED + "/paths.txt\n/cores.txt\n")
    run("git", "add", "--force", "trained", "trained-reports", cwd=root)
    commit(root)
    run("dvc", "repro", cwd=root)
    (root / ".diptych").mkdir()
    shutil.copy(mlflow_store, root / ".diptych" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        keep_environment(patch)
        without_package_checks(patch)
        register(Workspace(root), Params())
    return root


@pytest.fixture
def registered(_registered, tmp_path) -> Workspace:
    # A name as people have: what writes paths has to take it.
    return Workspace(Path(shutil.copytree(_registered, tmp_path / "jürgen 50 % o'Brien #1", symlinks=True)))


def again(workspace: Workspace, which: str = "1", said: list[str] | None = None, **options) -> Reproduction:
    listen = (lambda line: None) if said is None else said.append
    return reproduce(workspace, Params(), which, on_line=listen, **options)


def states(made: Reproduction) -> dict[str, bool | None]:
    return {finding.what: finding.identical for finding in made.findings}


def tag(workspace: Workspace, name: str, value: str) -> None:
    connect(workspace, Params())[0].set_model_version_tag("diptych", "1", name, value)


def git(workspace: Workspace, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=workspace.root, check=True, capture_output=True, text=True
    ).stdout.strip()


def folders(workspace: Workspace) -> list[str]:
    """Of reproductions that are there still."""
    return [path.name for path in (workspace.local / "reproductions").iterdir() if path.is_dir()]


def cache(workspace: Workspace) -> set[Path]:
    return {path for path in (workspace.root / ".dvc" / "cache").rglob("*") if path.is_file()}


ALL = ["data", "params", "dvc.lock", "package", "weights", "metrics"]


def test_a_version_is_made_again_to_the_bit_and_the_project_does_not_notice(registered):
    before = (git(registered, "status", "--porcelain"), git(registered, "rev-parse", "HEAD"), cache(registered))
    said: list[str] = []

    made = again(registered, said=said)

    assert made.identical
    assert states(made) == dict.fromkeys(ALL, True)
    assert [line for line in said if line.startswith("Running stage")] == [
        f"Running stage '{name}':" for name in dvc.STAGES
    ]
    assert before == (git(registered, "status", "--porcelain"), git(registered, "rev-parse", "HEAD"), cache(registered))
    assert folders(registered) == []
    assert len(git(registered, "worktree", "list").splitlines()) == 1


def test_what_the_project_is_now_does_not_matter(registered):
    (registered.root / "stage.py").write_text("import sys; sys.exit('broken')")
    registered.params.write_text(registered.params.read_text().replace("seed: 0", "seed: 9"))
    shutil.rmtree(registered.artifacts)
    commit(registered.root)

    assert again(registered).identical


@pytest.mark.parametrize("which", ["challenger", "diptych/1", "diptych/challenger"])
def test_it_is_named_by_number_alias_and_model(registered, which):
    assert again(registered, which, from_cache=True).version == "1"


def test_the_stages_import_the_code_of_the_commit(registered):
    made = again(registered, keep=True)

    assert made.folder
    root = Path(made.folder)
    (paths,) = set((root / "paths.txt").read_text().splitlines())
    assert paths.split(os.pathsep)[0] == str(root / "src")
    assert not (registered.local / "mlflow.db-journal").exists()


def test_a_path_that_no_list_of_paths_can_hold_is_refused(registered):
    moved = Workspace(registered.root.rename(registered.root.with_name("a:b")))

    with pytest.raises(DiptychError, match="a:b, holds ':': move the project"):
        again(moved)


def test_other_weights_and_figures_are_told_by_how_much(registered, monkeypatch):
    write_tiny_model(registered.root.parent / "other", seed=1)
    monkeypatch.setenv("TRAINED", str(registered.root.parent / "other"))

    made = again(registered)

    assert not made.identical
    assert states(made) == {**dict.fromkeys(ALL, True), "dvc.lock": False, "weights": False}
    weights = made.findings[4]
    assert "tensors differ: " in weights.detail
    assert all((one["largest"] or 0) > 0 for one in weights.differences.values())


def test_other_data_or_parameters_are_the_verdict_before_anything_is_trained(registered):
    said: list[str] = []
    tag(registered, "data_md5", "0" * 32 + ".dir")
    tag(registered, "params_sha256", "0" * 64)

    made = again(registered, said=said)

    assert states(made) == {**dict.fromkeys(ALL, None), "data": False, "params": False}
    assert made.findings[0].detail == "the commit's data.dvc records another version"
    assert said == []


def test_data_that_are_damaged_in_the_cache_are_noticed(registered):
    (path,) = [path for path in cache(registered) if path.read_bytes().startswith(b'{"info"')]
    path.chmod(0o644)
    path.write_bytes(b'{"infx": {}, "images": [], "annotations": []}')

    made = again(registered)

    assert (made.findings[0].identical, made.findings[0].detail) == (False, "DVC's cache is damaged")


def test_a_tag_that_was_changed_is_told_from_the_package(registered):
    tag(registered, "weights_sha256", "0" * 64)

    made = again(registered, from_cache=True)

    assert (states(made)["package"], states(made)["weights"]) == (False, False)
    (package,) = [finding for finding in made.findings if finding.what == "package"]
    assert "its package is not what was registered" in package.detail


def test_without_its_package_a_version_is_made_again_still(registered, monkeypatch):
    def gone(*args, **kwargs):
        raise DiptychError("diptych version 1: its package is gone (disk).")

    monkeypatch.setattr("diptych.registry.registered_model.RegisteredModel.download", gone)

    assert states(again(registered, from_cache=True))["weights"] is True


def test_a_tag_that_is_no_hash_goes_nowhere(registered):
    tag(registered, "data_md5", "../../etc/passwd")

    with pytest.raises(DiptychError, match=r"its tag data_md5 is .*, which is no hash"):
        again(registered)

    assert not (registered.local / "reproductions").exists()


def test_a_name_that_is_none_goes_nowhere(registered):
    for which in ("../x/1", "diptych/--help", "1; ls", ""):
        with pytest.raises(DiptychError):
            again(registered, which)


def test_a_commit_that_is_not_here_is_to_be_fetched(registered):
    tag(registered, "git_sha", "0" * 40)

    with pytest.raises(DiptychError, match=r"commit 0000000000, which this repository does not have: `git fetch`"):
        again(registered)


def test_a_stage_that_fails_is_its_own_message_and_nothing_stays(registered, monkeypatch):
    monkeypatch.setenv("FAIL", "train")

    with pytest.raises(DiptychError, match=r"failed again from its commit: captions\.json, row 3: it is broken"):
        again(registered)

    assert folders(registered) == []


def test_from_what_is_kept_nothing_runs(registered):
    said: list[str] = []

    made = again(registered, from_cache=True, said=said)

    assert made.identical
    assert states(made) == dict.fromkeys([*ALL[:3], "outputs", *ALL[3:]], True)
    assert not [line for line in said if "Running" in line]


def test_outputs_that_nothing_has_are_named(registered):
    for path in cache(registered):
        if path.read_bytes() == b"controls":
            path.unlink()

    made = again(registered, from_cache=True)

    (outputs,) = [finding for finding in made.findings if finding.what == "outputs"]
    assert (outputs.identical, outputs.detail) == (False, "neither the cache nor a remote has artifacts/controls.npz")


def test_a_remote_at_a_relative_address_is_reached_from_the_other_folder_too(registered):
    run("dvc", "remote", "add", "--quiet", "--local", "--default", "store", "../store", cwd=registered.root)
    run("dvc", "push", cwd=registered.root)
    shutil.rmtree(registered.root / ".dvc" / "cache")

    assert again(registered, from_cache=True).identical


def test_a_version_made_before_runs_were_recorded_has_no_lock_there(registered):
    tag(registered, "git_sha", git(registered, "rev-parse", "HEAD"))

    assert states(again(registered, from_cache=True)) == {
        **dict.fromkeys(["outputs", *ALL], None),
        "data": True,
        "params": True,
        "dvc.lock": False,
    }
    assert again(registered).identical


def test_pretrained_towers_of_the_project_are_there(registered):
    """git does not have weights/."""
    (registered.root / "weights" / "tower").mkdir(parents=True)
    params = {"model": {"image_tower": {"pretrained": "./weights/tower"}, "text_tower": {"pretrained": "../x"}}}
    registered.params.write_text(json.dumps({**params, "seed": 0}))
    commit(registered.root)
    tag(registered, "git_sha", git(registered, "rev-parse", "HEAD"))
    from diptych.registry.checkout import checked_out

    with checked_out(registered, git(registered, "rev-parse", "HEAD"), "x") as project:
        assert (project.root / "weights" / "tower").resolve() == registered.root / "weights" / "tower"
        assert not (project.root / ".." / "x").exists()


def test_what_a_kill_leaves_is_removed_by_the_next(registered, forks):
    code = """
import os, signal, sys
from diptych.config import Params
from diptych.registry.reproduction import reproduce
from diptych.project.workspace import Workspace
reproduce(Workspace(), Params(), "1", on_line=lambda line: os.kill(os.getpid(), signal.SIGKILL))
"""
    killed = subprocess.run(
        forks.python("-c", code), cwd=registered.root, env=os.environ | forks.everywhere(), check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = folders(registered)

    again(registered, from_cache=True)

    assert folders(registered) == []
    assert left not in git(registered, "worktree", "list")


def test_an_interrupt_leaves_nothing(registered):
    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(registered, Params(), "1", on_line=interrupt)

    assert folders(registered) == []


def test_two_at_once_leave_each_other_alone(registered):
    others = []

    def listen(line):
        if line.startswith("Running stage 'train'"):
            others.append(again(registered, from_cache=True).identical)
            assert len(folders(registered)) == 1

    assert reproduce(registered, Params(), "1", on_line=listen).identical
    assert others == [True]


def test_a_folder_that_is_kept_stays_until_git_removes_it(registered):
    kept = again(registered, from_cache=True, keep=True).folder
    again(registered, from_cache=True)
    assert kept
    assert (Path(kept) / "dvc.lock").exists()
    assert (Path(kept) / ".dvc" / "config.local").stat().st_mode & 0o777 == 0o600

    git(registered, "worktree", "remove", "--force", kept)
    again(registered, from_cache=True)
    assert folders(registered) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux limits the cores")
def test_as_many_cores_are_used_as_there_were(registered):
    cores = os.sched_getaffinity(0)
    tag(registered, "threads", "1")

    made = again(registered, keep=True)

    assert made.folder
    assert set((Path(made.folder) / "cores.txt").read_text().split()) == {"1"}
    assert made.threads is None
    assert os.sched_getaffinity(0) == cores


def test_fewer_cores_than_there_were_are_told(registered):
    tag(registered, "threads", "9999")

    made = again(registered)

    assert made.identical
    assert made.threads == (9999, worker_count(None))
