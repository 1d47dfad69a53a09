"""The preprocess stage: files for training, made from accepted rows."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_store import MemoryStore
from PIL import Image
from tokenizers import Tokenizer

from diptych.config import Params, Splits
from diptych.data.prepared import Prepared
from diptych.errors import DiptychError
from diptych.project.pixels import VARIABLE
from diptych.project.workspace import Workspace
from diptych.stages import preprocess, validate

pytestmark = pytest.mark.slow

SPLITS = {"test": "val"}
PARAMS = Params.model_validate(
    {"threads": 1, "data": {"splits": SPLITS}, "preprocess": {"image_size": 32, "vocabulary_size": 100}}
)


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("validated") / "workspace"


@pytest.fixture
def workspace(
    tmp_path: Path, make_dataset: Callable[..., Path], photo: Callable[..., bytes], validated: Path
) -> Workspace:
    """Validated project: three images of train, two of val, whose captions have words that train does not have."""
    if not validated.exists():
        images = [("train", photo(0)), ("val", photo(1)), ("train", photo(2)), ("val", photo(3)), ("train", photo(4))]
        made = make_dataset(images, captions={2: ["zebras zoom", "zebras"], 4: ["zebras"]})
        validate.run(Workspace(made.parent), PARAMS)
        shutil.copytree(made.parent, validated)
    return Workspace(shutil.copytree(validated, tmp_path / "workspace"))


def snapshot(workspace: Workspace) -> dict[str, bytes]:
    return {
        str(path.relative_to(workspace.artifacts)): path.read_bytes()
        for folder in (workspace.prepared, workspace.tokenizer)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_trainer_can_read_what_was_written(workspace: Workspace, photo: Callable[..., bytes]) -> None:
    preprocess.run(workspace, PARAMS)
    train = Prepared(workspace.prepared, PARAMS.data.splits).split("train")
    assert train.image_ids.tolist() == [1, 3, 5]
    assert train.captions[:2] == ["a picture of thing 1", "something colourful"]
    expected = Image.open(BytesIO(photo(2))).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(train.pixels(np.array([1]))[0], np.asarray(expected))
    ids, mask = train.tokens(np.arange(6))
    assert ids[:, 0].tolist() == [2] * 6
    assert ids[mask].max() < Prepared(workspace.prepared, Splits()).settings["vocabulary_size"]


def test_the_vocabulary_is_learned_from_train_alone(workspace: Workspace) -> None:
    preprocess.run(workspace, PARAMS)
    assert "zebra" not in (workspace.tokenizer / "tokenizer.json").read_text()
    assert "##z" not in (workspace.tokenizer / "tokenizer.json").read_text()


def test_a_second_run_gives_the_same_bytes_from_the_cache(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    preprocess.run(workspace, PARAMS)
    first = snapshot(workspace)
    with caplog.at_level(logging.INFO, logger="diptych"):
        preprocess.run(workspace, PARAMS)
    assert snapshot(workspace) == first
    assert "Prepared 5 images (1 of 1 shards before) and 9 captions" in caplog.text


def test_where_the_images_stay_in_the_remote_the_tables_are_the_same_and_pixels_are_sent(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess.run(workspace, PARAMS)
    expected = snapshot(workspace)
    pixels = {name: expected.pop(name) for name in list(expected) if name.endswith(".npy") and "images/" in name}
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    store.take(*workspace.data.iterdir())
    workspace.data.rmdir()
    monkeypatch.setenv(VARIABLE, "remote")

    preprocess.run(workspace, PARAMS)

    assert snapshot(workspace) == expected
    assert [store.contents[file.key] for file in store.files(workspace.prepared / "images")] == list(pixels.values())
    split = Prepared(workspace.prepared, PARAMS.data.splits).split("train")
    assert split.is_stored_elsewhere
    assert split.pixels(np.arange(3)).any()


def test_an_empty_cache_changes_nothing_but_the_time(workspace: Workspace) -> None:
    preprocess.run(workspace, PARAMS)
    first = snapshot(workspace)
    for path in (workspace.local / "cache" / "prepared").iterdir():
        path.unlink()
    preprocess.run(workspace, PARAMS.model_copy(update={"threads": 2}))
    assert snapshot(workspace) == first


def test_the_tokenizer_of_a_pretrained_text_tower_is_copied(workspace: Workspace, tmp_path: Path) -> None:
    preprocess.run(workspace, PARAMS)
    tower = tmp_path / "tower"
    workspace.tokenizer.rename(tower)
    (tower / "config.json").write_text('{"model_type": "bert", "vocab_size": 64}')
    model: dict[str, Any] = {"text_tower": {"pretrained": str(tower)}}
    params = Params.model_validate({**PARAMS.model_dump(by_alias=True), "model": model})
    preprocess.run(workspace, params)
    original, copy = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tower, workspace.tokenizer))
    assert copy.get_vocab() == original.get_vocab()


def test_without_validated_data_the_error_names_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"manifest\.parquet.*dvc repro validate"):
        preprocess.run(Workspace(tmp_path), PARAMS)


def test_after_damage_to_the_manifest_the_error_names_the_command_to_run(workspace: Workspace) -> None:
    workspace.manifest.write_bytes(workspace.manifest.read_bytes()[:100])
    with pytest.raises(DiptychError, match="dvc repro validate"):
        preprocess.run(workspace, PARAMS)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_damaged_captions_are_refused_before_any_image_is_read(workspace: Workspace, damage, monkeypatch) -> None:
    damage(workspace.captions)
    monkeypatch.setattr(preprocess, "prepare_images", lambda *_, **__: pytest.fail("images were prepared"))
    monkeypatch.setattr(preprocess, "_learn_tokenizer", lambda folder, *_: folder.mkdir())
    with pytest.raises(DiptychError, match=r"artifacts.captions\.parquet is missing or damaged .*dvc repro validate"):
        preprocess.run(workspace, PARAMS)


def test_an_image_that_cannot_be_prepared_leaves_the_former_output(workspace: Workspace) -> None:
    preprocess.run(workspace, PARAMS)
    first = snapshot(workspace)
    (workspace.data / "images-00000.tar").unlink()
    other = PARAMS.model_copy(update={"preprocess": PARAMS.preprocess.model_copy(update={"image_size": 48})})
    with pytest.raises(DiptychError, match="images-00000"):
        preprocess.run(workspace, other)
    prepared = {name: content for name, content in snapshot(workspace).items() if name.startswith("prepared")}
    assert prepared.items() <= first.items()
