"""Which differences remain where pixels stay in the remote, and when a run is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_project import run

from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.pixels import VARIABLE, refuse_making, stay_remote, without_pixels
from diptych.project.workspace import Workspace

NOWHERE = {"data": False, "artifacts/prepared/images": False}


@pytest.mark.parametrize(("value", "stay"), [(None, False), ("", False), ("remote", True)])
def test_the_variable_says_whether_they_stay(monkeypatch: pytest.MonkeyPatch, value: str | None, stay: bool) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert stay_remote() == stay


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "local")
    with pytest.raises(DiptychError, match=r"DIPTYCH_PIXELS is 'local': set it to `remote`, or unset it"):
        stay_remote()


def test_the_absence_of_pixels_is_no_difference() -> None:
    changes = {
        "data.dvc": [{"changed outs": {"data": "not in cache"}}],
        "validate": [{"changed deps": {"data": "deleted"}}],
        "preprocess": [
            {"changed deps": {"data": "deleted"}},
            {"changed outs": {"artifacts/prepared/images": "deleted"}},
        ],
    }
    assert without_pixels(changes, NOWHERE) == {}


def test_what_is_here_and_differs_and_all_else_remains() -> None:
    changes = {
        "validate": [{"changed deps": {"data": "deleted", "src/diptych/config.py": "modified"}}, "changed command"],
        "preprocess": [{"changed outs": {"artifacts/prepared/images": "not in cache"}}],
        "train": [{"changed deps": {"artifacts/prepared/tokens.npy": "deleted", "params.yaml": {"seed": "modified"}}}],
    }
    assert without_pixels(changes, NOWHERE | {"artifacts/prepared/images": True}) == {
        **changes,
        "validate": [{"changed deps": {"src/diptych/config.py": "modified"}}, "changed command"],
    }


def test_a_stage_that_needs_the_images_is_refused_and_others_are_not() -> None:
    refuse_making({"train": ["changed command"]})
    with pytest.raises(
        DiptychError, match=r"a change for validate and preprocess.*`dvc repro preprocess` and `dvc push`"
    ):
        refuse_making({"preprocess": [], "train": [], "validate": []})


def test_tables_that_nobody_has_are_named(project: Workspace, tmp_path: Path) -> None:
    for stage in ("validate", "preprocess"):
        dvc.reproduce(project, stage, force=False, on_line=print)
    run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=project.root)
    run("dvc", "push", "--quiet", "validate", cwd=project.root)
    for path in (project.artifacts, project.reports, project.root / ".dvc" / "cache"):
        shutil.rmtree(path)

    with pytest.raises(DiptychError, match=r"nor the remote has artifacts/prepared/images\.parquet\. Run `dvc push`"):
        dvc.fetch_without_pixels(project)
    run("dvc", "remote", "remove", "store", cwd=project.root)
    with pytest.raises(DiptychError, match=r"images\.parquet"):
        dvc.fetch_without_pixels(project)
