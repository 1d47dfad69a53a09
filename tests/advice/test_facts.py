"""Facts for advice: what the captions file and the folders of pretrained towers say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from diptych.advice.facts import TowerFolder, caption_lengths, find_towers, read_facts
from diptych.config import Params
from diptych.errors import DiptychError


def tower(folder: Path, preprocessor: Any = None, **config: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(bytes(8))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def test_images_without_a_caption_do_not_count(make_dataset: Callable[..., Path], photo: Callable[..., bytes]) -> None:
    images = [("train", photo(0, (80, 60))), ("train", photo(1, (100, 90))), ("val", photo(2, (70, 70)))]
    captions = {1: ["a dog on the left", "a dog", None], 2: [], 3: ["two cats", "cats"]}
    facts = read_facts(make_dataset(images, captions))
    assert facts.images == {"train": 1, "val": 1}
    assert (facts.captions_per_image, len(facts.captions)) == (2, 4)
    assert facts.side_share == 1 / 4


def test_a_dataset_without_captions_is_refused(make_dataset: Callable[..., Path], photo: Callable[..., bytes]) -> None:
    with pytest.raises(DiptychError, match=r"no image of a split has a caption.*diptych data import"):
        read_facts(make_dataset([("train", photo(0))], {1: []}))


def test_blank_captions_and_missing_values_do_not_count(
    make_dataset: Callable[..., Path], photo: Callable[..., bytes]
) -> None:
    captions = {1: ["a dog", "", " ", "N/A", "nan"], 2: ["", "null"]}
    facts = read_facts(make_dataset([("train", photo(0)), ("val", photo(1))], captions))
    assert (facts.images, facts.captions, facts.captions_per_image) == ({"train": 1}, ["a dog"], 1)


def test_a_word_that_only_holds_a_side_names_none(
    make_dataset: Callable[..., Path], photo: Callable[..., bytes]
) -> None:
    facts = read_facts(make_dataset([("train", photo(0))], {1: ["a bright copyright leftover", "RIGHT of it"]}))
    assert facts.side_share == 1 / 2


@pytest.mark.parametrize(
    ("preprocessor", "size"),
    [
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": {"shortest_edge": 256}}, 256),
        ({"size": 300}, 300),
        ({"image_mean": [0.5, 0.5, 0.5]}, 224),
        ([], 224),
    ],
)
def test_the_size_of_an_image_tower_is_what_its_preprocessor_names(
    tmp_path: Path, preprocessor: Any, size: int
) -> None:
    tower(tmp_path / "weights" / "vision", preprocessor)
    [found] = find_towers(tmp_path / "weights")
    assert (found.path, found.image_size) == ("./weights/vision", size)


def test_images_without_a_split_do_not_count(make_dataset: Callable[..., Path], photo: Callable[..., bytes]) -> None:
    assert read_facts(make_dataset([("train", photo(0)), (None, photo(1))])).images == {"train": 1}


def test_towers_come_by_the_size_of_their_images_and_text_towers_last(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    tower(weights / "a-text", vocab_size=100, max_position_embeddings=64)
    tower(weights / "efficientnet-lite2", {})
    tower(weights / "efficientnet-lite0", {})
    (weights / "empty").mkdir()
    tower(weights / "clip", {"size": 224}, text_config={"vocab_size": 100}, vision_config={})
    tower(weights / "unknown")
    tower(weights / "pickled", vocab_size=100)
    (weights / "pickled" / "model.safetensors").rename(weights / "pickled" / "pytorch_model.bin")
    (weights / "dangling").mkdir()
    (weights / "dangling" / "config.json").write_text("{}")
    (weights / "dangling" / "model.safetensors").symlink_to("nowhere")
    assert find_towers(weights) == [
        TowerFolder("./weights/efficientnet-lite0", 224),
        TowerFolder("./weights/efficientnet-lite2", 260),
        TowerFolder("./weights/a-text", None, 64),
    ]


@pytest.mark.parametrize(
    "content", ["{", "[1]", *(f'{{"vocab_size": 9, "max_position_embeddings": {n}}}' for n in ('"512"', 0, "true"))]
)
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    tower(tmp_path / "weights" / "text")
    (tmp_path / "weights" / "text" / "config.json").write_text(content)
    with pytest.raises(DiptychError, match=r"text/config\.json"):
        find_towers(tmp_path / "weights")


def test_more_positions_than_params_allow_are_not_proposed(tmp_path: Path) -> None:
    tower(tmp_path / "weights" / "text", vocab_size=9, max_position_embeddings=4096)
    assert find_towers(tmp_path / "weights")[0].positions == 512


def test_a_text_tower_without_a_tokenizer_is_refused(
    make_dataset: Callable[..., Path], photo: Callable[..., bytes]
) -> None:
    data = make_dataset([("train", photo(0))])
    tower(data.parent / "text", vocab_size=100)
    params = Params.model_validate({"model": {"text_tower": {"pretrained": str(data.parent / "text")}}})
    with pytest.raises(DiptychError, match="holds no tokenizer"):
        caption_lengths(read_facts(data), params)


def test_a_damaged_tokenizer_is_named(make_dataset: Callable[..., Path], photo: Callable[..., bytes]) -> None:
    data = make_dataset([("train", photo(0))])
    tower(data.parent / "text", vocab_size=100)
    (data.parent / "text" / "tokenizer.json").write_text("{")
    params = Params.model_validate({"model": {"text_tower": {"pretrained": str(data.parent / "text")}}})
    with pytest.raises(DiptychError, match=r"tokenizer\.json holds no tokenizer"):
        caption_lengths(read_facts(data), params)


def test_there_may_be_no_towers(tmp_path: Path) -> None:
    assert find_towers(tmp_path / "weights") == []


def test_captions_are_as_long_as_the_towers_own_tokenizer_makes_them(
    make_dataset: Callable[..., Path], photo: Callable[..., bytes], tmp_path: Path
) -> None:
    facts = read_facts(make_dataset([("train", photo(0))], {1: ["a dog runs", "a dog"]}))
    tower(tmp_path / "text")
    tokenizer = Tokenizer(WordLevel({"a": 0, "dog": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "text" / "tokenizer.json"))
    params = Params.model_validate({"model": {"text_tower": {"pretrained": str(tmp_path / "text")}}})
    assert np.array_equal(caption_lengths(facts, params), [3, 2])


def test_without_a_tokenizer_words_and_marks_are_counted(
    make_dataset: Callable[..., Path], photo: Callable[..., bytes]
) -> None:
    facts = read_facts(make_dataset([("train", photo(0))], {1: ["a dog, and a cat."]}))
    assert np.array_equal(caption_lengths(facts, Params()), [2 + 9])
