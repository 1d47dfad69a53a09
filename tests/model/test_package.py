"""A model on disk: what comes back is what was saved, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    PREPROCESSING,
    RERANKING,
    SIZE,
    make_model,
    make_querybank,
    model_settings,
    write_prepared,
)

from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder
from diptych.model.package import Calibration, FusionWeights, ReliabilityGroup, load_model, save_model, weights_sha256


@pytest.fixture
def saved(tmp_path: Path) -> tuple[DualEncoder, Path]:
    tokenizer = write_prepared(tmp_path / "prepared", train=4, val=2, test=2) / "tokenizer"
    model = make_model()
    save_model(
        tmp_path / "model",
        model,
        model_settings(),
        tokenizer,
        PREPROCESSING,
        RERANKING,
        make_querybank(),
    )
    return model, tmp_path / "model"


def test_a_loaded_model_gives_the_same_bits(saved: tuple[DualEncoder, Path]) -> None:
    model, folder = saved
    loaded = load_model(folder)
    pixels = torch.randint(256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    assert torch.equal(loaded.model.encode_images(pixels).pooled, model.encode_images(pixels).pooled)
    assert (loaded.preprocessing, loaded.reranking) == (PREPROCESSING, RERANKING)
    assert torch.equal(loaded.querybank.image, make_querybank().image)
    assert torch.equal(loaded.querybank.text, make_querybank().text)
    assert loaded.querybank.strength == RERANKING.bias_strength
    assert loaded.tokenizer("a red picture")["input_ids"]


def test_a_loaded_model_keeps_its_normalization(tmp_path: Path) -> None:
    tower = {**model_settings().image_tower.model_dump(), "mean": [0.1, 0.2, 0.3]}
    model = make_model(image_tower=tower)
    tokenizer = write_prepared(tmp_path / "prepared", train=4, val=2, test=2) / "tokenizer"
    save_model(
        tmp_path / "model",
        model,
        model_settings(image_tower=tower),
        tokenizer,
        PREPROCESSING,
        RERANKING,
        make_querybank(),
    )
    assert torch.equal(load_model(tmp_path / "model").model.image_tower.shift, model.image_tower.shift)


def test_saving_twice_gives_the_same_bytes(saved: tuple[DualEncoder, Path], tmp_path: Path) -> None:
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    tokenizer = tmp_path / "prepared" / "tokenizer"
    save_model(folder, model, model_settings(), tokenizer, PREPROCESSING, RERANKING, make_querybank())
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
    change_config(saved[1], {"format": 99})
    with pytest.raises(DiptychError, match=r"config\.json is not of model formats 2 to 4"):
        load_model(saved[1])


def test_format_2_is_read_with_its_weights_for_both_directions(saved: tuple[DualEncoder, Path]) -> None:
    path = saved[1] / "config.json"
    content = json.loads(path.read_text())
    del content["reranking"]["i2t"], content["reranking"]["t2i"]
    content["reranking"] |= {"match_weight": 0.5, "alignment_weight": 2.0}
    path.write_text(json.dumps({**content, "format": 2}))
    both = FusionWeights(itm=0.5, alignment=2.0)
    assert load_model(saved[1]).reranking == RERANKING.model_copy(update={"i2t": both, "t2i": both})


def test_format_3_is_read_as_a_model_without_calibration(saved: tuple[DualEncoder, Path]) -> None:
    path = saved[1] / "config.json"
    content = json.loads(path.read_text())
    del content["calibration"]
    path.write_text(json.dumps({**content, "format": 3}))
    loaded = load_model(saved[1])
    assert (loaded.reranking, loaded.calibration) == (RERANKING, None)


def test_a_calibration_is_kept_with_its_reliability_curve(tmp_path: Path, saved: tuple[DualEncoder, Path]) -> None:
    group = ReliabilityGroup(expected=0.25, right=0.5, queries=4)
    calibration = Calibration(intercept=-0.1, score=0.2, margin=1.5, images=30, reliability=[group])
    folder = tmp_path / "calibrated"
    tokenizer = tmp_path / "prepared" / "tokenizer"
    save_model(folder, saved[0], model_settings(), tokenizer, PREPROCESSING, RERANKING, make_querybank(), calibration)
    assert load_model(folder).calibration == calibration


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reranking": None}, "reranking"),
        ({"reranking": {"i2t": {"itm": float("nan"), "alignment": 1.0}}}, "reranking.i2t.itm"),
        ({"reranking": {"t2i": {"itm": 1.0, "alignment": -1.0}}}, "reranking.t2i.alignment"),
        ({"reranking": {"bias_strength": "1"}}, "reranking.bias_strength"),
        ({"reranking": {"bias_strength": 1e9}}, "reranking.bias_strength"),
        ({"preprocessing": {"resize": "zoom"}}, "preprocessing.resize"),
        ({"preprocessing": {"image_size": "32"}}, "preprocessing.image_size"),
        ({"image_backbone": None}, "image_backbone"),
        ({"image_backbone": {"model_type": 3}}, "does not hold a whole model"),
        ({"image_backbone": {"hidden_sizes": []}}, "does not hold a whole model"),
        ({"text_backbone": {"model_type": "t5"}}, "does not hold a whole model"),
        ({"text_backbone": {"num_attention_heads": 0}}, "does not hold a whole model"),
        ({"text_backbone": {"pad_token_id": 9999}}, "does not hold a whole model"),
        ({"text_backbone": {"layer_norm_eps": float("nan")}}, "outputs are not finite"),
        ({"preprocessing": {"max_tokens": 100_000}}, "does not hold a whole model"),
        ({"more": 1}, "more"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error(
    changes: dict[str, Any], said: str, saved: tuple[DualEncoder, Path]
) -> None:
    change_config(saved[1], changes)
    with pytest.raises(DiptychError, match=said):
        load_model(saved[1])


def test_a_configuration_that_is_no_table_is_an_error(saved: tuple[DualEncoder, Path]) -> None:
    (saved[1] / "config.json").write_text("[]")
    with pytest.raises(DiptychError, match="does not hold a whole model"):
        load_model(saved[1])


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("querybank.image", torch.zeros(0, 16), "querybank"),
        ("querybank.image", torch.eye(15), "querybank"),
        ("querybank.text", torch.ones(16), "querybank"),
        ("querybank.text", 1000 * torch.eye(16), "querybank"),
        ("querybank.text", torch.eye(16, dtype=torch.int64), "querybank"),
        ("querybank.text", torch.full((3, 16), torch.nan), "querybank.text .* holds NaN"),
        ("log_scale", torch.tensor(-torch.inf), "log_scale .* holds NaN or infinity"),
        ("log_scale", torch.tensor(1e30), "outputs are not finite"),
        ("log_scale", torch.tensor(-1e30), "outputs are not finite"),
        ("image_tower.backbone.embedder.embedder.normalization.running_var", -torch.ones(8), "outputs are not finite"),
    ],
)
def test_weights_that_cannot_be_are_an_error(
    name: str, tensor: torch.Tensor, said: str, saved: tuple[DualEncoder, Path]
) -> None:
    path = saved[1] / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)
    with pytest.raises(DiptychError, match=said):
        load_model(saved[1])


def test_a_tokenizer_of_another_vocabulary_is_an_error(saved: tuple[DualEncoder, Path]) -> None:
    path = saved[1] / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["beyond"] = 9999
    path.write_text(json.dumps(content))
    with pytest.raises(DiptychError, match="does not hold a whole model"):
        load_model(saved[1])


def test_a_tokenizer_that_cannot_pad_is_an_error(saved: tuple[DualEncoder, Path]) -> None:
    (saved[1] / "tokenizer_config.json").unlink()
    with pytest.raises(DiptychError, match="no padding token"):
        load_model(saved[1])
