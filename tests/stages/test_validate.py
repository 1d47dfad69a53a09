"""The validate stage: artifacts and reports of a dataset on disk."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.stages import validate

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
PARAMS = Params.model_validate({"threads": 1, "data": {"splits": {"test": "val"}}})


class Done(NamedTuple):
    """A dataset that was validated, to be looked at, and what was logged."""

    workspace: Workspace
    lines: list[str]


@pytest.fixture(scope="module")
def images(photo: Callable[..., bytes]) -> list[tuple[str, bytes]]:
    """Sixty images, of which three may be bad by the default share."""
    return [("val" if seed % 6 == 0 else "train", photo(seed)) for seed in range(60)]


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("artifacts", "reports")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(Workspace(tmp_path_factory.mktemp("validated")), [])


@pytest.fixture
def validated(make_dataset: Make, images: Any, done: Done, caplog: pytest.LogCaptureFixture) -> Done:
    """Sixty images that are accepted, and one that is not."""
    if not done.lines:
        make_dataset([*images, ("train", b"text")]).rename(done.workspace.data)
        with caplog.at_level(logging.INFO, logger="diptych"):
            validate.run(done.workspace, PARAMS)
        done.lines.extend(caplog.messages)
    return done


def test_accepted_rows_and_reports_are_written(validated: Done) -> None:
    workspace = validated.workspace
    assert len(pd.read_parquet(workspace.manifest)) == 60
    assert len(pd.read_parquet(workspace.captions)) == 120
    assert len(pd.read_csv(workspace.reports / "quarantine.csv")) == 3
    assert json.loads((workspace.reports / "validation.json").read_text())["success"]
    assert (workspace.reports / "data-docs" / "index.html").is_file()


def test_the_same_dataset_gives_the_same_bytes(validated: Done, tmp_path: Path) -> None:
    again = Workspace(shutil.copytree(validated.workspace.root, tmp_path / "again"))
    validate.run(again, PARAMS.model_copy(update={"threads": 2}))
    assert snapshot(again.root) == snapshot(validated.workspace.root)


def test_images_of_an_unused_split_are_mentioned(
    tmp_path: Path, make_dataset: Make, images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset([(split.title() if index == 7 else split, photo) for index, (split, photo) in enumerate(images)])
    validate.run(Workspace(tmp_path), PARAMS)
    assert "data.splits does not name are not used: 'Train' (1)." in caplog.text


def test_a_refused_dataset_leaves_its_reports_but_no_artifacts(tmp_path: Path, make_dataset: Make, images: Any) -> None:
    make_dataset([*images, ("train", b"text"), ("train", b"")])
    workspace = Workspace(tmp_path)
    with pytest.raises(DiptychError) as caught:
        validate.run(workspace, PARAMS)
    assert "image 61 (photos/61.png): not an image" in str(caught.value)
    assert "quarantine.csv" in str(caught.value)
    assert not workspace.manifest.exists()
    assert len(pd.read_csv(workspace.reports / "quarantine.csv")) == 6
    assert not json.loads((workspace.reports / "validation.json").read_text())["success"]
    assert (workspace.reports / "data-docs" / "index.html").is_file()


def test_a_dataset_without_images_is_refused(tmp_path: Path, make_dataset: Make) -> None:
    make_dataset([])
    with pytest.raises(DiptychError, match=r"no images.*diptych data import"):
        validate.run(Workspace(tmp_path), PARAMS)


def test_a_dataset_without_captions_is_refused(tmp_path: Path, make_dataset: Make, images: Any) -> None:
    make_dataset(images, change=lambda dataset: dataset.annotations.clear())
    with pytest.raises(DiptychError, match="no annotations"):
        validate.run(Workspace(tmp_path), PARAMS)


def test_ids_beyond_64_bits_are_refused(tmp_path: Path, make_dataset: Make, images: Any) -> None:
    make_dataset(images, change=lambda dataset: dataset.images[0].update(id=2**70))
    with pytest.raises(DiptychError, match=r"id 1180591620717411303424 does not fit"):
        validate.run(Workspace(tmp_path), PARAMS)


def test_without_a_dataset_the_error_names_the_command_that_imports_one(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="diptych data import"):
        validate.run(Workspace(tmp_path), PARAMS)


def test_the_last_log_line_is_a_summary(validated: Done) -> None:
    assert "Accepted 60 images and 120 captions, quarantined 1 and 2" in validated.lines[-1]
