"""A model on disk: what comes back is what was saved, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import SIZE, make_model, make_querybank, model_settings, write_prepared

from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder
from diptych.model.package import load_model, save_model, weights_sha256


@pytest.fixture
def saved(tmp_path: Path) -> tuple[DualEncoder, Path]:
    tokenizer = write_prepared(tmp_path / "prepared", train=4, val=2, test=2) / "tokenizer"
    model = make_model()
    preprocessing = {"image_size": SIZE, "resize": "stretch", "max_tokens": 16}
    save_model(
        tmp_path / "model",
        model,
        model_settings(),
        tokenizer,
        preprocessing,
        {"top_k": 4, "weight": 0.5},
        make_querybank(),
    )
    return model, tmp_path / "model"


def test_a_loaded_model_gives_the_same_bits(saved: tuple[DualEncoder, Path]) -> None:
    model, folder = saved
    loaded = load_model(folder)
    pixels = torch.randint(256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    assert torch.equal(loaded.model.encode_images(pixels).pooled, model.encode_images(pixels).pooled)
    assert loaded.preprocessing["image_size"] == SIZE
    assert loaded.reranking == {"top_k": 4, "weight": 0.5}
    assert torch.equal(loaded.querybank.image, make_querybank().image)
    assert torch.equal(loaded.querybank.text, make_querybank().text)
    assert loaded.querybank.strength == make_querybank().strength
    assert loaded.tokenizer("a red picture")["input_ids"]


def test_a_loaded_model_keeps_its_normalization(tmp_path: Path) -> None:
    tower = {**model_settings().image_tower.model_dump(), "mean": [0.1, 0.2, 0.3]}
    model = make_model(image_tower=tower)
    tokenizer = write_prepared(tmp_path / "prepared", train=4, val=2, test=2) / "tokenizer"
    preprocessing = {"image_size": SIZE, "resize": "stretch", "max_tokens": 16}
    save_model(
        tmp_path / "model", model, model_settings(image_tower=tower), tokenizer, preprocessing, {}, make_querybank()
    )
    assert torch.equal(load_model(tmp_path / "model").model.image_tower.shift, model.image_tower.shift)


def test_saving_twice_gives_the_same_bytes(saved: tuple[DualEncoder, Path], tmp_path: Path) -> None:
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    preprocessing = {"image_size": SIZE, "resize": "stretch", "max_tokens": 16}
    tokenizer = tmp_path / "prepared" / "tokenizer"
    save_model(folder, model, model_settings(), tokenizer, preprocessing, {"top_k": 4, "weight": 0.5}, make_querybank())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_there_is_no_pickle_in_it(saved: tuple[DualEncoder, Path]) -> None:
    names = {path.name for path in saved[1].iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}


def test_weights_are_known_by_their_hash(saved: tuple[DualEncoder, Path]) -> None:
    before = weights_sha256(saved[1])
    content = bytearray((saved[1] / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (saved[1] / "model.safetensors").write_bytes(content)
    assert len(before) == 64
    assert weights_sha256(saved[1]) != before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_or_damaged_file_is_an_error(name: str, saved: tuple[DualEncoder, Path]) -> None:
    path = saved[1] / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DiptychError, match="does not hold a whole model"):
        load_model(saved[1])
    path.unlink()
    with pytest.raises(DiptychError, match="does not hold a whole model"):
        load_model(saved[1])


def test_another_format_is_refused(saved: tuple[DualEncoder, Path]) -> None:
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(DiptychError, match="model format 99"):
        load_model(saved[1])
