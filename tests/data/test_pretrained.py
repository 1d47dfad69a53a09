"""Pretrained towers are found offline, or the message says how to get them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from diptych.config import Model, Tower
from diptych.data.pretrained import locate, locate_towers
from diptych.errors import DiptychError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(Tower(pretrained=str(tmp_path))) == tmp_path


def test_a_missing_local_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"nowhere.*config\.json"):
        locate(Tower(pretrained=str(tmp_path / "nowhere")))


def test_a_revision_in_the_hub_cache_is_found_without_a_network(cache: Path) -> None:
    snapshot = cache / "models--some--model" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert locate(Tower(pretrained="some/model", revision=REVISION)) == snapshot


def test_a_missing_revision_names_the_cache_and_the_command_that_fills_it(cache: Path) -> None:
    with pytest.raises(DiptychError) as caught:
        locate(Tower(pretrained="some/model", revision=REVISION))
    assert str(cache) in str(caught.value)
    assert f"hf download some/model --revision {REVISION}" in str(caught.value)


def test_a_revision_without_a_configuration_counts_as_missing(cache: Path) -> None:
    (cache / "models--some--model" / "snapshots" / REVISION).mkdir(parents=True)
    with pytest.raises(DiptychError, match="missing or incomplete"):
        locate(Tower(pretrained="some/model", revision=REVISION))


def test_what_cannot_be_a_hub_id_is_said(cache: Path) -> None:
    with pytest.raises(DiptychError, match="not a hub id"):
        locate(Tower(pretrained="a b/c/d", revision=REVISION))


def test_both_towers_are_looked_for_at_once(tmp_path: Path) -> None:
    locate_towers(Model())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    towers = {"image_tower": {"pretrained": str(tmp_path / "nowhere")}, "text_tower": {"pretrained": str(tmp_path)}}
    with pytest.raises(DiptychError) as caught:
        locate_towers(Model.model_validate(towers))
    image, text = str(caught.value).splitlines()
    assert image.startswith("params.yaml: model.image_tower.pretrained: ")
    assert "weights offline" in image
    assert text.startswith("params.yaml: model.text_tower.pretrained: ")
    assert "holds no safetensors" in text
    (tmp_path / "model.safetensors").touch()
    locate_towers(Model.model_validate({"text_tower": towers["text_tower"]}))
